"""The Training page in a real browser: beside the quickstart in JupyterLab, and by itself."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster
from messages import end, event, metrics, ranks, start
from test_lab import running_lab

import daskdl
from daskdl.dashboard import install
from daskdl.tracking.record import TOPIC

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

# first and last step of each loss curve, by the name of its run
SPANS = """() => {
    const sources = Bokeh.documents.flatMap((d) => [...d._all_models.values()])
        .filter((m) => m.type === "ColumnDataSource" && m.data.metric?.includes("train_loss"));
    return Object.fromEntries(sources.flatMap(({data}) => [...data.run].map((run, i) => [run, [...data.xs[i]]]))
        .map(([run, xs]) => [run, [xs[0], xs.at(-1)]]));
}"""
# which metrics each chart of curves shows
METRICS = """() => Bokeh.documents.flatMap((d) => [...d._all_models.values()])
    .filter((m) => m.type === "ColumnDataSource" && m.data.metric).map((m) => [...m.data.metric])"""
# WCAG contrast of text and background, of every kind of text on the page; of text on a canvas by its variable
CONTRASTS = """() => {
    const context = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    const light = (color) => {
        context.fillStyle = color;
        context.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3)
            .map((v) => v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const background = light(getComputedStyle(document.body).backgroundColor);
    const contrast = (color) => {
        const [a, b] = [light(color), background].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    };
    const found = {};
    const visit = (node, host) => {
        for (const element of node.querySelectorAll("*")) {
            if (element.shadowRoot) visit(element.shadowRoot);
            const words = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
            if (words && element.checkVisibility() && !["STYLE", "SCRIPT"].includes(element.tagName))
                found[`${element.tagName} ${element.className} ${element.innerText}`.slice(0, 60)] =
                    contrast(getComputedStyle(element).color);
        }
    };
    visit(document.body);
    for (const name of ["--bk-text-color", "--bk-major-label-text-color"])
        found[name] = contrast(getComputedStyle(document.documentElement).getPropertyValue(name));
    return found;
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
def dashboard() -> Iterator[tuple[Client, str]]:
    """A scheduler without workers that has the page, and the address of its dashboard."""
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        install(client)
        yield client, f"http://127.0.0.1:{cluster.scheduler.http_server.port}"


def tell(client: Client, *messages: dict[str, Any]) -> None:
    for message in messages:
        client.log_event(TOPIC, message)


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


def test_cells_that_are_run_before_there_is_a_kernel_wait_for_it(page: Any, tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell(code) for code in ("a = 1\na", "b = a + 1\nb", "c = b + 1\nc")]
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), tmp_path / NOTEBOOK)
    with running_lab(tmp_path, "--port", "0", "--dashboard-port", "0") as (_, url, _):
        page.goto(url)
        page.locator(".jp-Notebook .jp-Cell").first.click(force=True)
        page.keyboard.press("Escape")
        for place in (1, 2, 3):
            # until JupyterLab takes keys at all; after the last cell it makes a new one
            assert eventually(page, lambda n=place: active_cell(page) >= n or page.keyboard.press("Shift+Enter"), 30)
        assert eventually(page, lambda: ran(page) == 3, 60)
        assert page.locator(".jp-Notebook .jp-OutputArea-output").all_inner_texts() == ["1", "2", "3"]


def active_cell(page: Any) -> int:
    """The place of the cell that is selected."""
    found = page.locator(".jp-Notebook .jp-Cell")
    return next((i for i, cell in enumerate(found.all()) if "jp-mod-active" in (cell.get_attribute("class") or "")), 0)


def test_the_stop_button_stops_a_training(page: Any) -> None:
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(3_000, 4)), columns=list("abcd"))
    client = daskdl.connect("cpu", n_workers=2, dashboard_address="127.0.0.1:0")
    with client.as_current():
        classifier = daskdl.TorchClassifier(epochs=100_000, verbose=0)
        fit = threading.Thread(target=classifier.fit, args=(X, (X.a > 0).astype(int)))
        fit.start()
        open_page(page, client.dashboard_link.replace("/status", "/individual-training"))
        page.get_by_role("button", name="Stop", exact=True).click(timeout=60_000)
        assert eventually(page, lambda: not fit.is_alive(), 30)
        assert classifier.run_.state == "stopped"
        assert "the stop button of the Training page" in classifier.run_.error
        page.locator("td b.stopped").wait_for(timeout=10_000)
    client.shutdown()


