"""Checkpoints: what is written comes back bit by bit, and whatever happens meanwhile, an older one is left."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from faulty_store import SECRET, Fault, FaultyStore, faulty_store
from fsspec.implementations.local import LocalFileSystem
from processes import wait_until

from daskdl.training.checkpoint_writer import CheckpointWriter
from daskdl.training.checkpoints import (
    CheckpointFolder,
    Checkpoints,
    DamagedCheckpoint,
    Metrics,
    load_checkpoint,
)
from daskdl.training.commit import Commit

Said = list[tuple[str, str, int]]
ALWAYS = Checkpoints(every_steps=1)


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyStore]:
    with faulty_store() as store:
        yield store


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(str(tmp_path / "brave-finch"))


@pytest.fixture(params=["local", "memory", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointFolder:
    if request.param == "local":
        return CheckpointFolder(str(tmp_path / "brave-finch"))
    if request.param == "memory":
        return CheckpointFolder(f"memory://{tmp_path.name}/brave-finch")
    server: FaultyStore = request.getfixturevalue("server")
    server.reset()
    return CheckpointFolder(f"s3://bucket/{tmp_path.name}/brave-finch", server.options)


def commit(step: int) -> Commit:
    """A state that tells its step everywhere."""
    return Commit(step, {"model": {"weight": torch.full((1000,), float(step))}}, {0: (0, step, 64 * step, 2**64 - 1)})


def steps(folder: CheckpointFolder) -> list[int]:
    return [one.step for one in folder.saved()]


def files(folder: CheckpointFolder) -> list[str]:
    return sorted(name for name in os.listdir(folder.url)) if os.path.exists(folder.url) else []


def same(a: Any, b: Any) -> None:
    """Equal in type, order and bits."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.contiguous().view(torch.uint8).equal(b.contiguous().view(torch.uint8)) if a.dim() else a.equal(b)
    elif isinstance(a, dict):
        assert [*a] == [*b]
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert a == b or a != a


