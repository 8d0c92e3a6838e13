"""Code of the user's own modules on its way to the workers: what they run is what this process has now."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import pandas as pd
import pytest
import torch
from distributed import Client
from torch import nn
from usercode import Code, users_folder

import daskdl
from daskdl.errors import CannotTravel
from daskdl.travel import pack

FEATURES = ["a", "b"]
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 256, "verbose": 0}
NET = """
    from torch import nn
    from .sizes import WIDTH
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
        def forward(self, x):
            from .tools import scaled
            return self.layers(scaled(x))
    def loop(context, factor):
        from .tools import SCALE
        model = context.prepare(Net())
        for batch in context.batches:
            context.backward(batch, lambda part: model(*part.inputs).mean())
        return factor * SCALE, model, isinstance(model, Net)
    def loss(output, y):
        return {loss}
    def transform(arrays, keys):
        return arrays
"""
PACKAGE = {
    "mine/__init__.py": "",
    "mine/sizes.py": "WIDTH = 3",
    "mine/tools.py": "SCALE = 1.0\ndef scaled(x):\n    return x * SCALE",
    "mine/net.py": NET.replace("{loss}", "((output.squeeze(1) - y) ** 2).mean()"),
}


@pytest.fixture
def code(tmp_path: Path) -> Iterator[Code]:
    with users_folder(tmp_path) as found:
        yield found


@pytest.fixture
def rows(planted: pd.DataFrame) -> dd.DataFrame:
    return dd.from_pandas(planted[[*FEATURES, "late"]].fillna(0).head(600), npartitions=2)


def test_workers_run_the_code_that_was_edited_and_reloaded(client: Client, rows: dd.DataFrame, code: Code) -> None:
    code.write(PACKAGE)
    net = code.imported("mine.net")
    data = (rows[FEATURES], rows["late"])
    value, model, known = daskdl.train(net.loop, data, 10, verbose=0, batch_size=256).value
    assert (value, type(model), known) == (10.0, net.Net, True)
    assert net.Net.forward.__globals__ is vars(net)  # the class that came home is the one that was sent
    code.write({"mine/tools.py": "SCALE = 7.0\ndef scaled(x):\n    return x * SCALE", "mine/sizes.py": "WIDTH = 5"})
    for name in ("mine.tools", "mine.sizes", "mine.net"):
        code.imported(name)
    value, model, _ = daskdl.train(net.loop, data, 10, verbose=0, batch_size=256).value
    assert (value, model.layers[0].out_features) == (70.0, 5)
    importlib.import_module("mine.tools").SCALE = 9.0  # type: ignore[attr-defined]
    assert daskdl.train(net.loop, data, 10, verbose=0, batch_size=256).value[0] == 90.0


def test_an_estimator_learns_and_predicts_lazily_with_code_that_workers_do_not_have(
    client: Client, rows: dd.DataFrame, code: Code
) -> None:
    code.write(PACKAGE)
    net = code.imported("mine.net")
    options = {"loss": net.loss, "batch_transform": net.transform, **QUICK}
    reg = daskdl.TorchRegressor(net.Net(), **options).fit(rows[FEATURES], rows["late"])
    assert type(reg.model_) is net.Net
    here = reg.predict(rows[FEATURES].compute())
    assert reg.predict(rows[FEATURES]).compute().to_numpy() == pytest.approx(here)
    code.write({"mine/net.py": NET.replace("{loss}", "1 / 0")})
    code.imported("mine.net")
    with pytest.raises(Exception, match="division by zero"):
        daskdl.TorchRegressor(net.Net(), **{**options, "loss": net.loss}).fit(rows[FEATURES], rows["late"])


def test_what_a_source_is_made_with_travels_too(client: Client, rows: dd.DataFrame, code: Code) -> None:
    code.write(
        {
            "reading.py": """
                THRESHOLD = 0
                class Words:
                    def __len__(self): return 400
                    def __getitem__(self, i): return {"x": float(i), "late": int(i > 199)}
                def flipped(frame):
                    return frame.assign(late=1 - frame.late)
            """
        }
    )
    reading = code.imported("reading")
    source = daskdl.DatasetSource(reading.Words()).map(reading.flipped)
    clf = daskdl.XGBClassifier(n_estimators=3, verbose=0).fit(source, "late")
    assert clf.predict(source).compute().tolist()[::399] == [1, 0]


def test_functions_that_a_lazy_frame_is_made_with_travel_too(client: Client, rows: dd.DataFrame, code: Code) -> None:
    code.write({"steps.py": "SIGN = -1\ndef turned(frame, by):\n    return frame.assign(a=frame.a * SIGN * by)"})
    steps = code.imported("steps")
    before = set(client.scheduler_info(n_workers=-1)["workers"])
    frame = rows.map_partitions(steps.turned, 2, meta=rows._meta)
    clf = daskdl.XGBClassifier(n_estimators=3, verbose=0).fit(frame[FEATURES], frame["late"])
    here = clf.predict(steps.turned(rows.compute(), 2)[FEATURES])
    assert clf.predict(frame[FEATURES]).compute().tolist() == here.tolist()
    assert set(client.scheduler_info(n_workers=-1)["workers"]) == before


def test_gangs_errors_and_results_of_own_classes(client: Client, code: Code) -> None:
    code.write(
        {
            "own.py": """
                import dataclasses, enum, functools, threading
                LOCK, LOCAL = threading.Lock(), threading.local()
                class Kind(enum.Enum):
                    GOOD = 1
                @dataclasses.dataclass
                class Answer:
                    kind: Kind
                    n: int
                class Wrong(Exception):
                    pass
                def counted(function):
                    @functools.wraps(function)
                    def call(*args):
                        with LOCK:
                            return function(*args) + 1
                    return call
                @functools.lru_cache
                def squared(n):
                    return n * n
                @counted
                def more(n):
                    return squared(n)
                def work(n):
                    if n < 0:
                        raise Wrong("negative")
                    return Answer(Kind.GOOD, more(n))
            """
        }
    )
    own = code.imported("own")
    assert daskdl.spmd.run(own.work, 3) == [own.Answer(own.Kind.GOOD, 10)] * 2
    with pytest.raises(daskdl.errors.RankFailed, match="Wrong: negative") as caught:
        daskdl.spmd.run(own.work, -1)
    assert type(caught.value.__cause__) is own.Wrong


def test_what_belongs_to_this_process_is_named_before_anything_is_computed(
    client: Client, rows: dd.DataFrame, code: Code
) -> None:
    code.write({"logs.py": "FILE = open(__file__ + '.log', 'w')\ndef loop(context):\n    FILE.write('x')"})
    began = time.monotonic()
    with pytest.raises(CannotTravel, match="loop cannot be sent to the workers.*FILE of module logs belongs to this"):
        daskdl.train(code.imported("logs").loop, (rows[FEATURES], rows["late"]), verbose=0)
    net = nn.Sequential(nn.Linear(2, 1))
    net[0].numbers = (n for n in range(3))
    with pytest.raises(CannotTravel, match=r"module.0.numbers belongs to this process"):
        daskdl.TorchClassifier(net, **QUICK).fit(rows[FEATURES], rows["late"])
    assert time.monotonic() - began < 5


def test_a_value_that_cannot_come_home_costs_nothing_that_was_learned(client: Client, rows: dd.DataFrame) -> None:
    def loop(context: daskdl.Context) -> Any:
        model = context.prepare(nn.Linear(2, 1))
        for batch in context.batches:
            context.backward(batch, lambda part: model(*part.inputs).mean())
        return (n for n in range(3))

    result = daskdl.train(loop, (rows[FEATURES], rows["late"]), verbose=0)
    assert result.run.state == "finished"
    assert set(result.state["model"]) == {"weight", "bias"}
    with pytest.raises(CannotTravel, match="what the loop returned cannot be sent back.*result.state has the weights"):
        _ = result.value
    assert result.run.events.query("event == 'warning'").text.str.contains("generator").any()


class Sequence(nn.Module):
    """A recurrent layer over one step."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.inside, self.out = kind(2, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.inside(x[:, None])[0][:, -1])


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 1))
    net[2].weight = net[0].weight
    return net


