"""A Parquet table of 10,000 columns: seconds to open it, to look at it, and to fit a network and trees.

python benchmarks/wide.py [--columns 10000] [--rows 4000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import daskdl


def write(path: Path, rows: int, columns: int) -> None:
    """Write columns of random float32 and a label, in four row groups."""
    rng = np.random.default_rng(0)
    made = {f"c{i}": rng.normal(size=rows).astype("f4") for i in range(columns)}
    pq.write_table(pa.table({**made, "y": (made["c0"] > 0).astype(int)}), path, row_group_size=-(-rows // 4))


def timed(what: str, call: Callable[[], Any]) -> Any:
    """Call, and say how long it took."""
    began = time.perf_counter()
    found = call()
    print(f"{what}: {time.perf_counter() - began:.1f} s", flush=True)
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--columns", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=4_000)
    asked = parser.parse_args()
    daskdl.connect("cpu", n_workers=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wide.parquet"
        write(path, asked.rows, asked.columns)
        source = timed("open", lambda: daskdl.ParquetSource(str(path)))
        timed("check", lambda: daskdl.check(source, "y"))
        net = timed("fit a network", lambda: daskdl.TorchClassifier(epochs=1, verbose=0).fit(source, "y"))
        timed("predict", lambda: net.predict(source).compute())
        timed("fit trees", lambda: daskdl.XGBClassifier(n_estimators=5, verbose=0).fit(source, "y"))


if __name__ == "__main__":
    main()
