"""The scheduler's half of the Training page: it collects what runs say, and puts the page on the dashboard."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

from daskdl.tracking.record import TOPIC, RunRecord

if TYPE_CHECKING:
    from bokeh.server.tornado import BokehTornado
    from distributed import Scheduler

logger = logging.getLogger(__name__)

NAME = "daskdl"
TITLE = "Training"
URL = "/individual-daskdl-training"
LISTED_URL = "/individual-training"  # the same page; JupyterLab makes its label, "Training", from the address
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


def add_page(scheduler: Scheduler) -> None:
    """Serve the page on a scheduler that already runs and list it in its menu; once, however often called.

    Dask builds its Bokeh server before any plugin starts, so this extends that server from outside. It
    leans on Bokeh's ``BokehTornado._applications``, which has no public way to add an application.
    """
    from bokeh.application import Application
    from bokeh.application.handlers.function import FunctionHandler
    from bokeh.server.contexts import ApplicationContext
    from bokeh.server.tornado import BokehTornado
    from distributed.dashboard.scheduler import template_variables
    from tornado.ioloop import IOLoop

    from daskdl.dashboard.page import training_doc

    servers = (a for a in scheduler.http_application.applications if isinstance(a, BokehTornado))
    server = next(servers, None)
    if server is None or LISTED_URL in server.app_paths:
        return
    application = Application(FunctionHandler(partial(training_doc, scheduler)))
    context = ApplicationContext(application, io_loop=IOLoop.current(), url=LISTED_URL)
    server._applications[LISTED_URL] = context  # type: ignore[index]
    for url in (URL, LISTED_URL):
        _serve(server, url, context)
    menu = template_variables(scheduler)["plots"]
    menu.append({"url": URL.strip("/"), "name": TITLE})
    menu.sort(key=lambda plot: plot["name"])


def _serve(server: BokehTornado, url: str, context: Any) -> None:
    from bokeh.server.urls import per_app_patterns

    base = server.prefix + url
    options = {"application_context": context, "bokeh_websocket_path": f"{base}/ws"}
    server.add_handlers(r".*", [(base + path, handler, dict(options)) for path, handler, *_ in per_app_patterns])
