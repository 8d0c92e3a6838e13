"""connect() against real clusters: places, reuse, refusals, and what is left behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster, Worker
from processes import session_of, wait_until

import daskdl
from daskdl.errors import ConnectionFailed, MissingExtraError

pytestmark = pytest.mark.cluster

SCRIPT = """
import sys, time
import daskdl
if __name__ == "__main__":
    client = daskdl.connect("cpu", n_workers=2, dashboard_address="127.0.0.1:0")
    print("ready", flush=True)
    time.sleep(float(sys.argv[1]))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def started(script: Path, sleep: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error::ResourceWarning", str(script), str(sleep)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_plain_client_on_localhost(client: Client) -> None:
    assert type(client) is Client
    assert list(client.nthreads().values()) == [1, 1]
    assert "127.0.0.1" in client.scheduler.address and "127.0.0.1" in client.dashboard_link


def test_workers_are_born_with_torch_and_fit_for_training(client: Client) -> None:
    def look() -> tuple[bool, int, bool]:
        before = "torch.nn.parallel.distributed" in sys.modules
        import torch

        return before, torch.get_num_threads(), "MALLOC_TRIM_THRESHOLD_" in os.environ

    assert set(client.run(look).values()) == {(True, 1, False)}


@pytest.mark.parametrize("asked, had", [("10ms", 50.0), ("20ms", 20.0)])
def test_processes_do_little_beside_training_unless_the_user_wants_it_otherwise(asked: str, had: float) -> None:
    def intervals(dask_worker: Worker) -> tuple[float, float]:
        callbacks = dask_worker.periodic_callbacks
        return callbacks["tick"].callback_time, callbacks["profile"].callback_time

    with dask.config.set({"distributed.worker.profile.interval": asked}):
        made = daskdl.connect("cpu", n_workers=1, memory_limit="1500MiB", dashboard_address=None)
        assert list(made.run(intervals).values()) == [(100.0, had)]
        made.shutdown()
        assert dask.config.get("distributed.worker.profile.interval") == asked, "other clusters have their own"


def test_workers_draw_different_random_numbers(client: Client) -> None:
    def draw() -> float:
        import numpy as np

        return float(np.random.rand())

    assert len(set(client.run(draw).values())) == 2


def test_forked_workers_read_parquet_and_train_together(client: Client, tmp_path: Path) -> None:
    import pandas as pd

    pd.DataFrame({"x": range(1000)}).to_parquet(tmp_path / "part.parquet")

    def step() -> float:
        import torch
        import torch.distributed as dist

        frame = pd.read_parquet(tmp_path / "part.parquet")
        x = torch.tensor(frame["x"].to_numpy(), dtype=torch.float32)[dist.get_rank() :: 2, None] / 1000
        torch.manual_seed(0)
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
        model(x).square().mean().backward()
        return float(model.module.weight.grad)

    first, second = daskdl.spmd.run(step, client=client)
    assert first == second != 0


def test_a_killed_worker_is_back_warm(client: Client) -> None:
    address, pid = next(iter(client.run(os.getpid).items()))
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: address not in client.nthreads() and len(client.nthreads()) == 2, 5)
    assert set(client.run(lambda: "torch" in sys.modules).values()) == {True}


def test_the_same_request_gets_the_same_cluster(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASKDL_ADDRESS", raising=False)
    assert daskdl.connect("cpu", memory_limit="2GiB") is client
    assert daskdl.connect("cpu", n_workers=2, memory_limit="2GiB") is client
    assert daskdl.connect(client) is client


def test_joining_a_scheduler_by_address_and_by_environment(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    address = client.scheduler.address
    monkeypatch.setenv("DASKDL_ADDRESS", address)
    assert daskdl.connect().scheduler.address == address
    assert daskdl.connect(address).scheduler.address == address


def test_nothing_is_left_in_the_configuration_or_the_environment() -> None:
    config, environment = dask.config.get("distributed.worker.multiprocessing-method"), dict(os.environ)
    with daskdl.connect("cpu", n_workers=1, dashboard_address="127.0.0.1:0", threads_per_worker=2) as other:
        assert list(other.nthreads().values()) == [2]
    added = {name for name in os.environ if os.environ[name] != environment.get(name)}
    assert added <= {"__DASK_PARENT_PID"}
    assert dask.config.get("distributed.worker.multiprocessing-method") == config


def test_a_cluster_object_and_a_taken_dashboard_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            daskdl.connect("cpu", n_workers=1, memory_limit="1GiB", dashboard_address=f"127.0.0.1:{port}") as other,
            daskdl.connect(other.cluster) as same,
        ):
            assert f":{port}/" not in other.dashboard_link
            assert same.scheduler.address == other.scheduler.address


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(ConnectionFailed, match=f"{address}.*dask scheduler"):
            daskdl.connect(address)
    assert time.monotonic() - start < 5


def test_something_else_listens() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with pytest.raises(ConnectionFailed, match="No Dask scheduler answers"):
            daskdl.connect(f"tcp://127.0.0.1:{silent.getsockname()[1]}", timeout=2)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("where", ["tcp://127.0.0.1", "127.0.0.1:8786", "gpu", 3])
def test_no_such_place(where: object) -> None:
    with pytest.raises(ValueError, match=r"cpu, cuda, slurm, kubernetes, gateway.*it got"):
        daskdl.connect(where)


@pytest.mark.parametrize(
    ("where", "command"),
    [
        ("slurm", "pip install dask-jobqueue"),
        ("kubernetes", "pip install dask-kubernetes"),
        ("gateway", "pip install dask-gateway"),
        ("cuda", r'pip install "daskdl\[cuda\]"'),
    ],
)
def test_a_missing_package_says_how_to_install_it(where: str, command: str) -> None:
    module = {"slurm": "dask_jobqueue", "kubernetes": "dask_kubernetes", "gateway": "dask_gateway"}.get(
        where, "dask_cuda"
    )
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    with pytest.raises(MissingExtraError, match=command):
        daskdl.connect(where)


def test_a_scheduler_without_the_page_still_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(client: Client) -> None:
        raise RuntimeError("other versions")

    monkeypatch.setattr("daskdl.dashboard.install", refuse)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        pytest.warns(UserWarning, match="Training page.*other versions"),
        daskdl.connect(cluster) as joined,
    ):
        assert joined.status == "running"


def test_the_end_of_a_script_is_quiet_and_leaves_no_process(script: Path) -> None:
    process = started(script, 0)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert wait_until(lambda: not session_of(process.pid))


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_script_leaves_no_process(script: Path, sign: signal.Signals) -> None:
    process = started(script, 60)
    assert len(session_of(process.pid)) >= 4
    process.send_signal(sign)
    process.communicate(timeout=30)
    assert wait_until(lambda: not session_of(process.pid))


def test_ctrl_c_in_a_terminal_leaves_no_process(script: Path) -> None:
    process = started(script, 60)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert wait_until(lambda: not session_of(process.pid))


def test_a_script_without_a_main_guard_is_told(tmp_path: Path) -> None:
    path = tmp_path / "unguarded.py"
    path.write_text("import daskdl\ndaskdl.connect('cpu', n_workers=1, dashboard_address='127.0.0.1:0')\n")
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "if __name__ == '__main__':" in done.stderr
