"""The quickstart in a real browser: cell by cell, while a curve moves on the Training pane beside it."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from test_lab import running_lab

ROOT = Path(__file__).parent.parent
NOTEBOOK = "notebooks/00_quickstart.ipynb"
CELL_SECONDS = 180
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
ERROR = '[data-mime-type="application/vnd.jupyter.error"]'
# how many numbers the page's curves hold; a column is a curve, or a list of curves
POINTS = """() => {
    const size = (v) => typeof v === "object" && v !== null && "length" in v
        ? Array.from(v).reduce((n, each) => n + size(each), 0) : 1;
    return Bokeh.documents.flatMap((d) => [...d._all_models.values()])
        .filter((m) => m.type === "ColumnDataSource")
        .reduce((n, m) => n + Object.values(m.data).reduce((k, column) => k + size(column), 0), 0);
}"""

pytestmark = [pytest.mark.browser, pytest.mark.cluster, pytest.mark.timeout(600)]


def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        message = "no Chromium here: apt-get install chromium, or `make browser-deps`"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    return found


@pytest.fixture
def page() -> Iterator[Any]:
    executable = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser.new_page(viewport={"width": 1800, "height": 1050})
        browser.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the notebooks, so that what they write and how they are saved stays out of the working tree."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("daskdl-*", ".*"))
    if (ROOT / "daskdl-data").exists():
        (tmp_path / "notebooks" / "daskdl-data").symlink_to(ROOT / "daskdl-data")
    return tmp_path


def test_the_quickstart_runs_and_its_curve_moves(page: Any, folder: Path) -> None:
    cells = nbformat.read(folder / NOTEBOOK, as_version=4).cells
    with running_lab(folder, "--port", "0", "--dashboard-port", "0") as (_, url, _):
        page.goto(url)
        page.wait_for_selector("#jupyterlab-splash", state="detached", timeout=60_000)
        page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=60_000)
        training = pane(page, "individual-training")
        page.locator(".jp-Notebook .jp-Cell").first.click()
        page.keyboard.press("Escape")
        sizes: set[int] = set()
        executed = 0
        for cell in cells:
            page.keyboard.press("Shift+Enter")
            executed += cell.cell_type == "code"
            assert eventually(page, lambda n=executed: note(training, sizes) and ran(page) == n, CELL_SECONDS)
            assert page.locator(f".jp-Notebook {ERROR}").all_inner_texts() == []
        assert len(sizes) >= 4, f"the curve on the Training pane did not move: its data had the sizes {sorted(sizes)}"


def eventually(page: Any, condition: Callable[[], object], seconds: float) -> bool:
    """Ask again and again, letting the browser speak in between."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        page.wait_for_timeout(100)
    return True


def pane(page: Any, route: str) -> Any:
    """The frame of a dashboard page inside JupyterLab, once Bokeh has drawn it."""
    assert eventually(page, lambda: any(frame.url.endswith(route) for frame in page.frames), 60)
    frame = next(frame for frame in page.frames if frame.url.endswith(route))
    frame.wait_for_function("() => window.Bokeh && Bokeh.documents.length > 0", timeout=60_000)
    return frame


def note(training: Any, sizes: set[int]) -> bool:
    """Add to `sizes` how much the page shows at this moment."""
    sizes.add(training.evaluate(POINTS))
    return True


def ran(page: Any) -> int:
    """How many code cells are done: the highest number (JupyterLab draws only the cells in view)."""
    prompts = page.locator(".jp-Notebook .jp-CodeCell .jp-InputArea-prompt").all_inner_texts()
    return max((int(number) for prompt in prompts for number in re.findall(r"\d+", prompt)), default=0)