PARTS = nn.utils.parametrizations
MODULES = {
    "lstm": lambda: Sequence(nn.LSTM),
    "gru": lambda: Sequence(nn.GRU),
    "weight_norm of old": lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(2, 1))),
    "weight_norm": lambda: nn.Sequential(PARTS.weight_norm(nn.Linear(2, 1))),
    "spectral_norm": lambda: nn.Sequential(PARTS.spectral_norm(nn.Linear(2, 1))),
    "tied": tied,
    "lazy": lambda: nn.Sequential(nn.LazyLinear(1)),
    "script": lambda: torch.jit.script(nn.Sequential(nn.Linear(2, 1))),
    "compiled": lambda: torch.compile(nn.Sequential(nn.Linear(2, 1)), backend="eager"),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore")
def test_any_module_is_fitted_saved_and_predicts_the_same_everywhere(
    client: Client, rows: dd.DataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    module, frame = MODULES[name](), rows[FEATURES].compute()
    with caplog.at_level(logging.INFO):
        clf = daskdl.TorchClassifier(module, **QUICK).fit(rows[FEATURES], rows["late"])
        lazily = clf.predict_proba(rows[FEATURES]).compute().to_numpy()
    assert type(clf.model_) is type(module)
    assert lazily == pytest.approx(clf.predict_proba(frame), abs=1e-6)
    clf.save(str(tmp_path))
    assert daskdl.load(str(tmp_path), module=module).predict_proba(frame) == pytest.approx(lazily, abs=1e-6)
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []
    assert clf.run_.logs().query("level in ('WARNING', 'ERROR')").empty


def test_weights_that_share_their_memory_share_it_there() -> None:
    whole = torch.arange(6.0)
    first, second = pack((whole[:3], whole[3:])).open()
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def test_probabilities_can_be_written_whatever_the_classes(client: Client, rows: dd.DataFrame, tmp_path: Path) -> None:
    whole = rows.compute()
    labels = {
        "numbers": whole["late"],
        "flags": whole["late"] > 0,
        "days": pd.Timestamp("2026-11-27") + pd.to_timedelta(whole["late"], unit="D"),
    }
    for name, label in labels.items():
        frame = dd.from_pandas(whole.assign(late=label), npartitions=2)
        clf = daskdl.XGBClassifier(n_estimators=1, verbose=0).fit(frame[FEATURES], frame["late"])
        p = clf.predict_proba(frame[FEATURES])
        for written in (p, p.persist(), p.assign(chance=p[clf.classes_[1]])):
            written.to_parquet(f"{tmp_path}/{name}", overwrite=True)
        assert list(pd.read_parquet(f"{tmp_path}/{name}").columns)[:2] == [str(c) for c in pd.Index(clf.classes_)]
        assert p[clf.classes_[1]].compute().between(0, 1).all()
