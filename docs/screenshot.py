"""Take the pictures of the README and the guide, of real trainings, in a headless Chromium.

``python docs/screenshot.py [lab] [training]``: `lab.png` is `daskdl lab` with the quickstart run to its end;
`training-light.png` and `training-dark.png` are the Training page with three runs on four workers, of which one is
killed in the second and another has something else to do in the third.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
CELLS = json.loads((ROOT / "notebooks" / "00_quickstart.ipynb").read_text())["cells"]
CELL_MILLISECONDS = 180_000
KERNEL = ".jp-Toolbar-kernelName"
ERROR = '[data-mime-type="application/vnd.jupyter.error"]'
# whether this many code cells are done: the highest number (JupyterLab draws only the cells in view)
RAN = """(n) => n === 0 || Math.max(...[...document.querySelectorAll(".jp-Notebook .jp-CodeCell .jp-InputArea-prompt")]
    .map((prompt) => Number(prompt.innerText.match(/[0-9]+/)?.[0] ?? 0))) >= n"""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def main() -> None:
    """Take the pictures that are asked for, or all."""
    pictures: dict[str, Callable[[Any], None]] = {"lab": lab, "training": training}
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for name in sys.argv[1:] or pictures:
            pictures[name](browser)
        browser.close()


def lab(browser: Any) -> None:
    """Start a lab in an empty folder, run all cells, save the picture, end the lab."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "notebooks", Path(folder) / "notebooks")
        command = [sys.executable, "-m", "daskdl.cli", "lab", "--no-browser", "--port", "0", "--dashboard-port", "0"]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            url = next(found[0] for line in process.stdout if (found := re.findall(r"http://\S+/lab/\S+", line)))
            page = browser.new_page(viewport={"width": 1800, "height": 1050})
            try:
                page.goto(url)
                run_cells(page)
                picture = page.screenshot()
            finally:
                process.send_signal(signal.SIGINT)
            (IMAGES / "lab.png").write_bytes(picture)
            page.close()


def run_cells(page: Any) -> None:
    """Run the cells of the notebook one after the other, each when the one before is done; exits if one has failed."""
    page.wait_for_selector("#jupyterlab-splash", state="detached", timeout=60_000)
    page.wait_for_selector(f'{KERNEL}:has-text("Python 3")', timeout=60_000)  # an "idle" notebook may have none yet
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=60_000)
    page.locator(".jp-Notebook .jp-Cell").first.click()
    page.keyboard.press("Escape")
    done = 0
    for cell in CELLS:  # after the last one, Shift+Enter would make an empty cell
        page.keyboard.press("Control+Enter" if cell is CELLS[-1] else "Shift+Enter")
        done += cell["cell_type"] == "code"
        page.wait_for_function(RAN, arg=done, timeout=CELL_MILLISECONDS)
        if errors := page.locator(f".jp-Notebook {ERROR}").all_inner_texts():
            sys.exit(f"No picture was taken: code cell {done} of the notebook failed.\n{errors[0]}")
    page.wait_for_timeout(3_000)  # the panes of the dashboard catch up


def training(browser: Any) -> None:
    """Train three networks on flights; take the pictures during the last."""
    import dask

    import daskdl

    dask.config.set({"daskdl.kill-button": True})
    with tempfile.TemporaryDirectory() as folder:
        client = daskdl.connect("cpu", n_workers=4, dashboard_address="127.0.0.1:0", runs=folder)
        train = client.persist(daskdl.datasets.flights_split(daskdl.datasets.flights()))[0]
        address = client.dashboard_link.replace("/status", "/individual-training")
        pages = {}
        for theme in ("light", "dark"):
            pages[theme] = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=theme)
            pages[theme].goto(address)
        kill = pages["light"].get_by_role("button", name="Kill a worker").click
        _fit(train, "small batches", 1, epochs=1, batch_size=512)
        _fit(train, "network", 250, kill, epochs=2)
        last = _fit(train, "network, again", 150, lambda: client.run(_be_busy, workers=_one(client)), epochs=20)
        pages["light"].wait_for_timeout(8_000)
        for theme, page in pages.items():
            page.screenshot(path=IMAGES / f"training-{theme}.png")
            page.close()
        last.run_.stop()
        last.run_.wait()
        client.shutdown()


def _fit(train: Any, name: str, step: int, then: Callable[[], Any] | None = None, **options: Any) -> Any:
    """Train in the background; at a step do something; wait for the end unless it is far."""
    import daskdl

    model = daskdl.TorchClassifier(name=name, verbose=0, **options)
    parts = train.random_split([0.9, 0.1], random_state=0)
    (X, y), validation = ((part[daskdl.datasets.FLIGHT_FEATURES], part[daskdl.datasets.LABEL]) for part in parts)
    options = {"validation_data": validation}
    thread = threading.Thread(target=model.fit, args=(X, y), kwargs=options, daemon=True)
    thread.start()
    while thread.is_alive() and (not hasattr(model, "run_") or model.run_.record.step < step):
        time.sleep(0.05)
    if then is not None:
        then()
    if model.epochs < 10:
        thread.join()
    return model


def _one(client: Any) -> list[str]:
    return sorted(client.scheduler_info()["workers"])[2:3]


def _be_busy() -> None:
    """Compute something else beside the training, for ever."""

    def compute() -> None:
        while True:
            sum(range(10_000))

    threading.Thread(target=compute, daemon=True).start()


if __name__ == "__main__":
    main()
