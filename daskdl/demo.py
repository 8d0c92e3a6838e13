"""``daskdl demo``: real flights, from a Dask DataFrame to two trained models, compared on months they have not seen."""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

from daskdl import datasets
from daskdl.cluster import connect
from daskdl.report import write_report
from daskdl.workers import workers_of

FEATURES = datasets.FLIGHT_FEATURES
LABEL = datasets.LABEL


class Score(NamedTuple):
    """One line of the table; seconds and rows are those of training."""

    model: str
    rows: int
    seconds: float
    auc: float
    log_loss: float

    @property
    def cells(self) -> tuple[str, ...]:
        """The line as text; rows/s are the training rows over the seconds of the whole fit."""
        rate = f"{self.rows / self.seconds:,.0f}" if self.seconds else "-"
        return self.model, f"{self.rows:,}", f"{self.seconds:.1f}", rate, f"{self.auc:.4f}", f"{self.log_loss:.4f}"


def main(args: argparse.Namespace) -> int:
    """Run the demo; the exit status is 0 if everything worked."""
    began = time.perf_counter()
    client = connect(n_workers=args.n_workers, runs=args.runs)
    print(f"cluster    {len(workers_of(client))} workers, dashboard {client.dashboard_link}")
    train, test = _data(client)
    y = test[LABEL].compute()
    scores = [_base_line(train, test, y)]
    models = _models()
    for title, model in models.items():
        scores.append(_train(title, model, train, test, y))
    _print_table(scores)
    folder = models["PyTorch"].run_.folder
    print("writing the report ...", flush=True)
    notebook, page = write_report(folder, [m.run_.id for m in models.values()], [s.cells for s in scores])
    print(f"notebook   {notebook}\nreport     {page}")
    print(f"all runs   daskdl runs\ndone in {time.perf_counter() - began:.0f} s")
    del train, test
    client.shutdown()
    return 0


def _data(client: Any) -> tuple[Any, Any]:
    """Join on the workers, keep the result in their memory, and say what became of every flight."""
    from distributed import wait

    frame = datasets.flights()
    counts = datasets.flight_counts()
    print(
        f"data       {counts.flights:,} flights of 2013; {counts.unlabelled:,} never arrived as planned and have no "
        f"delay to learn: left out"
    )
    began = time.perf_counter()
    train, test = client.persist(datasets.flights_split(frame))
    wait([train, test])
    print(
        f"join       weather and planes, {len(FEATURES)} features known before departure, "
        f"{time.perf_counter() - began:.1f} s\n"
        f"           train on {len(train):,} (January to October), test on {len(test):,} (November, December)"
    )
    return train, test


def _models() -> dict[str, Any]:
    from daskdl import TorchClassifier, XGBClassifier

    return {
        "XGBoost": XGBClassifier(
            n_estimators=120,
            max_depth=5,
            learning_rate=0.1,
            subsample=0.7,
            colsample_bytree=0.5,
            min_child_weight=30,
            name="flights, XGBoost",
        ),
        "PyTorch": TorchClassifier(
            epochs=2, batch_size=1024, weight_decay=1e-4, optimizer="adamw", name="flights, PyTorch"
        ),
    }


def _base_line(train: Any, test: Any, y: Any) -> Score:
    """The rate at which each carrier was late before."""
    began = time.perf_counter()
    rates = train.groupby("carrier")[LABEL].mean().compute()
    seconds = time.perf_counter() - began
    p = test["carrier"].compute().map(rates).fillna(rates.mean()).astype(float)
    return _score("carrier's mean rate", len(train), seconds, y, p)


def _train(title: str, model: Any, train: Any, test: Any, y: Any) -> Score:
    began = time.perf_counter()
    model.fit(train[FEATURES], train[LABEL])
    seconds = time.perf_counter() - began
    p = model.predict_proba(test[FEATURES])[1].compute()
    with model.run_.open("test.parquet", "wb") as file:
        p.rename("p").to_frame().assign(late=y.array).to_parquet(file, index=False)
    model.save(f"{model.run_.folder}/model")
    return _score(title, len(train), seconds, y, p)


def _score(title: str, rows: int, seconds: float, y: Any, p: Any) -> Score:
    from sklearn.metrics import log_loss, roc_auc_score

    return Score(title, rows, seconds, float(roc_auc_score(y, p)), float(log_loss(y, p)))


def _print_table(scores: list[Score]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="arrival over 15 minutes late, in November and December")
    for name in ("model", "rows", "seconds", "rows/s", "AUC", "log loss"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for score in scores:
        table.add_row(*score.cells)
    Console().print(table)
