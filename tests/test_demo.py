"""``daskdl demo`` as a user runs it: real flights, in a process of its own, from an empty folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from processes import session_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
LIMIT = 4 * 2**30


def test_the_demo_trains_both_models_and_writes_its_report(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "daskdl.cli", "demo", "--n-workers", "2"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        highest = 0
        while True:
            try:
                output, _ = process.communicate(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                highest = max(highest, sum(map(memory, session_of(process.pid))))
    assert process.returncode == 0, output
    assert "lose already computed" not in output, "data was held when the cluster ended"
    assert "9,430 never arrived as planned" in output
    scores = {line.split("│")[1].strip(): float(line.split("│")[5]) for line in output.splitlines() if "│" in line}
    assert scores["carrier's mean rate"] == pytest.approx(0.569, abs=0.002)
    assert scores["XGBoost"] > 0.67
    assert scores["PyTorch"] > 0.65
    assert 2**28 < highest < LIMIT
    assert not session_of(process.pid)
    (report,) = tmp_path.glob("daskdl-runs/*/report.ipynb")
    cells = [cell for cell in nbformat.read(report, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert report.with_suffix(".html").stat().st_size > 100_000


def memory(process: psutil.Process) -> int:
    """Proportional memory of a process: pages that forked workers share count once."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0