# -- rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, error, text",
    [
        ({"path": 3}, TypeError, r"path=.*folder or URL.*got a int"),
        ({"path": ""}, ValueError, r"path=.*got ''"),
        ({"every_steps": 2.0}, TypeError, r"every_steps=.*1 or more steps.*got a float"),
        ({"every_steps": True}, TypeError, r"every_steps=.*got a bool"),
        ({"every_steps": 0}, ValueError, r"every_steps=.*got 0"),
        ({"every_seconds": -1.0}, ValueError, r"every_seconds=.*got -1.0"),
        ({"every_seconds": float("nan")}, ValueError, r"every_seconds=.*got nan"),
        ({"every_seconds": None}, TypeError, r"every_seconds=.*got a NoneType"),
        ({"keep": 0}, ValueError, r"keep=.*without the newest a run cannot go on; got 0"),
        ({"best": ["val_loss"]}, TypeError, r"best=.*name of a metric.*got a list"),
        ({"storage_options": f"secret={SECRET}"}, TypeError, r"storage_options=.*got a str$"),
    ],
)
def test_rules_that_cannot_be_meant(wrong: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Checkpoints(**wrong)


def test_rules_travel_and_keep_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rules = Checkpoints("here", keep=3, storage_options={"secret": SECRET})
    assert rules.path == str(tmp_path / "here")  # the same folder wherever it arrives
    assert pickle.loads(pickle.dumps(rules)) == rules and hash(rules)
    assert SECRET not in repr(rules)
    assert Checkpoints("s3://bucket/runs/").path == "s3://bucket/runs"


# -- what is written comes back -----------------------------------------------------------------------------------


def trained(make: Callable[..., torch.optim.Optimizer]) -> tuple[torch.nn.Module, torch.optim.Optimizer, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    optimizer = make(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)
    for _ in range(5):
        go_on(model, optimizer, schedule)
    return model, optimizer, schedule


def go_on(model: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    optimizer.zero_grad()
    model(torch.randn(16, 5, generator=torch.Generator().manual_seed(1))).square().mean().backward()
    optimizer.step()
    schedule.step()


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=False),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_training_goes_on_bit_by_bit(folder: CheckpointFolder, name: str) -> None:
    things = trained(OPTIMIZERS[name])
    state = {key: thing.state_dict() for key, thing in zip(("model", "optimizer", "schedule"), things, strict=True)}
    folder.write(Commit(5, state))
    again = trained(OPTIMIZERS[name])
    for parameter in again[0].parameters():
        torch.nn.init.zeros_(parameter)
    read = folder.newest()
    assert read is not None and read.step == 5
    for key, thing in zip(("model", "optimizer", "schedule"), again, strict=True):
        thing.load_state_dict(read.state[key])
    for group in (things, again):
        go_on(*group)
    for mine, other in zip(things, again, strict=True):
        same(folder_form(mine.state_dict()), folder_form(other.state_dict()))


def folder_form(state: Any) -> Any:
    return dict(state) if isinstance(state, OrderedDict) else state


def test_everything_plain_survives(anywhere: CheckpointFolder) -> None:
    Pair = namedtuple("Pair", "a b")
    tied = torch.arange(6.0).reshape(2, 3)
    given = {
        "tensors": [
            torch.tensor([float("nan"), -0.0, float("inf")]),
            torch.tensor(3, dtype=torch.uint8),
            torch.zeros(0, 4, dtype=torch.bfloat16),
            torch.tensor([2**63 - 1]),
            torch.tensor([True, False]),
            torch.tensor([1 + 2j]),
            tied.T,
            torch.nn.Parameter(torch.ones(2)),
        ],
        "tied": (tied, tied),
        "numpy": (np.float64(0.1), np.int64(-3), np.bool_(True), np.str_("x")),
        "plain": [None, True, 0.1, 2**127, "naïve", b"\x00\xff", 1j, torch.float16, torch.device("cpu"), {1, 2}],
        "kinds": (OrderedDict(z=1, a=2), defaultdict(list, {3: [4]}), Pair(1, 2), torch.Size([2, 3])),
        3: {(1, "two"): {}},
    }
    want = {
        **given,
        "tensors": [*given["tensors"][:-1], torch.ones(2)],
        "numpy": (0.1, -3, True, "x"),
        "kinds": ({"z": 1, "a": 2}, {3: [4]}, (1, 2), (2, 3)),
    }
    uses = {0: (0, 10, 640, 2**64 - 1), 10: (10, 20, 640, 2**63)}
    saved = anywhere.write(Commit(20, given, uses), {"val_loss": float("nan"), "val_auc": np.float32(0.5)})
    read = anywhere.newest()
    assert read is not None and read.uses == uses
    same(read.state, want)
    assert read.state["tied"][0].data_ptr() == read.state["tied"][1].data_ptr()
    (again,) = anywhere.saved()
    assert again.metrics["val_auc"] == 0.5 and again.metrics["val_loss"] != again.metrics["val_loss"]
    assert (again.name, again.sha256, again.n_bytes) == (saved.name, saved.sha256, saved.n_bytes)


@pytest.mark.parametrize(
    "state, where",
    [
        ({"best": {"fn": test_rules_that_cannot_be_meant}}, r"state\['best'\]\['fn'\] is a function"),
        ({"rng": [np.arange(3)]}, r"state\['rng'\]\[0\] is a ndarray.*arrays as tensors"),
        ({"model": {Path("a"): 1}}, r"a key of state\['model'\] is a PosixPath"),
    ],
)
def test_what_could_run_code_is_refused_by_name(folder: CheckpointFolder, state: dict[str, Any], where: str) -> None:
    with pytest.raises(TypeError, match=where):
        folder.write(Commit(1, state))
    assert files(folder) == [] and folder.newest() is None


def test_torch_alone_reads_it(folder: CheckpointFolder) -> None:
    folder.write(commit(123))
    path = f"{folder.url}/step-000000000123.pt"
    code = f"""
import sys, torch
whole = torch.load({path!r}, weights_only=True)
assert (whole["step"], whole["uses"][0][3], float(whole["state"]["model"]["weight"][0])) == (123, 2**64 - 1, 123)
assert not any(name.startswith("daskdl") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
    mask = os.umask(0)
    os.umask(mask)
    assert os.stat(path).st_mode & 0o777 == 0o666 & ~mask
    manifest = json.loads(Path(path).with_suffix(".json").read_text())
    assert manifest["sha256"] == sha256(Path(path).read_bytes()).hexdigest()


def test_load_checkpoint(anywhere: CheckpointFolder, server: FaultyStore) -> None:
    options = server.options if anywhere.url.startswith("s3") else None
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint in .*steps \[\]\. Give one run's folder"):
        load_checkpoint(anywhere.url, storage_options=options)
    for step in (10, 20):
        anywhere.write(commit(step))
    assert load_checkpoint(f"{anywhere.url}/", storage_options=options)["step"] == 20
    assert load_checkpoint(anywhere.url, 10, options)["state"]["model"]["weight"][0] == 10
    assert load_checkpoint(f"{anywhere.url}/step-000000000010.pt", storage_options=options)["step"] == 10
    with pytest.raises(FileNotFoundError, match=r"of step 15 in .*steps \[10, 20\]"):
        load_checkpoint(anywhere.url, 15, options)


def test_load_checkpoint_checks_a_file_that_has_a_manifest(folder: CheckpointFolder, tmp_path: Path) -> None:
    path = Path(folder.url, folder.write(commit(10)).name)
    alone = path.rename(tmp_path / "mine.pt")
    assert load_checkpoint(alone)["step"] == 10
    path.write_bytes(alone.read_bytes()[:-1])
    with pytest.raises(DamagedCheckpoint, match=r"step-000000000010\.pt has [\d,]+ bytes where [\d,]+ were written"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.pt")
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(DamagedCheckpoint, match=r"other\.pt is no checkpoint of format 1"):
        load_checkpoint(tmp_path / "other.pt")


# -- damage -------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {"cut": (cut, "bytes where"), "flip": (flip, "checksum differs"), "gone": (Path.unlink, "is missing")}


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_one_before_a_damaged_one_is_used(folder: CheckpointFolder, kind: str) -> None:
    damage, words = DAMAGE[kind]
    paths = [Path(folder.url, folder.write(commit(step)).name) for step in (10, 20)]
    damage(paths[1])
    with pytest.warns(UserWarning, match=f"000020.*{words}.*checkpoint of step 10 is used"):
        read = folder.newest()
    assert read is not None and read.step == 10
    same(read.state, commit(10).state)
    with pytest.raises(DamagedCheckpoint, match=words):
        folder.read(folder.saved()[-1])
    damage(paths[0])
    with pytest.raises(DamagedCheckpoint, match=r"000020.*000010.*None is left to go on from.*another folder"):
        folder.newest()


@pytest.mark.parametrize("damage", [cut, lambda p: p.write_text("null"), lambda p: p.write_bytes(b"\xff")])
def test_a_damaged_manifest(folder: CheckpointFolder, damage: Callable[[Path], object]) -> None:
    for step in (10, 20):
        folder.write(commit(step))
    damage(Path(folder.url, "step-000000000020.json"))
    with pytest.warns(UserWarning, match=r"step-000000000020\.json is no manifest.*left out"):
        assert steps(folder) == [10]
    with pytest.warns(UserWarning, match=r"000020\.json.*step 10 is used"):
        assert folder.newest() is not None


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"name": "../step-000000000010.pt"}, {"step": 11}, {"time": "x"}, {"metrics": None}]
)
def test_a_manifest_that_says_what_cannot_be(folder: CheckpointFolder, change: dict[str, Any]) -> None:
    folder.write(commit(10))
    path = Path(folder.url, "step-000000000010.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.warns(UserWarning, match="is no manifest of format 1"):
        assert steps(folder) == []
    with pytest.raises(DamagedCheckpoint):
        folder.newest()


def test_without_a_manifest_there_is_none(anywhere: CheckpointFolder, tmp_path: Path) -> None:
    """As after a kill between the two files."""
    elsewhere = CheckpointFolder(str(tmp_path / "elsewhere"))
    data = Path(elsewhere.url, elsewhere.write(commit(20)).name).read_bytes()
    anywhere.write(commit(10))
    anywhere._fs.pipe_file(f"{anywhere._root}/step-000000000020.pt", data)
    assert steps(anywhere) == [10]
    read = anywhere.newest()
    assert read is not None and read.step == 10
    anywhere.write(commit(20))  # over what is left
    assert steps(anywhere) == [10, 20]


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_no_pickle_is_ever_run(folder: CheckpointFolder, tmp_path: Path) -> None:
    folder.write(commit(10))
    path = Path(folder.url, folder.write(commit(20)).name)
    touched = tmp_path / "touched"
    torch.save({"format": 1, "step": 20, "state": {"model": Evil(str(touched))}, "uses": {}}, path)
    manifest = path.with_suffix(".json")
    told = {"n_bytes": path.stat().st_size, "sha256": sha256(path.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **told}))
    with pytest.warns(UserWarning, match=r"000020\.pt cannot be read as plain tensors.*step 10 is used"):
        folder.newest()
    manifest.unlink()
    with pytest.raises(DamagedCheckpoint, match="cannot be read as plain tensors"):
        load_checkpoint(path)
    assert not touched.exists()
    torch.load(path, weights_only=False)
    assert touched.exists()  # it would have


# -- over and over ------------------------------------------------------------------------------------------------


def test_one_of_the_same_step_is_replaced(anywhere: CheckpointFolder) -> None:
    for value in range(4):
        anywhere.write(Commit(10, {"value": value}), {"val_loss": value})
        read = anywhere.newest()
        assert read is not None and read.state == {"value": value}
        assert [one.metrics for one in anywhere.saved()] == [{"val_loss": value}]
    anywhere.retain(1, None)
    assert len(anywhere._fs.find(anywhere._root)) == 2


def test_a_replacement_that_fails_changes_nothing(server: FaultyStore, tmp_path: Path) -> None:
    server.reset()
    folder = CheckpointFolder(f"s3://bucket/{tmp_path.name}", server.options)
    folder.write(Commit(10, {"value": 1}))
    server.reset(lambda method, path: Fault(status=403) if method == "PUT" and "json" in path else Fault())
    with pytest.raises(PermissionError):
        folder.write(Commit(10, {"value": 2}))
    server.reset()
    read = folder.newest()
    assert read is not None and read.state == {"value": 1}


@pytest.mark.parametrize("best, kept", [(None, [30, 40]), ("val_loss", [20, 30, 40]), ("val_auc", [10, 30, 40])])
def test_the_newest_and_the_best_are_kept(anywhere: CheckpointFolder, best: str | None, kept: list[int]) -> None:
    losses = {5: float("nan"), 10: 0.5, 20: 0.1, 30: 0.1, 40: 0.2}
    for step, loss in losses.items():
        anywhere.write(commit(step), {"val_loss": loss, "val_auc": 1 - step / 100} if step > 5 else {"val_loss": loss})
    anywhere._fs.pipe_file(f"{anywhere._root}/notes.txt", b"mine")
    anywhere._fs.pipe_file(f"{anywhere._root}/step-000000000007.pt", b"left")
    anywhere._fs.pipe_file(f"{anywhere._root}/step-000000000030.pt.{'0' * 32}.part", b"left")
    anywhere.retain(2, best)
    assert steps(anywhere) == kept
    names = {path.rpartition("/")[2] for path in anywhere._fs.find(anywhere._root)}
    assert names == {"notes.txt"} | {f"step-{step:012d}.{kind}" for step in kept for kind in ("pt", "json")}


def test_the_last_written_is_the_newest(folder: CheckpointFolder) -> None:
    """Also if a run went back to an earlier step, and if the clock of the machine it went on on is behind."""
    folder.write(commit(20))
    path = Path(folder.url, "step-000000000020.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "time": time.time() + 3600}))
    folder.write(commit(15))
    assert steps(folder) == [20, 15]
    folder.retain(1, None)
    assert steps(folder) == [15]


LOOP = """
import sys, torch
from daskdl.training.checkpoints import CheckpointFolder
from daskdl.training.commit import Commit
folder = CheckpointFolder(sys.argv[1])
newest = folder.newest()
step = newest.step if newest else 0
while True:
    step += 1
    for _ in range(2):  # the second in place of the first
        folder.write(Commit(step, {"weight": torch.full((300_000,), float(step))}))
    folder.retain(2, None)
"""


def test_a_kill_at_any_moment_leaves_one_that_can_be_read(folder: CheckpointFolder) -> None:
    reached = 0

    def goes_on() -> bool:
        return max([0, *steps(folder)]) >= reached + 5

    for _ in range(3):
        writing = subprocess.Popen([sys.executable, "-c", LOOP, folder.url])
        try:
            assert wait_until(goes_on, 60)
            time.sleep(np.random.default_rng().random() / 20)
        finally:
            writing.send_signal(signal.SIGKILL)
            writing.wait()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            newest = folder.newest()
        assert newest is not None and newest.step >= reached + 5
        assert (newest.state["weight"] == newest.step).all()
        reached = newest.step
    folder.retain(2, None)
    assert len(files(folder)) == 4


def test_readers_see_whole_ones_while_they_are_replaced(folder: CheckpointFolder) -> None:
    folder.write(commit(0))
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        seen = 0
        try:
            while not done.is_set():
                one = CheckpointFolder(folder.url).newest()
                assert one is not None and one.step >= seen
                assert (one.state["model"]["weight"] == one.step).all()
                seen = one.step
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for reader in readers:
            reader.start()
        for step in range(60):
            folder.write(commit(step // 2))
            folder.retain(1, None)
        done.set()
        for reader in readers:
            reader.join()
    assert failures == []


# -- the writer ---------------------------------------------------------------------------------------------------


class Slow(LocalFileSystem):
    """Writes when it may."""

    protocol = "slow"
    may = threading.Event()
    began = threading.Event()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(path.removeprefix("slow://"))

    def _open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
        if mode == "wb":
            self.began.set()
            assert self.may.wait(60)
        return super()._open(path, mode, *args, **kwargs)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[CheckpointFolder]:
    fsspec.register_implementation("slow", Slow, clobber=True)
    Slow.may.clear()
    Slow.began.clear()
    yield CheckpointFolder(f"slow://{tmp_path}/brave-finch")
    Slow.may.set()


def writer(folder: CheckpointFolder, rules: Checkpoints = ALWAYS, step: int = 0) -> tuple[CheckpointWriter, Said]:
    said: Said = []
    return CheckpointWriter(folder, rules, lambda *words: said.append(words), step), said


def test_offers_return_while_the_storage_is_slow_and_the_newest_is_next(slow: CheckpointFolder) -> None:
    writing, said = writer(slow, Checkpoints(every_steps=10))
    writing.offer(commit(9), {})
    writing.offer(commit(10), {})
    assert Slow.began.wait(60)
    for step in (20, 30, 31):  # 31 is not due, but newer than what waits
        writing.offer(commit(step), {"val_loss": step})
    assert sum(thread.name == "daskdl-checkpoints" for thread in threading.enumerate()) == 1
    writing.finish(timeout=0.01)
    assert [word[0] for word in said] == ["warning"] and "still being written" in said[0][1]
    Slow.may.set()
    writing.finish()
    assert steps(slow) == [10, 31]
    assert [word[::2] for word in said[1:]] == [("commit", 10), ("commit", 31)]
    assert re.search(r"^written to \S+/step-000000000031\.pt, [\d,]+ bytes in [\d.]+ s$", said[-1][1])
    assert not any(thread.name == "daskdl-checkpoints" for thread in threading.enumerate())


def test_finish_writes_the_last_whatever_the_rules_say(folder: CheckpointFolder) -> None:
    writing, said = writer(folder, Checkpoints(every_seconds=1e6))
    writing.offer(commit(5), {})
    assert steps(folder) == []
    metrics: Metrics = {"val_loss": 0.5}
    writing.finish(commit(7), metrics)
    writing.finish(commit(7), metrics)
    assert [word[::2] for word in said] == [("commit", 7)]  # once is enough
    writing.finish(commit(7), {"val_loss": 0.4})
    assert [one.metrics for one in folder.saved()] == [{"val_loss": 0.4}]
    writer(folder)[0].finish()  # nothing to write


def test_steps_count_from_where_the_run_goes_on(folder: CheckpointFolder) -> None:
    writing, _ = writer(folder, Checkpoints(every_steps=10, keep=9), step=100)
    for step in (104, 109, 110, 119, 125):
        writing.offer(commit(step), {})
        writing.finish()
    assert steps(folder) == [110, 125]


def test_seconds_of_zero_write_every_commit_and_keep_the_rule(folder: CheckpointFolder) -> None:
    writing, _ = writer(folder, Checkpoints(every_seconds=0, keep=1, best="val_loss"))
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
        writing.offer(commit(step), {"val_loss": loss})
        writing.finish()
    assert steps(folder) == [2, 3]


def test_a_best_metric_that_is_never_reported_is_said(folder: CheckpointFolder) -> None:
    writing, said = writer(folder, Checkpoints(best="val_los"))
    writing.finish(commit(3), {"val_loss": 1.0, "train_loss": 2.0})
    assert said[-1][0] == "warning" and "no 'val_los' was reported, but train_loss, val_loss" in said[-1][1]
    writing.finish(commit(4), {"val_los": 1.0})
    assert said[-1][0] == "commit"


def test_a_state_that_cannot_be_written_is_a_warning(folder: CheckpointFolder) -> None:
    writing, said = writer(folder)
    writing.finish(Commit(3, {"best": {"fn": len}}))
    writing.finish(commit(4))
    assert said[0][::2] == ("warning", 3) and "state['best']['fn'] is a builtin_function" in said[0][1]
    assert steps(folder) == [4]


def check_full_disk(folder: CheckpointFolder, reason: str) -> None:
    writing, said = writer(folder)
    writing.finish(Commit(1, {"small": torch.ones(10)}))
    writing.finish(Commit(2, {"large": torch.ones(1_000_000)}))
    assert said[1][::2] == ("warning", 2)
    assert re.search(rf"checkpoint of step 2 was not written to .*{reason}.* Training goes on", said[1][1])
    assert files(folder) == ["step-000000000001.json", "step-000000000001.pt"]
    writing.finish(Commit(3, {"small": torch.ones(10)}))
    assert [word[0] for word in said] == ["commit", "warning", "commit"]
    read = folder.newest()
    assert read is not None and read.step == 3


def test_a_full_disk(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("may not mount a small disk")
    try:
        folder = CheckpointFolder(str(tmp_path / "brave-finch"))
        check_full_disk(folder, "No space left on device")
        check_no_room_for_the_manifest(folder)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def check_no_room_for_the_manifest(folder: CheckpointFolder) -> None:
    before, disk = files(folder), os.statvfs(folder.url)
    room = -(-folder.saved()[-1].n_bytes // disk.f_bsize)
    with open(f"{folder.url}/filler", "wb") as filler:
        filler.write(bytes((disk.f_bavail - room) * disk.f_bsize))
    with pytest.raises(OSError, match=r"No space left on device"):
        folder.write(Commit(4, {"small": torch.ones(10)}))
    assert files(folder) == ["filler", *before]
    os.unlink(filler.name)


def test_a_limit_of_the_file_size(tmp_path: Path) -> None:
    """The same for those who may not mount."""
    code = f"""
import resource, sys
sys.path[:0] = {sys.path!r}
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("tests", {__file__!r})
tests = module_from_spec(spec)
spec.loader.exec_module(tests)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
tests.check_full_disk(tests.CheckpointFolder({str(tmp_path / "brave-finch")!r}), "File too large")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_store_that_refuses_in_the_middle_of_an_upload(server: FaultyStore, tmp_path: Path) -> None:
    server.reset()
    options = {**server.options, "default_block_size": 5 << 20}
    folder = CheckpointFolder(f"s3://bucket/{tmp_path.name}/brave-finch", options)
    writing, said = writer(folder)
    large = Commit(2, {"large": torch.arange(3_000_000.0)})  # 12 MB: three parts
    writing.finish(commit(1))
    server.reset(lambda method, path: Fault(status=403) if "partNumber=2" in path else Fault())
    writing.finish(large)
    assert any("partNumber=2" in path for _, path in server.asked)
    server.reset()
    assert [word[0] for word in said] == ["commit", "warning"] and SECRET not in str(said)
    assert "not written to s3://bucket" in said[1][1]
    client = folder._fs
    assert len(client.find(folder._root)) == 2
    assert client.call_s3("list_multipart_uploads", Bucket="bucket").get("Uploads", []) == []
    writing.finish(large)
    read = folder.newest()
    assert read is not None
    same(read.state, large.state)
