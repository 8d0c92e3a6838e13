"""An interrupted cell: the fit ends, the cluster is free at once, the run says that it was stopped."""

from __future__ import annotations

import os
import signal
from typing import Any

import dask.dataframe as dd
import pytest
from distributed import Client
from watching import when_at

import daskdl

LONG: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("TorchClassifier", {"epochs": 100_000}, {"epochs": 1}),
    ("XGBClassifier", {"n_estimators": 1_000_000}, {"n_estimators": 1}),
]


@pytest.mark.parametrize("kind, long, short", LONG)
def test_ctrl_c_frees_the_workers(
    client: Client,
    ragged: dd.DataFrame,
    started_runs: list[daskdl.Run],
    kind: str,
    long: dict[str, Any],
    short: dict[str, Any],
) -> None:
    estimator = getattr(daskdl, kind)
    when_at(started_runs, 10, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        estimator(verbose=0, **long).fit(ragged[["a", "b"]], ragged["late"])
    assert not any(client.processing().values())
    again = estimator(verbose=0, **short).fit(ragged[["a", "b"]], ragged["late"])
    assert again.run_.state == "finished"
    assert daskdl.runs()["state"].tolist() == ["finished", "stopped"]
