"""Seconds until the first optimizer step has ended on two ranks, from process start. Lower is better.

400,000 rows x 20 float32 columns in Parquet, MLP 20-256-256-1, Adam, global batch 8,192. ``from_call`` is the time from
the call that trains, with a cluster (Dask, Ray) already connected; torchrun has none, its call is the process start.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from harness import FEATURES, PEERS, answer, child_or_measure, measure, since_start, table

ROWS, BATCH = 400_000, 8_192


def network() -> object:
    """The model of every contestant."""
    from torch import nn

    return nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))


def daskdl_() -> None:
    """Daskdl: start a cluster, then ``daskdl.train`` from a lazy frame."""
    import tempfile

    import dask.dataframe as dd

    import daskdl

    def loop(context: daskdl.Context) -> float:
        import time

        import torch

        model = context.prepare(network())
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        batch = next(context.batches)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch.x).squeeze(1), batch.y.float())
        loss.backward()
        optimizer.step()
        return time.time()

    client = daskdl.connect("cpu", n_workers=2, dashboard_address="127.0.0.1:0", runs=tempfile.mkdtemp())
    connected = since_start()
    called = time.time()
    frame = dd.read_parquet(table(ROWS))
    stepped = daskdl.train(loop, (frame[FEATURES], frame["y"]), batch_size=BATCH, verbose=0).value
    answer(value=stepped - float(os.environ["BENCHMARK_STARTED"]), from_call=stepped - called, connected=connected)
    client.shutdown()


def torchrun_rank() -> None:
    """One rank under torchrun: read every second file, wrap, step."""
    import numpy as np
    import pyarrow.parquet as pq
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    data = pq.read_table(sorted(table(ROWS).glob("*.parquet"))[rank::world])
    x = torch.from_numpy(np.column_stack([data[c].to_numpy() for c in FEATURES]))
    y = torch.from_numpy(data["y"].to_numpy().copy()).float()
    model = torch.nn.parallel.DistributedDataParallel(network())
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    rows = torch.randperm(len(y))[: BATCH // world]
    torch.nn.functional.binary_cross_entropy_with_logits(model(x[rows]).squeeze(1), y[rows]).backward()
    optimizer.step()
    if rank == 0:
        answer(value=since_start(), from_call=since_start())
    dist.destroy_process_group()


def ray_train() -> None:
    """Ray Train fed by Ray Data; runs in the peers' environment."""
    import tempfile

    import ray
    import ray.data
    import ray.train
    from ray.train.torch import TorchTrainer

    ray.init(num_cpus=4, logging_level="ERROR", log_to_driver=False, include_dashboard=False)
    called = time.time()
    stamp = Path(tempfile.mkdtemp()) / "stepped"

    def loop() -> None:
        import torch

        model = ray.train.torch.prepare_model(network())
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        shard = ray.train.get_dataset_shard("train")
        batch = next(iter(shard.iter_torch_batches(batch_size=BATCH // 2)))
        x = torch.stack([batch[c] for c in FEATURES], dim=1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), batch["y"].float())
        loss.backward()
        optimizer.step()
        if ray.train.get_context().get_world_rank() == 0:
            stamp.write_text(repr(time.time()))

    TorchTrainer(
        loop,
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        datasets={"train": ray.data.read_parquet(str(table(ROWS)))},
    ).fit()
    stepped = float(stamp.read_text())
    answer(value=stepped - float(os.environ["BENCHMARK_STARTED"]), from_call=stepped - called)


if __name__ == "__main__":
    options = child_or_measure(__file__, {"daskdl": daskdl_, "rank": torchrun_rank, "ray": ray_train})
    if options is not None:
        table(ROWS)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", __file__, "--child", "rank"]
        measure(
            "first_step",
            "s",
            {
                "daskdl": [sys.executable, __file__, "--child", "daskdl"],
                "torchrun": torchrun,
                "ray train": [str(PEERS), __file__, "--child", "ray"],
            },
            reference="torchrun",
            runs=options.runs,
            doc="seconds from process start to the end of the first optimizer step, two ranks",
        )
