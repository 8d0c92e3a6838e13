"""The Training page, drawn with Bokeh from the records of the plugin. Runs on the scheduler."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import dask
from bokeh.core.properties import without_property_validation
from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, CustomJSTickFormatter, DataRange1d, HoverTool
from bokeh.models.ui import UIElement
from bokeh.models.widgets import Button, Div, Select
from bokeh.plotting import figure
from distributed.dashboard.components import DashboardComponent, add_periodic_callback
from distributed.dashboard.components.scheduler import BOKEH_THEME
from distributed.dashboard.utils import update
from distributed.protocol.pickle import dumps
from distributed.utils import log_errors

from daskdl.dashboard import style, view
from daskdl.tracking.colors import AXIS_JS
from daskdl.tracking.record import TOPIC, RunRecord

if TYPE_CHECKING:
    from bokeh.document import Document
    from distributed import Scheduler

MILLISECONDS = 400  # between two looks at the records
KILL_BUTTON = "daskdl.kill-button"  # Dask setting of the scheduler: whether the page has a button that kills a worker


class Training(DashboardComponent):
    """Loss, score and speed of the recent runs, and a table of all of them.

    Parameters
    ----------
    records : callable
        Returns the records by id, oldest first; asked at every update.
    clock : callable
        Returns the time in seconds since the epoch.
    say : callable, optional
        Sends a message to those who train; without it there is no button to stop a run.
    kill : callable, optional
        Kills a worker, to see what happens; without it there is no button for it.

    Attributes
    ----------
    source : ColumnDataSource
        The loss curves: one row a curve with ``xs``, ``ys``, ``color``, ``dash``, ``run``, ``metric``.
    """

    def __init__(
        self,
        records: Callable[[], Mapping[str, RunRecord]],
        clock: Callable[[], float] = time.time,
        say: Callable[[dict[str, Any]], None] | None = None,
        kill: Callable[[], None] | None = None,
    ) -> None:
        self.records, self.clock, self.say = records, clock, say
        self.drawn: Any = None
        self.asked: set[str] = set()  # runs that were asked to stop
        self.source, self.scores, self.speeds = (ColumnDataSource(view.curves([], None)) for _ in range(3))
        self.marks = ColumnDataSource(view.marks([]))
        self.loss_figure = _chart("Loss (dashed: validation)", self.source, ticks=6)
        self.score_figure = _chart("Score", self.scores)
        self.speed_figure = _chart("Rows per second", self.speeds, y_range=DataRange1d(start=0))
        self.speed_figure.yaxis.formatter = CustomJSTickFormatter(code=AXIS_JS)
        shape: dict[str, Any] = {
            "marker": "marker",
            "size": "size",
            "fill_color": "fill",
            "line_color": "line",
            "line_width": 2,
        }
        marks = self.loss_figure.scatter("x", "y", source=self.marks, **shape)
        self.loss_figure.add_tools(HoverTool(renderers=[marks], tooltips="@event at step @x: @text"))
        self.table = Div(sizing_mode="stretch_width", stylesheets=[style.TABLE], styles=style.TABLE_BOX)
        self.choice = Select(width=220, visible=False, styles=style.CONTROL)
        self.stop = Button(label="Stop", visible=say is not None, width=90, styles=style.CONTROL)
        self.stop.on_click(self.ask_to_stop)
        self.kill = Button(label="Kill a worker", visible=kill is not None, width=120, styles=style.CONTROL)
        if kill is not None:
            self.kill.on_click(kill)
        self.controls = row(self.choice, self.stop, self.kill, visible=False, styles=style.CONTROLS)
        self.empty = Div(text=style.EMPTY, sizing_mode="stretch_both", stylesheets=[style.FILL])
        side = column(self.score_figure, self.speed_figure, sizing_mode="stretch_both", stylesheets=[style.SIDE])
        charts = row(self.loss_figure, side, sizing_mode="stretch_both")
        self.content: UIElement = column(charts, self.controls, self.table, sizing_mode="stretch_both", visible=False)
        self.root = column(self.empty, self.content, sizing_mode="stretch_both")

    @without_property_validation
    @log_errors
    def update(self) -> None:
        """Bring charts and table up to date; does nothing while nothing was said and no run is running."""
        now = self.clock()
        records = list(self.records().values())
        running = any(r.state == "running" for r in records)
        state = ([(r.id, r.changes) for r in records], int(now) if running else None)
        if state == self.drawn:
            return
        said = self.drawn is None or state[0] != self.drawn[0]
        self.drawn = state
        self.empty.visible, self.content.visible = not records, bool(records)
        self.table.text = view.table(records, now)
        self._offer([r for r in records if r.state == "running"])
        if said:
            self._draw(view.recent(records))

    def ask_to_stop(self) -> None:
        """Ask those who train the chosen run to stop it at its next step."""
        if self.say is not None and self.choice.value:
            self.stop.label, self.stop.disabled = "Stopping ...", True
            self.asked.add(self.choice.value)
            why = "the stop button of the Training page"
            self.say({"run": self.choice.value, "kind": "stop", "time": self.clock(), "why": why})

    def _offer(self, running: list[RunRecord]) -> None:
        """Show the buttons while there is a run to use them on, and a choice where there are several."""
        self.controls.visible = bool(running)
        options: list[Any] = [(r.id, f"{r.name} ({r.id})") for r in reversed(running)]
        if options != self.choice.options:
            self.choice.options, self.choice.visible = options, len(options) > 1
        if self.choice.value not in dict(options):
            self.choice.value = options[0][0] if options else ""
        waits = self.choice.value in self.asked
        self.stop.label, self.stop.disabled = ("Stopping ..." if waits else "Stop"), waits

    def _draw(self, recent: list[tuple[str, RunRecord]]) -> None:
        score = view.common_score(recent)
        update(self.source, view.curves(recent, view.losses))
        update(self.scores, view.curves(recent, lambda record: [score] if score in record.curves else []))
        update(self.speeds, view.curves(recent, lambda record: [n for n in ("rows_per_s",) if n in record.curves]))
        update(self.marks, view.marks(recent))
        self.score_figure.visible = score is not None
        style.title_of(self.score_figure).text = score or ""
        self.speed_figure.visible = bool(self.speeds.data["xs"])


def _chart(title: str, source: ColumnDataSource, ticks: int = 3, **options: Any) -> figure:
    chart = figure(title=title, sizing_mode="stretch_both", **style.CHART, **options)
    stroke: dict[str, Any] = {"color": "color", "line_dash": "dash", "line_width": "width", "line_alpha": "alpha"}
    lines = chart.multi_line("xs", "ys", source=source, line_join="round", **stroke)
    chart.add_tools(HoverTool(renderers=[lines], tooltips="@run: @metric $snap_y{0.0000} at step $snap_x{0,0}"))
    style.quiet(chart, ticks)
    return chart


@log_errors
def training_doc(scheduler: Scheduler, doc: Document) -> None:
    """Draw the page into a new Bokeh document, without Dask's navigation bar: it is also a pane of JupyterLab."""
    from daskdl.dashboard.plugin import NAME, TrainingPlugin

    kill = partial(kill_a_worker, scheduler) if dask.config.get(KILL_BUTTON, False) else None
    records = lambda: cast(TrainingPlugin, scheduler.plugins[NAME]).records  # noqa: E731
    page = Training(records, say=partial(scheduler.log_event, TOPIC), kill=kill)
    page.update()
    add_periodic_callback(doc, page, MILLISECONDS)
    doc.add_root(page.root)
    doc.theme = BOKEH_THEME
    doc.title = "Dask: Training"


def kill_a_worker(scheduler: Scheduler) -> None:
    """Kill a random worker, preferably one that trains: what the demo's button does."""
    workers = [address for address, worker in scheduler.workers.items() if worker.processing]
    workers = workers or list(scheduler.workers)
    if workers:
        order = {"op": "run", "function": dumps(_die), "args": dumps(()), "kwargs": dumps({})}
        scheduler.loop.add_callback(scheduler.broadcast, msg=order, workers=[random.choice(workers)], on_error="ignore")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
