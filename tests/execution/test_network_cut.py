"""A worker behind a link that is cut: nobody closes a connection, there is only silence. Needs root and iproute2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster
from processes import wait_until

import daskdl

pytestmark = pytest.mark.cluster

HERE, THERE = "10.213.77.2", ("10.213.77.1", "10.213.77.3")  # ranks are in the order of addresses


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass
class Link:
    """A cluster of two workers here and one behind a link."""

    client: Client
    link: str
    process: subprocess.Popen


@pytest.fixture(params=[0, 2], ids=["rank 0", "rank 2"])
def far(request: pytest.FixtureRequest) -> Iterator[Link]:
    if not shutil.which("ip") or os.geteuid() != 0:
        pytest.skip("needs root and iproute2")
    there, name = THERE[request.param // 2], f"dkdl{os.getpid() % 10_000}r{request.param}"  # 15 characters at most
    try:
        ip("netns", "add", name)
        ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
    except subprocess.CalledProcessError as error:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
        pytest.skip(f"no network namespaces here: {error.stderr!r}")
    process = None
    try:
        ip("addr", "add", f"{HERE}/24", "dev", f"{name}a")
        ip("link", "set", f"{name}a", "up")
        for words in (["addr", "add", f"{there}/24", "dev", f"{name}b"], ["link", "set", f"{name}b", "up"]):
            ip("-n", name, *words)
        ip("-n", name, "link", "set", "lo", "up")
        with LocalCluster(2, threads_per_worker=1, host=HERE, dashboard_address=None) as cluster:
            command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
            options = ["--host", there, "--nthreads", "1", "--no-dashboard", "--name", "far"]
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}  # to unpickle what this imports
            process = subprocess.Popen(["ip", "netns", "exec", name, *command, *options], env=environment)
            with Client(cluster) as client:
                client.wait_for_workers(3, timeout=60)
                yield Link(client, f"{name}a", process)
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
        if process is not None:
            process.kill()
            process.wait()


def linear(context: daskdl.Context, mark: str) -> None:
    model = context.prepare(torch.nn.Linear(context.schema.n_numbers, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    context.keep(optimizer=optimizer)
    for batch in context.batches:
        if batch.step == 70:
            Path(mark).touch()
            while not Path(f"{mark}-cut").exists():
                time.sleep(0.01)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch.x).squeeze(1), batch.y.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        context.report(loss=loss)


def test_a_cut_link_costs_its_worker_and_no_row(far: Link, planted: pd.DataFrame, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    cut_at: list[float] = []

    def cut() -> None:
        assert wait_until(mark.exists, 150)
        ip("link", "set", far.link, "down")
        cut_at.append(time.time())
        Path(f"{mark}-cut").touch()

    thread = threading.Thread(target=cut)
    thread.start()
    data, options = (planted[["a", "b"]], planted.late), {"batch_size": 96, "epochs": 4, "seed": 1, "verbose": 0}
    run = daskdl.train(linear, data, str(mark), num_workers=3, **options).run
    thread.join()
    [lost] = run.events.query("event == 'worker_lost'").itertuples()
    [cause] = run.events.query("event == 'cause'").text
    assert "its machine or network went away: neither it nor its nanny had answered for" in cause
    assert "worker far, " in cause
    assert lost.time.timestamp() - cut_at[0] < 10.0  # 3 where nothing else runs
    audit = run.audit()
    assert audit.as_planned.all() and audit["min"].eq(1).all() and audit["max"].eq(1).all() and len(audit) == 4
    events = len(run.events)
    ip("link", "set", far.link, "up")
    assert wait_until(lambda: far.process.poll() is not None, 60), "the worker behind the link goes on for ever"
    assert len(run.events) == events and len(far.client.scheduler_info(n_workers=-1)["workers"]) == 2
