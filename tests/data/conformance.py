"""What every source must do, whatever it reads."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd

from daskdl.data.sources.base import Source, to_frame


def rows_of(source: Source, group: int, first: int, stop: int) -> list[tuple[Any, ...]]:
    """Rows as tuples that can be compared; a missing value is None whatever its kind."""
    return [row for chunk in source.read(group, first, stop) for row in frame_rows(to_frame(chunk))]


def frame_rows(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    return [tuple(map(_plain, row)) for row in frame.itertuples(index=False, name=None)]


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return tuple(map(_plain, value.tolist()))
    if isinstance(value, list):
        return tuple(map(_plain, value))
    return None if pd.api.types.is_scalar(value) and pd.isna(value) else value


def check_source(source: Source, *, processes: bool = True) -> list[tuple[Any, ...]]:
    """Assert the contract of ``Source`` and return all rows in order.

    ``processes=False`` leaves out the look from another process, for sources that cannot be told there.
    """
    assert source.counts.dtype == np.int64 and source.counts.ndim == 1 and (source.counts >= 0).all()
    assert isinstance(source.fingerprint, str) and len(source.fingerprint) >= 16
    assert source.row_bytes > 0 or source.n_rows == 0
    groups = [rows_of(source, g, 0, int(n)) for g, n in enumerate(source.counts)]
    assert [len(rows) for rows in groups] == source.counts.tolist()
    rows = [row for group in groups for row in group]
    assert len(rows) == source.n_rows
    _check_slices(source, groups)
    _check_names(source, rows)
    again = cloudpickle.loads(cloudpickle.dumps(source))
    assert again.fingerprint == source.fingerprint and again.counts.tolist() == source.counts.tolist()
    assert [rows_of(again, g, 0, int(n)) for g, n in enumerate(again.counts)] == groups
    if processes:
        assert _read_elsewhere(source) == rows
    return rows


def _check_slices(source: Source, groups: list[list[tuple[Any, ...]]]) -> None:
    rng = np.random.default_rng(0)
    for g, group in enumerate(groups[:20]):
        n = len(group)
        ends = {(0, n), (0, 0), (n, n), (n // 2, n // 2), (n // 3, n), (0, n // 2), (max(0, n - 1), n)}
        for first, stop in sorted(ends | {tuple(sorted(rng.integers(0, n + 1, 2).tolist())) for _ in range(3)}):
            assert rows_of(source, g, first, stop) == group[first:stop], (g, first, stop)
        assert all(len(chunk) for chunk in source.read(g, 0, n)), "an empty chunk"
        assert source.where(g).strip()


def _check_names(source: Source, rows: list[tuple[Any, ...]]) -> None:
    if not rows:
        assert len(source.head()) == 0
        return
    assert frame_rows(source.head(1)) == rows[:1]
    assert 1 <= len(source.head(3)) <= 3 and frame_rows(source.head(3)) == rows[: len(source.head(3))]
    group = int(np.flatnonzero(source.counts)[0])
    for chunk in source.read(group, 0, 1):
        assert all(len(chunk[name]) == len(chunk) for name in source.names)
    assert source.fingerprint[:12] in repr(source) and f"{source.n_rows:,}" in repr(source)


ELSEWHERE = """
import sys, cloudpickle
sys.path[:0] = {path!r}
from data.conformance import rows_of
source = cloudpickle.load(open(sys.argv[1], "rb"))
rows = [row for g, n in enumerate(source.counts) for row in rows_of(source, g, 0, int(n))]
cloudpickle.dump(rows, open(sys.argv[2], "wb"))
"""


def _read_elsewhere(source: Source) -> list[tuple[Any, ...]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "source").write_bytes(cloudpickle.dumps(source))
        run_elsewhere(ELSEWHERE, str(path / "source"), str(path / "rows"))
        return cloudpickle.loads((path / "rows").read_bytes())


def run_elsewhere(code: str, *args: str) -> str:
    """Run Python code in a new process that imports from the same places; return what it prints."""
    code = code.replace("{path!r}", repr(sys.path))
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def fingerprint_elsewhere(make: Any) -> str:
    """The fingerprint of ``make()`` in a new process; ``make`` is pickled by value."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "make"
        path.write_bytes(cloudpickle.dumps(make))
        code = "import sys\nsys.path[:0] = {path!r}\nimport cloudpickle\n"
        return run_elsewhere(code + "print(cloudpickle.load(open(sys.argv[1], 'rb'))().fingerprint)", str(path))
