"""From Parquet to a trained booster: 4 M x 20 float32, 50 rounds, depth 6. Seconds, lower is better.

The clock starts when libraries are imported and, for Dask, a cluster of two workers is connected; it stops when the
booster is in the client. Peers: plain xgboost on two threads (the reference), and raw xgboost.dask.
"""

from __future__ import annotations

import sys
import time

from harness import FEATURES, answer, child_or_measure, measure, table

ROUNDS, DEPTH, RATE = 50, 6, 0.3
PARAMS = {"objective": "binary:logistic", "tree_method": "hist", "max_depth": DEPTH, "eta": RATE}


def rows() -> int:
    """Number of rows asked for on the command line."""
    return int(sys.argv[sys.argv.index("--rows") + 1])


def held_out_auc(booster: object) -> float:
    """AUC of a booster on the first file (it was trained on: this compares models, it does not judge one)."""
    import pyarrow.parquet as pq
    import xgboost
    from sklearn.metrics import roc_auc_score

    frame = pq.read_table(sorted(table(rows()).glob("*.parquet"))[0]).to_pandas()
    score = booster.predict(xgboost.DMatrix(frame[FEATURES]))  # type: ignore[attr-defined]
    return float(roc_auc_score(frame["y"], score))


def plain() -> None:
    """Plain xgboost, everything in one process."""
    import numpy as np
    import pyarrow.parquet as pq
    import xgboost

    began = time.perf_counter()
    data = pq.read_table(table(rows()))
    x = np.column_stack([data[c].to_numpy() for c in FEATURES])
    matrix = xgboost.QuantileDMatrix(x, data["y"].to_numpy(), nthread=2)
    built = time.perf_counter()
    booster = xgboost.train({**PARAMS, "nthread": 2}, matrix, ROUNDS)
    done = time.perf_counter()
    answer(value=done - began, matrix=built - began, train=done - built, auc=held_out_auc(booster))


def xgboost_dask() -> None:
    """XGBoost's own Dask interface."""
    import dask.dataframe as dd
    import xgboost.dask as dxgb
    from distributed import Client, LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        client.run(__import__, "xgboost.dask")
        began = time.perf_counter()
        frame = dd.read_parquet(table(rows())).persist()
        matrix = dxgb.DaskQuantileDMatrix(client, frame[FEATURES], frame["y"])
        built = time.perf_counter()
        booster = dxgb.train(client, PARAMS, matrix, ROUNDS)["booster"]
        done = time.perf_counter()
        answer(value=done - began, matrix=built - began, train=done - built, auc=held_out_auc(booster))


def daskdl_() -> None:
    """Daskdl's estimator on a cluster it started."""
    import tempfile

    import dask.dataframe as dd

    import daskdl

    client = daskdl.connect("cpu", n_workers=2, dashboard_address="127.0.0.1:0", runs=tempfile.mkdtemp())
    client.run(__import__, "xgboost")
    client.run(__import__, "torch")
    began = time.perf_counter()
    frame = dd.read_parquet(table(rows()))
    model = daskdl.XGBClassifier(n_estimators=ROUNDS, max_depth=DEPTH, learning_rate=RATE, verbose=0)
    model.fit(frame[FEATURES], frame["y"])
    done = time.perf_counter()
    binned = float(model.run_.events.text[0].split()[-2])
    answer(value=done - began, matrix=binned, auc=held_out_auc(model.model_))
    client.shutdown()


if __name__ == "__main__":
    options = child_or_measure(__file__, {"plain": plain, "xgboost_dask": xgboost_dask, "daskdl": daskdl_})
    if options is not None:
        table(options.rows)
        command = [sys.executable, __file__, "--rows", str(options.rows), "--child"]
        measure(
            "xgboost_end_to_end",
            "s",
            {
                "daskdl": [*command, "daskdl"],
                "plain xgboost": [*command, "plain"],
                "raw xgboost.dask": [*command, "xgboost_dask"],
            },
            reference="plain xgboost",
            runs=options.runs,
            doc="seconds from Parquet to a trained booster",
        )
