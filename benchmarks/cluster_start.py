"""Seconds until workers hold torch: forked warm (connect), spawned with a preload, and spawned plainly.

Each measurement is a fresh process. Run: ``python benchmarks/cluster_start.py [repeats]``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

COMMON = """
import os, sys, time
start = time.time()
def have_torch():
    import torch.nn.parallel.distributed, dask.dataframe, os
    return os.getpid()
def back(client):
    address, pid = next(iter(client.run(os.getpid).items()))
    t = time.time()
    os.kill(pid, 9)
    while address in client.nthreads() or len(client.nthreads()) < 2:
        time.sleep(0.01)
    client.run(have_torch)
    return time.time() - t
if __name__ == "__main__":
    import logging
    {connect}
    connected = time.time() - start
    client.run(have_torch)
    ready = time.time() - start
    print(connected, ready, back(client))
    client.shutdown()
"""
SPAWN = """import dask; from distributed import Client
    dask.config.set({"distributed.worker.preload": PRELOAD})
    client = Client(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0")"""
WAYS = {
    "forked warm": 'import daskdl; client = daskdl.connect("cpu", n_workers=2, dashboard_address="127.0.0.1:0")',
    "spawned, preload": SPAWN.replace("PRELOAD", '["torch.nn.parallel.distributed", "dask.dataframe"]'),
    "spawned": SPAWN.replace("PRELOAD", "[]"),
}


def measure(connect: str) -> tuple[float, ...]:
    """Return seconds to the client, to torch in all workers, and from a kill to torch in the new worker."""
    code = COMMON.replace("{connect}", connect)
    with open("/dev/null", "w") as quiet:
        out = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=quiet, text=True, check=True)
    return tuple(map(float, out.stdout.split()))


def main(repeats: int) -> None:
    """Print a table of medians over alternating runs, and the comparison as JSON."""
    samples: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, connect in WAYS.items():
            samples[way].append(measure(connect))
    medians = {way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in samples.items()}
    print(f"{'workers are':<18}{'connected':>11}{'torch there':>13}{'after a kill':>14}   (seconds)")
    for way, (connected, ready, back) in medians.items():
        print(f"{way:<18}{connected:>11.2f}{ready:>13.2f}{back:>14.2f}")
    ours, reference, plain = (medians[way][1] for way in WAYS)
    result = {"name": "cluster_start", "unit": "s", "better": "lower", "daskdl": ours}
    result |= {"reference": "spawned, preload", "peers": {"spawned, preload": reference, "spawned": plain}}
    print(json.dumps({**result, "ratio": ours / reference}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
