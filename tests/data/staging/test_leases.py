from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import fsspec
import psutil
from data.conformance import run_elsewhere

from daskdl.data.staging.leases import Lease, leased


def test_whose_lease_counts(tmp_path: Path) -> None:
    fs, me = fsspec.filesystem("file"), psutil.Process().create_time()
    mine = Lease(fs, str(tmp_path), "mine")
    said = json.loads(Path(mine.path).read_text())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    now, old = time.time(), time.time() - 8 * 24 * 3600
    for name, facts in {
        "old but alive": {"time": old},
        "gone": {"pid": ended.pid},
        "pid taken by another": {"born": me - 100},
        "other host": {"host": "elsewhere"},
        "other host long ago": {"host": "elsewhere", "time": old},
    }.items():
        (tmp_path / f"{name}-0.json").write_text(json.dumps(said | {"time": now} | facts))
    assert leased(fs, str(tmp_path)) == {"mine", "old but alive", "other host"}
    assert len(list(tmp_path.iterdir())) == 3
    mine.release()
    mine.release()
    assert not mine.live and leased(fs, str(tmp_path)) == {"old but alive", "other host"}


def test_a_lease_ends_with_its_process(tmp_path: Path) -> None:
    code = """
        import fsspec
        from daskdl.data.staging.leases import Lease
        lease = Lease(fsspec.filesystem("file"), sys.argv[1], "x")
        print(lease.path)
    """
    path = run_elsewhere("import sys\nsys.path[:0] = {path!r}\n" + textwrap.dedent(code), str(tmp_path))
    assert path and not os.path.exists(path)
