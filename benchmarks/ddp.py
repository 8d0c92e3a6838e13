"""Samples per second of data-parallel training on two ranks: one epoch of 4 M x 20 float32 columns. Higher is better.

MLP 20-256-256-1, Adam, global batches of 8,192. The clock runs on rank 0 from before its first batch is asked for until
all ranks have done their last step, and what is divided by it are the rows that all ranks together have trained on.
Daskdl reads from the Parquet files meanwhile, in the exact sample order, with commits, checkpoints, step accounting
and the audit on, which is checked. ``daskdl reproducible`` is the same with ``reproducible=True``. Torchrun is written
by hand: its rows lie in memory when the clock starts. ``total_s`` is from process start to the end of the training,
``loss`` the mean over the last steps of rank 0.
"""

from __future__ import annotations

import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from harness import FEATURES, PEERS, answer, child_or_measure, measure, since_start, table

BATCH, RANKS = 8_192, 2
LAST_STEPS = 10  # for the loss
SHUFFLE_BUFFER = 50_000  # rows, of Ray Data


@cache
def folder() -> Path:
    """Folder of the rows asked for on the command line."""
    return table(int(sys.argv[sys.argv.index("--rows") + 1]))


def network() -> Any:
    """The model of every contestant."""
    from torch import nn

    return nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))


def threads() -> int:
    """Of each rank, for those who do not settle it themselves."""
    return max(1, len(os.sched_getaffinity(0)) // RANKS)


def mean_of_last(losses: list[Any]) -> float:
    return sum(float(loss) for loss in losses[-LAST_STEPS:]) / len(losses[-LAST_STEPS:])


# -- daskdl -------------------------------------------------------------------------------------------------------


def loop(context: Any) -> tuple[float, float, float]:
    """Rows of all ranks, seconds, loss."""
    import torch

    torch.manual_seed(0)
    model = context.prepare(network())
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    context.keep(optimizer=optimizer)
    bce, rows, losses = torch.nn.functional.binary_cross_entropy_with_logits, 0, []
    context.sum(torch.ones(1))
    began = time.perf_counter()
    for batch in context.batches:
        optimizer.zero_grad()
        loss = context.backward(batch, lambda part: bce(model(part.x).squeeze(1), part.y.float()))
        optimizer.step()
        context.report(loss=loss)
        rows += len(batch.y)
        losses.append(loss)
    total = context.sum(torch.tensor([float(rows)], dtype=torch.float64))
    return float(total), time.perf_counter() - began, mean_of_last(losses)


def daskdl_(reproducible: bool = False) -> None:
    """Daskdl: straight from the files."""
    import tempfile

    import daskdl

    client = daskdl.connect("cpu", n_workers=RANKS, dashboard_address="127.0.0.1:0", runs=tempfile.mkdtemp())
    source = daskdl.ParquetSource(str(folder()))
    options = {"num_workers": RANKS, "batch_size": BATCH, "reproducible": reproducible, "verbose": 0}
    result = daskdl.train(loop, (source, "y"), **options)
    total = since_start()
    audit = result.run.audit()
    once = audit["min"].eq(1).all() and audit["max"].eq(1).all() and audit.as_planned.all()
    if not once or result.value[0] != source.n_rows or "commit" not in set(result.run.events.event):
        raise SystemExit(f"not every row was used once, or nothing was committed:\n{audit}\n{result.run.events}")
    rows, seconds, loss = result.value
    answer(value=rows / seconds, loop_s=seconds, total_s=total, loss=loss)
    client.shutdown()


def daskdl_reproducible() -> None:
    """The same, with weights that have the same bits at any number of ranks."""
    daskdl_(reproducible=True)


# -- peers --------------------------------------------------------------------------------------------------------


def torchrun_rank() -> None:
    """One rank under torchrun: every second file in memory, rows taken by a permutation."""
    import numpy as np
    import pyarrow.parquet as pq
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(threads())
    torch.manual_seed(0)
    data = pq.read_table(sorted(folder().glob("*.parquet"))[rank::world_size])
    x = torch.from_numpy(np.column_stack([data[c].to_numpy() for c in FEATURES]))
    y = torch.from_numpy(data["y"].to_numpy().copy()).float()
    model = torch.nn.parallel.DistributedDataParallel(network())
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    mine, rows, losses = BATCH // world_size, 0, []
    dist.barrier()
    began = time.perf_counter()
    order = torch.randperm(len(y))
    for first in range(0, len(y) - mine + 1, mine):
        index = order[first : first + mine]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x[index]).squeeze(1), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rows += len(index)
        losses.append(loss.detach())
    total = torch.tensor([float(rows)], dtype=torch.float64)
    dist.all_reduce(total)
    seconds = time.perf_counter() - began
    if rank == 0:
        answer(value=float(total) / seconds, loop_s=seconds, total_s=since_start(), loss=mean_of_last(losses))
    dist.destroy_process_group()


