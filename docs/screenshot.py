"""Take the picture of the README: `daskdl lab` with the quickstart run to its end, in a headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "lab.png"
CELLS = len(json.loads((ROOT / "notebooks" / "00_quickstart.ipynb").read_text())["cells"])
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def main() -> None:
    """Start a lab in an empty folder, run all cells, save the picture, end the lab."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "notebooks", Path(folder) / "notebooks")
        command = [sys.executable, "-m", "daskdl.cli", "lab", "--no-browser", "--port", "0", "--dashboard-port", "0"]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as lab:
            assert lab.stdout is not None
            url = next(found[0] for line in lab.stdout if (found := re.findall(r"http://\S+/lab/\S+", line)))
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
                page = browser.new_page(viewport={"width": 1800, "height": 1050})
                page.goto(url)
                page.wait_for_selector("#jupyterlab-splash", state="detached", timeout=60_000)
                page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=60_000)
                page.locator(".jp-Notebook .jp-Cell").first.click()
                page.keyboard.press("Escape")
                for _ in range(CELLS):
                    page.keyboard.press("Shift+Enter")
                    page.wait_for_timeout(500)
                page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=180_000)
                page.wait_for_timeout(3_000)
                page.screenshot(path=PICTURE)
                browser.close()
            lab.send_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