def test_who_opens_the_page_late_sees_the_whole_history(page: Any, dashboard: tuple[Client, str]) -> None:
    client, url = dashboard
    n = 20_000
    for run, last in (("first", n // 2), ("second", n)):
        points = [[s, {"train_loss": 1 / (s + 1), "rows_per_s": 1e6}] for s in range(last)]
        parts = [metrics(run, *points[i : i + 1_000]) for i in range(0, last, 1_000)]
        tell(client, start(run, run, steps=n), *parts, event(run, "worker_lost", 700, "tcp://1 left"), end(run))
    open_page(page, f"{url}/individual-training")
    spans = page.evaluate(SPANS)
    assert spans == {"first": [0, n // 2 - 1], "second": [0, n - 1]}
    assert page.locator("td b.finished").count() == 2
    tell(client, start("third", "third"), metrics("third", [1, {"train_loss": 0.5}], [2, {"train_loss": 0.4}]))
    assert eventually(page, lambda: page.evaluate(SPANS).get("third") == [1, 2], 10), "and what comes after"
    tell(client, metrics("third", [3, {"train_loss": 0.3}]))
    assert eventually(page, lambda: page.evaluate(SPANS).get("third") == [1, 3], 10)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_everything_can_be_read_in_both_themes(page: Any, dashboard: tuple[Client, str], theme: str) -> None:
    client, url = dashboard
    step = ranks(
        {"data": 0.05, "forward": 0.01, "backward": 0.02}, {"forward": 0.01, "backward": 0.02, "all-reduce": 0.05}
    )
    for run, last in (("a", end("a")), ("b", end("b", "failed", "boom")), ("c", end("c", "stopped")), ("d", None)):
        points = metrics(
            run, [1, {"train_loss": 1.0, "val_auc": 0.6, "grad_norm": 1.0}], [2, {"val_auc": 0.7}], ranks=step
        )
        tell(client, start(run, run), points, event(run, "worker_lost", 1), *([last] if last else []))
    page.emulate_media(color_scheme=theme)
    open_page(page, f"{url}/individual-training")
    page.get_by_text("is the straggler").wait_for()
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 25
    assert {text: round(value, 1) for text, value in contrasts.items() if value < 4.5} == {}
    page.emulate_media(color_scheme="light" if theme == "dark" else "dark")
    assert eventually(page, lambda: page.evaluate("document.documentElement.dataset.theme") != theme, 5)


@pytest.mark.parametrize("path", ["individual-training", "individual-training-score"])
def test_the_metric_is_chosen(page: Any, dashboard: tuple[Client, str], path: str) -> None:
    client, url = dashboard
    tell(client, start("r"), metrics("r", [1, {"train_loss": 1.0, "val_auc": 0.6, "reward": 7.0}]))
    open_page(page, f"{url}/{path}")
    page.locator("select:visible").first.select_option("reward")
    assert eventually(page, lambda: ["reward"] in page.evaluate(METRICS), 10)
    page.get_by_text("best: highest").wait_for()
    tell(client, metrics("r", [2, {"reward": 8.0}]))
    assert eventually(page, lambda: page.locator("select:visible").first.input_value() == "reward", 10)


def test_a_pane_follows_the_theme_of_jupyterlab(page: Any, dashboard: tuple[Client, str]) -> None:
    url = dashboard[1]
    page.emulate_media(color_scheme="light")
    page.goto(f"{url}/individual-training-runs")
    page.evaluate("""() => {
        document.body.dataset.jpThemeLight = "false";  // as JupyterLab says that its theme is dark
        document.body.innerHTML = '<iframe src="individual-training-loss"></iframe>';
    }""")
    frame = pane(page, "individual-training-loss")
    assert frame.evaluate("document.documentElement.dataset.theme") == "dark"
    page.evaluate("() => { document.body.dataset.jpThemeLight = 'true' }")
    assert eventually(page, lambda: frame.evaluate("document.documentElement.dataset.theme") == "light", 5)


def open_page(page: Any, url: str) -> None:
    """Open a page of the dashboard and wait until Bokeh has drawn it."""
    page.goto(url)
    page.wait_for_function("() => window.Bokeh && Bokeh.documents.length > 0", timeout=60_000)
    page.wait_for_timeout(500)


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
