"""A worker behind a link that is cut: nobody closes a connection, there is only silence."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from chaos.network import Link, link, worker
from distributed import Client, LocalCluster
from processes import wait_until

import daskdl

pytestmark = pytest.mark.cluster


@dataclass
class Cluster:
    """Two workers here and one behind a link."""

    client: Client
    link: Link
    process: subprocess.Popen


@pytest.fixture(params=[0, 1], ids=["rank 0", "rank 2"])
def far(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    with link() as found:
        if found is None:
            pytest.skip("needs root, iproute2 and network namespaces")
        with LocalCluster(2, threads_per_worker=1, host=found.here, dashboard_address=None) as cluster:
            there = found.there[request.param]
            with worker(cluster.scheduler_address, str(tmp_path), there, found) as process, Client(cluster) as client:
                client.wait_for_workers(3, timeout=60)
                yield Cluster(client, found, process)


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


def test_a_cut_link_costs_its_worker_and_no_row(far: Cluster, planted: pd.DataFrame, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    cut_at: list[float] = []

    def cut() -> None:
        assert wait_until(mark.exists, 150)
        far.link.cut()
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
    far.link.mend()
    assert wait_until(lambda: far.process.poll() is not None, 60), "the worker behind the link goes on for ever"
    assert len(run.events) == events and len(far.client.scheduler_info(n_workers=-1)["workers"]) == 2