def ray_train() -> None:
    """Ray Train fed by Ray Data with a local shuffle buffer; runs in the peers' environment."""
    import json
    import tempfile

    import ray
    import ray.data
    import ray.train
    from ray.train.torch import TorchTrainer

    ray.init(num_cpus=RANKS + 1, logging_level="ERROR", log_to_driver=False, include_dashboard=False)
    said = Path(tempfile.mkdtemp()) / "said.json"

    def ray_loop() -> None:
        import numpy as np
        import torch
        import torch.distributed as dist

        torch.set_num_threads(threads())
        torch.manual_seed(0)
        model = ray.train.torch.prepare_model(network())
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)

        def collate(batch: Any) -> Any:
            x = np.column_stack([batch[c] for c in FEATURES])
            return torch.from_numpy(x), torch.from_numpy(batch["y"]).float()

        batches = ray.train.get_dataset_shard("train").iter_torch_batches(
            batch_size=BATCH // RANKS,
            local_shuffle_buffer_size=SHUFFLE_BUFFER,
            prefetch_batches=2,
            collate_fn=collate,
            drop_last=True,
        )
        rows, losses = 0, []
        dist.barrier()
        began = time.perf_counter()
        for x, y in batches:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rows += len(y)
            losses.append(loss.detach())
        total = torch.tensor([float(rows)], dtype=torch.float64)
        dist.all_reduce(total)
        seconds = time.perf_counter() - began
        if dist.get_rank() == 0:
            said.write_text(json.dumps({"rows": float(total), "seconds": seconds, "loss": mean_of_last(losses)}))

    TorchTrainer(
        ray_loop,
        scaling_config=ray.train.ScalingConfig(num_workers=RANKS),
        run_config=ray.train.RunConfig(storage_path=tempfile.mkdtemp()),
        datasets={"train": ray.data.read_parquet(str(folder()))},
    ).fit()
    total_s, found = since_start(), json.loads(said.read_text())
    answer(value=found["rows"] / found["seconds"], loop_s=found["seconds"], total_s=total_s, loss=found["loss"])


CHILDREN = {"daskdl": daskdl_, "reproducible": daskdl_reproducible, "rank": torchrun_rank, "ray": ray_train}

if __name__ == "__main__":
    options = child_or_measure(__file__, CHILDREN)
    if options is not None:
        table(options.rows)
        script = [__file__, "--rows", str(options.rows), "--child"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)]
        measure(
            "ddp",
            "samples/s",
            {
                "daskdl": [sys.executable, *script, "daskdl"],
                "torchrun": [*torchrun, *script, "rank"],
                "daskdl reproducible": [sys.executable, *script, "reproducible"],
                "ray train": [str(PEERS), *script, "ray"],
            },
            reference="torchrun",
            better="higher",
            runs=options.runs,
            doc="samples per second of one epoch, two ranks, global batches of 8,192",
        )
