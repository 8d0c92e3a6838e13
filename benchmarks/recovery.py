"""Seconds from the SIGKILL of a worker to the next optimizer step, and to full size again. Lower is better.

MLP 20-256-256-1, Adam, global batches of 8,192 from Parquet, three ranks on one machine. Every rank writes down when it
has done a step and in how large a gang it did it. Once all ranks have done some steps at full size, one of them is
killed by its process number, another one each time. ``value`` is the time until a rank that went on from a commit or a
checkpoint has done an optimizer step, ``full_s`` the time until one has been done at full size; medians over the kills.
``again`` is how many steps before the one of the kill it went on from. A daskdl run takes commits by itself, some four
a second; Ray Train is given a checkpoint every 100 steps.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from ddp import network, threads
from harness import FEATURES, PEERS, answer, child_or_measure, measure, table

BATCH, RANKS = 8_192, 3
KILLS = 5
STEPS_BEFORE = 30  # at full size, by every rank, before one is killed
COMMIT_STEPS = 100
EPOCHS = 1_000_000  # the one who kills ends the training
LIMIT_SECONDS = 300.0  # to begin, or to recover


def option(name: str, default: int) -> int:
    return int(sys.argv[sys.argv.index(name) + 1]) if name in sys.argv else default


@cache
def folder() -> Path:
    """Folder of the rows asked for on the command line."""
    return table(option("--rows", 400_000))


# -- what ranks write down, and who kills them ----------------------------------------------------------------------


class Diary:
    """Steps of one rank, a line each, in a file of its process; so one rank never waits for another to write."""

    def __init__(self, place: str, rank: int, world_size: int) -> None:
        self.about = {"rank": rank, "world_size": world_size, "pid": os.getpid(), "began": time.time()}
        self.file = open(f"{place}/{os.getpid()}.jsonl", "a", buffering=1)  # noqa: SIM115 - as long as the rank

    def write(self, step: int) -> None:
        """Note that a step is done."""
        self.file.write(json.dumps({**self.about, "step": step, "time": time.time()}) + "\n")


def read(place: str) -> list[dict[str, Any]]:
    """What all ranks have written, in the order of time."""
    lines = [line for path in Path(place).glob("*.jsonl") for line in path.read_text().split("\n")[:-1]]
    return sorted(map(json.loads, lines), key=lambda entry: entry["time"])


def until(look: Callable[[], Any]) -> Any:
    """What ``look`` finds, as soon as it finds something."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing after {LIMIT_SECONDS:.0f} s")
        time.sleep(0.25)
    return found


def kill_again_and_again(place: str, kills: int, results: list[dict[str, float]]) -> None:
    """Kill one rank after the other, note how long it took each time, then end the training."""
    try:
        since = 0.0
        for i in range(kills):
            steady = until(partial(at_full_size, place, since))
            victim, killed = steady[i % RANKS], time.time()
            os.kill(victim["pid"], signal.SIGKILL)
            later = until(partial(full_again, place, killed))
            first, full = later[0], next(e for e in later if e["world_size"] == RANKS)
            again = max(0, victim["step"] - first["step"] + 1)
            results.append({"value": first["time"] - killed, "full_s": full["time"] - killed, "again": again})
            since = full["began"]
            print(f"# kill {i + 1}: {results[-1]}", file=sys.stderr, flush=True)
    finally:
        Path(place, "stop").touch()


def at_full_size(place: str, since: float) -> list[dict[str, Any]] | None:
    """The last entry of each rank of the newest gang, by rank, if it is whole and under way."""
    entries = [e for e in read(place) if e["began"] >= since - 1.0 and e["world_size"] == RANKS]
    newest = [e for e in entries if e["began"] >= max(e["began"] for e in entries) - 1.0]
    last = {e["rank"]: e for e in newest}
    under_way = all(sum(e["rank"] == rank for e in newest) >= STEPS_BEFORE for rank in range(RANKS))
    return [last[rank] for rank in range(RANKS)] if under_way else None


def full_again(place: str, killed: float) -> list[dict[str, Any]] | None:
    """Steps of gangs that began after the kill, once one of them is of full size."""
    later = [e for e in read(place) if e["began"] > killed]
    return later if any(e["world_size"] == RANKS for e in later) else None


