"""Code of the user's own, saving and loading, and where fit may be called."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import joblib
import numpy as np
import pandas as pd
import pytest
from distributed import Client, get_client, worker_client
from sklearn.model_selection import GridSearchCV
from torch import nn
from usercode import users_folder

import daskdl

from .case import Case

CODE, SAVING, WHERE = "Code of your own", "Saving and loading", "Where fit may be called"
OWN = """
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(2, 1)
        def forward(self, x):
            return self.out(x)
    def loop(context):
        return NUMBER
    def doubled(frame):
        return frame.assign(a=frame.a * 2)
    NUMBER = {number}
"""


def _frame() -> pd.DataFrame:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 2)), columns=["a", "b"])
    return frame.assign(y=(frame.a > 0).astype(int))


def _lazy() -> dd.DataFrame:
    return dd.from_pandas(_frame(), npartitions=2)


def _torch(module: Any = None, **options: Any) -> Any:
    return daskdl.TorchClassifier(module, epochs=1, verbose=0, **options).fit(_lazy()[["a", "b"]], _lazy().y)


def _edited(client: Client) -> None:
    with tempfile.TemporaryDirectory() as folder, users_folder(Path(folder)) as code:
        for number in (1, 2):
            code.write({"table_own.py": OWN.format(number=number)})
            own = code.imported("table_own")
            assert daskdl.train(own.loop, (_lazy()[["a", "b"]], _lazy().y), verbose=0).value == number


def _elsewhere(client: Client) -> None:
    with tempfile.TemporaryDirectory() as folder, users_folder(Path(folder)) as code:
        code.write({"table_net.py": OWN.format(number=1)})
        own = code.imported("table_net")
        clf = _torch(own.Net())
        assert type(clf.model_) is own.Net
        frame = _lazy().map_partitions(own.doubled, meta=_frame())
        assert len(clf.predict(frame[["a", "b"]]).compute()) == 200


def _refused(kind: type[Exception], words: str, work: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=re.escape(words)):
        work()


def _with_a_lock(client: Client) -> None:
    net = nn.Sequential(nn.Linear(2, 1))
    net[0].lock = threading.Lock()
    _refused(daskdl.errors.CannotTravel, "module.0.lock belongs to this process", lambda: _torch(net))


def _generator(client: Client) -> None:
    result = daskdl.train(lambda context: (n for n in range(3)), (_lazy()[["a", "b"]], _lazy().y), verbose=0)
    assert result.run.state == "finished"
    _refused(daskdl.errors.CannotTravel, "result.state has the weights", lambda: result.value)


def _weight_norm(client: Client) -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 1)))
    assert type(_torch(net).model_) is nn.Sequential


def _tied(client: Client) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    net[1].weight = net[0].weight
    clf = _torch(net)
    with tempfile.TemporaryDirectory() as folder:
        clf.save(folder)
        loaded = daskdl.load(folder, module=net)
    assert np.array_equal(loaded.predict_proba(_frame()[["a", "b"]]), clf.predict_proba(_frame()[["a", "b"]]))


def _loss_asked_for(client: Client) -> None:
    clf = _torch(loss=nn.BCEWithLogitsLoss())
    with tempfile.TemporaryDirectory() as folder:
        clf.save(folder)
        _refused(ValueError, "Pass it: daskdl.load(path, loss=...)", lambda: daskdl.load(folder))


def _other_files(client: Client) -> None:
    clf = _torch()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "notes.txt").write_text("mine")
        _refused(FileExistsError, "is not empty, and no saved estimator", lambda: clf.save(folder))


def _to_parquet(client: Client) -> None:
    clf = daskdl.XGBClassifier(n_estimators=1, verbose=0).fit(_lazy()[["a", "b"]], _lazy().y)
    p = clf.predict_proba(_lazy()[["a", "b"]])
    with tempfile.TemporaryDirectory() as folder:
        p.to_parquet(folder)
        assert pd.read_parquet(folder).columns.tolist() == ["0", "1"]
    assert p[1].compute().between(0, 1).all()


def _in_a_task(client: Client) -> None:
    def task(frame: pd.DataFrame) -> int:
        get_client()
        return daskdl.XGBClassifier(n_estimators=1, verbose=0).fit(frame[["a", "b"]], frame.y).run_.record.num_workers

    assert client.submit(task, _frame(), pure=False).result(timeout=60) == 1


def _lazy_in_a_task(client: Client) -> None:
    def task() -> None:
        fit = daskdl.XGBClassifier(verbose=0).fit
        _refused(ValueError, "worker_client", lambda: fit(_lazy()[["a", "b"]], _lazy().y))

    client.submit(task, pure=False).result(timeout=60)


def _seceded(client: Client) -> None:
    def task() -> int:
        with worker_client():
            fit = daskdl.XGBClassifier(n_estimators=1, verbose=0).fit
            return fit(_lazy()[["a", "b"]], _lazy().y).run_.record.num_workers

    assert client.submit(task, pure=False).result(timeout=60) == 2


def _search(client: Client) -> None:
    model = daskdl.XGBClassifier(verbose=0, num_workers=1)
    with joblib.parallel_config("dask"):
        found = GridSearchCV(model, {"n_estimators": [1, 3]}, cv=2).fit(_frame()[["a", "b"]], _frame().y)
    assert found.best_score_ > 0.8


CASES = [
    Case(CODE, "a module of yours, edited and loaded anew", "workers run what this process has now", _edited),
    Case(CODE, "a network, or a function in a lazy frame, of a folder that workers do not have",
         "travels with its code; `type(model_)` is your class", _elsewhere),
    Case(CODE, "a network that holds a lock, a file, a client or a generator",
         "`CannotTravel` names it, before anything is read: make it at the first call", _with_a_lock),
    Case(CODE, "`weight_norm`, `spectral_norm`, old and new", "is trained, comes home and is saved", _weight_norm),
    Case(CODE, "a loop that returns what cannot be sent",
         "the run finishes, `result.state` is there, `result.value` says why it is not", _generator),
    Case(SAVING, "tied weights, complex ones, views, tensors of no values", "are saved and loaded", _tied),
    Case(SAVING, "a loss, optimizer or function of your own",
         "`load` asks for it by name: `daskdl.load(path, loss=...)`", _loss_asked_for),
    Case(SAVING, "a folder that has other files in it", "`FileExistsError`; nothing is written", _other_files),
    Case(SAVING, "lazy probabilities, `to_parquet`",
         "columns are the classes as text, in the order of `classes_`; `p[1]` is that of class 1", _to_parquet),
    Case(WHERE, "in a task of Dask's, also after `get_client()`", "rows in memory are trained on in the task",
         _in_a_task),
    Case(WHERE, "in a task of Dask's, with a lazy frame", "`ValueError`: let the thread go, `with worker_client():`",
         _lazy_in_a_task),
    Case(WHERE, "in a task that has let its thread go", "trains on all workers", _seceded),
    Case(WHERE, "`GridSearchCV`, `cross_val_score` on joblib's Dask backend", "each fit in its task, on one rank",
         _search),
]  # fmt: skip
