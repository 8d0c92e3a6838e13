"""What the Training page costs the scheduler: 8 ranks at 100 steps a second, one page open; and a late opener.

The share is the processor time of the scheduler's event loop over wall time, less that of a scheduler whose page nobody
looks at and to which nobody speaks. Messages come from a process of their own, as from rank 0: five a second, with all
points since the last one and what the ranks gathered. The page is open in a headless Chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

RANKS, STEPS_PER_SECOND, MESSAGES_PER_SECOND = 8, 100, 5
OTHER_RUNS = 7  # that have ended, and are drawn as well
MILLION = 1_000_000


def messages(run: str) -> Iterator[dict[str, Any]]:
    """Return what rank 0 says, without end."""
    yield {"run": run, "kind": "start", "time": time.time(), "name": run, "algorithm": "train", "total_steps": MILLION}
    each = STEPS_PER_SECOND // MESSAGES_PER_SECOND
    seconds = [[0.001, 0, 0.003, 0.004, 0, 0.001, 0.0005, 0, 0, 0.0005] for _ in range(RANKS)]
    ranks = {"steps": each, "seconds": seconds, "host": [2**30] * RANKS, "gpu": [2**32] * RANKS}
    step = 0
    while True:
        points = [[s, {"train_loss": 1 / (s + 1), "rows_per_s": 1e6 + s % 7}] for s in range(step, step + each)]
        points[-1][1] |= {"grad_norm": 1.0 + step % 3, "learning_rate": 1e-3, "val_loss": 0.5, "val_auc": 0.8}
        step += each
        yield {"run": run, "kind": "metrics", "time": time.time(), "points": points, "epoch": 0.1, "ranks": ranks}


def feed(address: str) -> None:
    """Speak as rank 0 does, until the process is ended; first tell of runs that have ended."""
    from distributed import Client

    with Client(address) as client:
        for n in range(OTHER_RUNS):
            for _, message in zip(range(200), messages(f"run {n}"), strict=False):
                client.log_event("daskdl", message)
            client.log_event("daskdl", {"run": f"run {n}", "kind": "end", "time": time.time(), "state": "finished"})
        print("{}", flush=True)
        begin = time.monotonic()
        for n, message in enumerate(messages("running")):
            time.sleep(max(0.0, begin + n / MESSAGES_PER_SECOND - time.monotonic()))
            client.log_event("daskdl", message)


def watch(url: str) -> None:
    """Keep the page open in a browser until the process is ended."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
        page.goto(url)
        page.wait_for_function("() => window.Bokeh && Bokeh.documents.length > 0")
        print("{}", flush=True)
        page.wait_for_timeout(3_600_000)


def cost(seconds: float) -> dict[str, float]:
    """Return shares of the event loop's time, in percent."""
    from distributed import Client, LocalCluster

    from daskdl.dashboard import install

    options = {"processes": False, "protocol": "tcp://", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=0, **options) as cluster:
        with Client(cluster) as client:
            install(client)
        url = f"http://127.0.0.1:{cluster.scheduler.http_server.port}/individual-training"
        address, loop = cluster.scheduler_address, cluster.loop
        idle = _busy(loop, seconds)
        spent: Counter[str] = Counter()
        _wrap(cluster.scheduler, spent)
        with _child("--child", "feed", "--to", address):
            fed = _busy(loop, seconds)
            with _child("--child", "watch", "--to", url):
                time.sleep(2)
                spent.clear()
                open_ = _busy(loop, seconds)
                shares = {name: 100 * value / seconds for name, value in spent.items()}
    return {
        "value": 100 * (open_ - idle),
        "messages": 100 * (fed - idle),
        "fold": shares.get("fold", 0.0),
        "draw": shares.get("draw", 0.0),
        "idle": 100 * idle,
    }


def _busy(loop: Any, seconds: float) -> float:
    """Return the share of the wall time for which an event loop's thread computes."""
    clock = _call(loop, lambda: time.pthread_getcpuclockid(threading.get_ident()))
    began, wall = time.clock_gettime(clock), time.monotonic()
    time.sleep(seconds)
    return float((time.clock_gettime(clock) - began) / (time.monotonic() - wall))


def _call(loop: Any, function: Callable[[], Any]) -> Any:
    found: list[Any] = []
    done = threading.Event()
    loop.add_callback(lambda: (found.append(function()), done.set()))
    done.wait(10)
    return found[0]


def _wrap(scheduler: Any, spent: Counter[str]) -> None:
    """Note the time in which messages are folded in, and in which the page is brought up to date."""
    from daskdl.dashboard.page import Watcher

    plugin = scheduler.plugins["daskdl"]

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.thread_time() - began

        return call

    plugin.log_event = timed("fold", plugin.log_event)
    Watcher.update = timed("draw", Watcher.update)  # type: ignore[method-assign]


@contextlib.contextmanager
def _child(*options: str) -> Iterator[None]:
    """Run a process from its first line on to the end of the block."""
    process = subprocess.Popen([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit(f"{options} ended early")
        yield
    finally:
        process.terminate()
        process.wait(10)


def late() -> dict[str, float]:
    """Return what a page takes that is opened after a million steps, and each of its updates, in milliseconds.

    To build it from empty charts, to draw all that was kept, to write it down for the browser.
    """
    from bokeh.document import Document

    from daskdl.dashboard.page import Training
    from daskdl.dashboard.plugin import TrainingPlugin

    plugin = TrainingPlugin()
    for n in range(OTHER_RUNS + 1):
        steps = MILLION if n == OTHER_RUNS else 40_000
        for _, message in zip(
            range(steps * MESSAGES_PER_SECOND // STEPS_PER_SECOND + 1), messages(str(n)), strict=False
        ):
            plugin.log_event("daskdl", message)
    found: dict[str, list[float]] = {"build_ms": [], "draw_ms": [], "write_ms": [], "update_ms": []}
    source = messages(str(OTHER_RUNS))
    next(source)
    for _ in range(9):
        clock = [time.perf_counter()]
        page = Training(lambda: plugin.records)
        clock.append(time.perf_counter())
        page.update()
        clock.append(time.perf_counter())
        document = Document()
        document.add_root(page.root)
        document.to_json()
        clock.append(time.perf_counter())
        plugin.log_event("daskdl", next(source))
        page.update()
        clock.append(time.perf_counter())
        for name, (begin, end) in zip(found, itertools.pairwise(clock), strict=True):
            found[name].append(1_000 * (end - begin))
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", choices=["feed", "watch"])
    parser.add_argument("--to", default="")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    if options.child == "feed":
        return feed(options.to)
    if options.child == "watch":
        return watch(options.to)
    found = {**cost(options.seconds), **late()}
    print(f"page_cost: {RANKS} ranks, {STEPS_PER_SECOND} steps/s, {OTHER_RUNS + 1} runs drawn, {options.seconds:.0f} s")
    for name, value in found.items():
        print(f"{name:22}{value:>12.2f}")
    figures = {"daskdl": round(found["value"], 2), "aim": 5.0, "late_draw_ms": round(found["draw_ms"], 1)}
    print(json.dumps({"name": "page_cost", "unit": "% of the event loop", "better": "lower", **figures}))


if __name__ == "__main__":
    main()
