"""What the benchmarks share: the table they read, alternating runs in fresh processes, the printed result."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
DATA = HERE / "data"
PEERS = HERE.parent / ".venv-peers" / "bin" / "python"
N_FEATURES = 20
FEATURES = [f"f{i}" for i in range(N_FEATURES)]


def table(rows: int = 4_000_000, files: int = 16) -> Path:
    """Return a Parquet folder of ``rows`` x 20 float32 columns and an int64 label ``y``, written once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = DATA / f"table-{rows}"
    if folder.exists():
        return folder
    rng = np.random.default_rng(0)
    weights = rng.normal(size=N_FEATURES).astype("f4")
    part = folder.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    for i in range(files):
        n = rows // files
        x = rng.normal(size=(n, N_FEATURES)).astype("f4")
        y = (x @ weights + 0.5 * x[:, 0] * x[:, 1] + rng.normal(size=n).astype("f4") > 0).astype("i8")
        columns = {name: x[:, j] for j, name in enumerate(FEATURES)} | {"y": y}
        pq.write_table(pa.table(columns), part / f"part-{i:03d}.parquet", row_group_size=n // 4)
    part.rename(folder)
    return folder


def measure(
    name: str,
    unit: str,
    contestants: dict[str, list[str]],
    *,
    reference: str,
    better: str = "lower",
    runs: int = 3,
    doc: str = "",
    ours: str = "daskdl",
) -> None:
    """Run every contestant in a fresh process, in turn, ``runs`` times; print a table, then one line of JSON.

    A contestant is a command that prints JSON with a ``value`` (and other figures) as its last line. One whose Python
    is not installed, or that answers without any figure, is printed as not installed. ``ours`` is the contestant whose
    ratio to ``reference`` is told.
    """
    results: dict[str, list[dict[str, float]]] = {k: [] for k in contestants}
    for i in range(runs):
        for who, command in contestants.items():
            if not Path(command[0]).exists():
                continue
            results[who].append(_once(command))
            print(f"# run {i + 1}/{runs} {who}: {results[who][-1]}", file=sys.stderr, flush=True)
    medians = {
        who: {key: statistics.median(r[key] for r in found) for key in found[0]} if found else None
        for who, found in results.items()
    }
    keys = list(dict.fromkeys(key for found in medians.values() if found for key in found))
    print(f"{name}: {doc}" if doc else name)
    print(f"{'':22}" + "".join(f"{k:>16}" for k in keys))
    for who, found in medians.items():
        cells = "".join(f"{found.get(k, float('nan')):>16,.3f}" for k in keys) if found else "   not installed"
        print(f"{who:22}" + cells)
    mine, theirs = medians[ours], medians[reference]
    assert mine is not None and theirs is not None
    peers = {who: found["value"] if found else "not installed" for who, found in medians.items() if who != ours}
    print(
        json.dumps(
            {
                "name": name,
                "unit": unit,
                "better": better,
                "daskdl": mine["value"],
                "reference": reference,
                "peers": peers,
                "ratio": round(mine["value"] / theirs["value"], 3),
            }
        )
    )


def _once(command: list[str]) -> dict[str, float]:
    started = time.time()
    environment = {**os.environ, "BENCHMARK_STARTED": repr(started)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]  # a peer's servers may talk behind it
    found: dict[str, float] = json.loads(lines[-1])
    return found


def since_start() -> float:
    """Seconds since the harness started this process."""
    return time.time() - float(os.environ["BENCHMARK_STARTED"])


def answer(**figures: float) -> None:
    """Print a contestant's figures as its last line."""
    print(json.dumps(figures), flush=True)


def child_or_measure(script: str, children: dict[str, Callable[[], None]]) -> argparse.Namespace | None:
    """Run as one contestant (``--child NAME``), or return the options of a whole measurement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", choices=children)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4_000_000)
    options, _ = parser.parse_known_args()
    if options.child:
        children[options.child]()
        return None
    return options