def contest(train: Callable[[str], None]) -> None:
    """Train while ranks are killed; answer with the medians."""
    place, results, kills = tempfile.mkdtemp(), [], option("--kills", KILLS)
    thread = threading.Thread(target=kill_again_and_again, args=(place, kills, results), daemon=True)
    thread.start()
    train(place)
    thread.join()
    if len(results) < kills:
        raise SystemExit(f"of {kills} kills it recovered from {len(results)}")
    answer(**{key: statistics.median(result[key] for result in results) for key in results[0]})


# -- contestants --------------------------------------------------------------------------------------------------


def daskdl_() -> None:
    """Daskdl: the others go on from their commits, the restarted worker is taken in at the end of a step."""
    import daskdl

    def loop(context: daskdl.Context, place: str) -> None:
        import torch

        diary = Diary(place, context.rank, context.world_size)
        model = context.prepare(network())
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        context.keep(optimizer=optimizer)
        for batch in context.batches:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch.x).squeeze(1), batch.y.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            diary.write(context.step)
            context.report(loss=loss)
            if context.sum(torch.tensor([float(Path(place, "stop").exists())])) > 0:
                context.stop()

    def train(place: str) -> None:
        source = daskdl.ParquetSource(str(folder()))
        daskdl.train(loop, (source, "y"), place, num_workers=RANKS, batch_size=BATCH, epochs=EPOCHS, verbose=0)

    client = daskdl.connect("cpu", n_workers=RANKS, dashboard_address="127.0.0.1:0", runs=tempfile.mkdtemp())
    contest(train)
    client.shutdown()


def ray_train() -> None:
    """Ray Train fed by Ray Data, restarted from its last checkpoint; runs in the peers' environment."""
    import ray
    import ray.data
    import ray.train
    from ray.train.torch import TorchTrainer

    ray.init(num_cpus=RANKS + 1, logging_level="ERROR", log_to_driver=False, include_dashboard=False)

    def loop(config: dict[str, Any]) -> None:
        import numpy as np
        import torch
        import torch.distributed as dist

        torch.set_num_threads(threads())
        rank, world_size, step = dist.get_rank(), dist.get_world_size(), 0
        diary = Diary(config["place"], rank, world_size)
        model = ray.train.torch.prepare_model(network())
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        if (checkpoint := ray.train.get_checkpoint()) is not None:
            with checkpoint.as_directory() as at:
                state = torch.load(f"{at}/state.pt")
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            step = state["step"]

        def collate(batch: Any) -> Any:
            x = np.column_stack([batch[c] for c in FEATURES])
            return torch.from_numpy(x), torch.from_numpy(batch["y"]).float()

        shard, stopped = ray.train.get_dataset_shard("train"), False
        while not stopped:
            for x, y in shard.iter_torch_batches(batch_size=BATCH // RANKS, collate_fn=collate, drop_last=True):
                loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(1), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                diary.write(step)
                if step % COMMIT_STEPS == 0:
                    report(model, optimizer, step, rank)
                told = torch.tensor([float(Path(config["place"], "stop").exists())])
                dist.all_reduce(told)
                if stopped := bool(told > 0):
                    break

    def report(model: Any, optimizer: Any, step: int, rank: int) -> None:
        import torch

        with tempfile.TemporaryDirectory() as at:
            checkpoint = None
            if rank == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                torch.save(state, f"{at}/state.pt")
                checkpoint = ray.train.Checkpoint.from_directory(at)
            ray.train.report({"step": step}, checkpoint=checkpoint)

    def train(place: str) -> None:
        TorchTrainer(
            loop,
            train_loop_config={"place": place},
            scaling_config=ray.train.ScalingConfig(num_workers=RANKS),
            run_config=ray.train.RunConfig(
                storage_path=tempfile.mkdtemp(), failure_config=ray.train.FailureConfig(max_failures=-1)
            ),
            datasets={"train": ray.data.read_parquet(str(folder()))},
        ).fit()

    contest(train)


if __name__ == "__main__":
    options = child_or_measure(__file__, {"daskdl": daskdl_, "ray": ray_train})
    if options is not None:
        rows, kills = option("--rows", 400_000), option("--kills", KILLS)
        table(rows)
        script = [__file__, "--rows", str(rows), "--kills", str(kills), "--child"]
        measure(
            "recovery",
            "s",
            {"daskdl": [sys.executable, *script, "daskdl"], "ray train": [str(PEERS), *script, "ray"]},
            reference="ray train" if PEERS.exists() else "daskdl",
            runs=options.runs,
            doc="seconds from SIGKILL of a worker to the next optimizer step, three ranks",
        )
