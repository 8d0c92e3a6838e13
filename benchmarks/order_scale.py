"""Plan 10**12 rows in 10**7 row groups for 10,000 ranks: seconds and memory of one rank, in a fresh process.

There is no peer in this one: the aim is an absolute one, under 1 s and 1 GiB.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

GROUPS, ROWS, RANKS, BATCH = 10**7, 10**12, 10_000, 1 << 20


def plan() -> None:
    from daskdl.data.order import SampleOrder

    counts = np.random.default_rng(0).integers(50_000, 150_000, GROUPS)
    each, rest = divmod(ROWS - counts.sum(), GROUPS)
    counts += each
    counts[:rest] += 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    order = SampleOrder(counts, BATCH, seed=1)
    cuts = order.slices(0, rank=7_777, world_size=RANKS)
    for cut in cuts:
        order.window(cut.lane, cut.epoch, cut.first)
    planned = time.perf_counter() - began
    began = time.perf_counter()
    step = 3 * order.steps_per_epoch + 654_321  # the fourth epoch, far inside
    for cut in order.slices(step, rank=7_777, world_size=RANKS):
        order.window(cut.lane, cut.epoch, cut.first)
    jumped = time.perf_counter() - began
    lanes = len({cut.lane for cut in cuts})
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    print(
        json.dumps({"value": planned, "jump_s": jumped, "mib": memory, "lanes": order.n_lanes, "lanes_of_rank": lanes})
    )


def main() -> None:
    runs = []
    for _ in range(3):
        done = subprocess.run([sys.executable, __file__, "--child"], capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    found = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    print(f"{ROWS:,} rows, {GROUPS:,} row groups, {RANKS:,} ranks, global batches of {BATCH:,}: {found}")
    figures = {"daskdl": found["value"], "mib": found["mib"]}
    print(json.dumps({"name": "order_scale", "unit": "s", "better": "lower", **figures}))


if __name__ == "__main__":
    plan() if "--child" in sys.argv else main()
