"""The scheduler's half of the Training page: it collects what runs say, and puts the page on the dashboard."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from distributed.diagnostics.plugin import SchedulerPlugin

from daskdl.tracking.record import TOPIC, RunRecord

if TYPE_CHECKING:
    from bokeh.document import Document
    from bokeh.server.tornado import BokehTornado
    from distributed import Scheduler

logger = logging.getLogger(__name__)

NAME = "daskdl"
TITLE = "Training"
URL = "/individual-training"  # JupyterLab makes the label, "Training", from the address
MENU_URL = "/individual-daskdl-training"  # the same page; where it was before
MAX_RUNS = 50


class TrainingPlugin(SchedulerPlugin):
    """Folds the messages of all runs into records; runs on the scheduler.

    Attributes
    ----------
    records : dict of str to RunRecord
        By id, oldest first, at most ``MAX_RUNS``; the oldest that has ended goes first.
    """

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self.records: dict[str, RunRecord] = {}

    async def start(self, scheduler: Scheduler) -> None:
        """Catch up on what was said before, and add the page if there is a dashboard."""
        for _, message in scheduler.get_events(TOPIC):
            self.log_event(TOPIC, message)
        try:
            add_page(scheduler)
        except (ImportError, AttributeError) as error:  # no Bokeh, or one whose inside has changed
            logger.info("No Training page: %s", error)

    def log_event(self, topic: str, msg: Any) -> None:
        """Fold one message in."""
        if topic != TOPIC or not isinstance(msg, dict) or "run" not in msg:
            return
        run_id = msg["run"]
        if run_id not in self.records:
            self._make_room()
            self.records[run_id] = RunRecord(run_id)
        self.records[run_id].apply(msg)

    def _make_room(self) -> None:
        if len(self.records) >= MAX_RUNS:
            ended = (run_id for run_id, record in self.records.items() if record.ended is not None)
            del self.records[next(ended, next(iter(self.records)))]


def _records(scheduler: Scheduler) -> dict[str, RunRecord]:
    return cast(TrainingPlugin, scheduler.plugins[NAME]).records


def add_page(scheduler: Scheduler) -> None:
    """Serve the page and its panels on a scheduler that already runs; once, however often called.

    JupyterLab lists all of them; the menu of the dashboard has the whole page only.

    Dask builds its Bokeh server before any plugin starts, so this extends that server from outside. It
    leans on Bokeh's ``BokehTornado._applications``, which has no public way to add an application.
    """
    from bokeh.server.tornado import BokehTornado
    from distributed.dashboard.scheduler import template_variables

    from daskdl.dashboard.page import documents

    servers = (a for a in scheduler.http_application.applications if isinstance(a, BokehTornado))
    server = next(servers, None)
    if server is None or URL in server.app_paths:
        return
    for part, draw in documents(scheduler, lambda: _records(scheduler)).items():
        url = URL + part
        _serve(server, url, draw, [url, MENU_URL] if url == URL else [url])
    menu = template_variables(scheduler)["plots"]
    menu.append({"url": MENU_URL.strip("/"), "name": TITLE})
    menu.sort(key=lambda plot: plot["name"])


def _serve(server: BokehTornado, listed: str, draw: Callable[[Document], None], urls: list[str]) -> None:
    """Draw at some addresses, one of which JupyterLab lists."""
    from bokeh.application import Application
    from bokeh.application.handlers.function import FunctionHandler
    from bokeh.server.contexts import ApplicationContext
    from bokeh.server.urls import per_app_patterns
    from tornado.ioloop import IOLoop

    context = ApplicationContext(Application(FunctionHandler(draw)), io_loop=IOLoop.current(), url=listed)
    server._applications[listed] = context  # type: ignore[index]
    for url in urls:
        base = server.prefix + url
        options = {"application_context": context, "bokeh_websocket_path": f"{base}/ws"}
        server.add_handlers(r".*", [(base + path, handler, dict(options)) for path, handler, *_ in per_app_patterns])
