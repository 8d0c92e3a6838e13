"""The Training page and the panes of its parts. Runs on the scheduler."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import dask
from bokeh.core.properties import without_property_validation
from bokeh.layouts import column, row
from bokeh.models.ui import UIElement
from bokeh.models.widgets import CheckboxButtonGroup, Div, MultiChoice
from distributed.dashboard.components import DashboardComponent, add_periodic_callback
from distributed.dashboard.components.scheduler import BOKEH_THEME
from distributed.protocol.pickle import dumps
from distributed.utils import log_errors

from daskdl.dashboard import panels, style, theme, view
from daskdl.tracking.record import TOPIC, RunRecord

if TYPE_CHECKING:
    from bokeh.document import Document
    from distributed import Scheduler

MILLISECONDS = 400  # between two looks at the records
KILL_BUTTON = "daskdl.kill-button"  # Dask setting of the scheduler: whether the page has a button that kills a worker

Records = Callable[[], Mapping[str, RunRecord]]
Clock = Callable[[], float]
Say = Callable[[dict[str, Any]], None]


class Watcher(DashboardComponent):
    """Has panels drawn when something was said, and those that move with time while a run is running.

    Parameters
    ----------
    records : callable
        Returns the records by id, oldest first; asked at every update.
    drawn : list of Panel
    clock : callable
        Returns the time in seconds since the epoch.
    look : Look, optional
        The user's choice of runs and of how to draw them.
    """

    def __init__(self, records: Records, drawn: list[panels.Panel], clock: Clock, look: Look | None = None) -> None:
        self.records, self.panels, self.clock, self.look = records, drawn, clock, look
        self._state: Any = None

    @without_property_validation
    @log_errors
    def update(self) -> None:
        """Bring the panels up to date; does nothing while nothing was said and no run is running."""
        now = self.clock()
        records = list(self.records().values())
        running = any(r.state == "running" for r in records)
        wanted = self.look.wanted() if self.look is not None else {}
        state = ([(r.id, r.changes) for r in records], wanted, int(now) if running else None)
        if state == self._state:
            return
        said = self._state is None or state[:2] != self._state[:2]
        self._state = state
        scene = view.scene(records, now, **wanted)
        if said and self.look is not None:
            self.look.offer(records)
        for panel in self.panels:
            if said or panel.moves:
                panel.draw(scene)
        self.show(scene)

    def show(self, scene: view.Scene) -> None:
        """Show or hide what belongs to no panel."""


class Look:
    """Which runs are drawn, and how: the quiet line of controls above the curves."""

    def __init__(self) -> None:
        hint = "the newest runs; choose to compare"
        wide: dict[str, Any] = {"sizing_mode": "stretch_width", "styles": {"max-width": "560px"}}
        self.runs = MultiChoice(placeholder=hint, stylesheets=[style.CHOICES], **wide)
        self.how = CheckboxButtonGroup(labels=["Log scale", "Smooth"], active=[1], stylesheets=[style.WIDGET])
        parts = [self.runs, self.how]
        self.root = row(*parts, sizing_mode="stretch_width", styles=style.STRIP, stylesheets=[style.LOOK])

    def wanted(self) -> dict[str, Any]:
        """Return the keyword arguments of ``view.scene``."""
        return {"chosen": tuple(self.runs.value), "log": 0 in self.how.active, "smooth": 1 in self.how.active}

    def on_change(self, draw: Callable[[], None]) -> None:
        """Have the page drawn at once when the user chooses."""
        for widget, name in ((self.runs, "value"), (self.how, "active")):
            widget.on_change(name, lambda attr, old, new: draw())

    def offer(self, records: list[RunRecord]) -> None:
        """Offer the runs there are, newest first."""
        names = [record.name or record.id for record in records]
        labels = [n if names.count(n) == 1 else f"{n} ({r.id})" for n, r in zip(names, records, strict=True)]
        options: list[Any] = [(r.id, label) for r, label in zip(records, labels, strict=True)][::-1]
        if options != self.runs.options:
            self.runs.options = options
            kept = [run for run in self.runs.value if run in dict(options)]
            if kept != self.runs.value:
                self.runs.value = kept


class Training(Watcher):
    """The whole page: curves of the recent runs, what the ranks of the newest do, and a table of all runs.

    Parameters
    ----------
    records, clock
        As of a :class:`Watcher`.
    say, kill : callable, optional
        As of :class:`daskdl.dashboard.panels.Runs`.
    """

    def __init__(
        self, records: Records, clock: Clock = time.time, say: Say | None = None, kill: Callable[[], None] | None = None
    ) -> None:
        self.loss, self.score, self.speed = panels.Loss(), panels.Score(), panels.speed()
        self.breakdown, self.memory, self.signals = panels.Breakdown(), panels.Memory(), panels.signals()
        self.runs = panels.Runs(say, kill)
        self.side = panels.Group(self.score, self.speed)
        drawn = [self.loss, self.side, self.breakdown, self.memory, self.signals, self.runs]
        super().__init__(records, drawn, clock, Look())
        self.root = self._layout()

    @property
    def source(self) -> Any:
        """The loss curves."""
        return self.loss.source

    def _layout(self) -> UIElement:
        assert self.look is not None
        self.look.on_change(self.update)
        self.side.root.stylesheets = [style.SIDE]
        for panel, part in ((self.loss, 6), (self.side, 5), (self.breakdown, 5), (self.memory, 3), (self.signals, 3)):
            panel.root.styles = style.share(part)
        self.runs.root.sizing_mode = "stretch_width"
        self.runs.root.styles, self.runs.root.stylesheets = style.FIXED, [style.TABLE_SHARE]
        upper = row(self.loss.root, self.side.root, sizing_mode="stretch_both", styles=style.share(3))
        lower = [self.breakdown.root, self.memory.root, self.signals.root]
        self.lower = row(*lower, sizing_mode="stretch_both", styles=style.share(2), stylesheets=[style.LOWER])
        self.empty = Div(text=style.notice(style.EMPTY), sizing_mode="stretch_both", stylesheets=[style.NOTICE])
        parts = [self.look.root, upper, self.lower, self.runs.root]
        self.content = column(*parts, sizing_mode="stretch_both", visible=False)
        return column(self.empty, self.content, sizing_mode="stretch_both")

    def show(self, scene: view.Scene) -> None:
        """Show the page, or that there is no run yet."""
        self.empty.visible, self.content.visible = not scene.records, bool(scene.records)
        self.lower.visible = any(panel.root.visible for panel in (self.breakdown, self.memory, self.signals))


class Pane(Watcher):
    """One panel by itself, with the names of the runs it shows."""

    def __init__(self, records: Records, panel: panels.Panel, clock: Clock = time.time, key: bool = True) -> None:
        look = Look() if isinstance(panel, panels.Loss) else None
        super().__init__(records, [panel], clock, look)
        self.panel = panel
        self.key = Div(sizing_mode="stretch_width", stylesheets=[style.WORDS], styles=style.FIXED, visible=key)
        self.has_key = key
        self.empty = Div(sizing_mode="stretch_both", stylesheets=[style.NOTICE])
        panel.root.styles = style.share(1)
        parts: list[UIElement] = [self.key, panel.root, self.empty]
        if look is not None:
            look.on_change(self.update)
            parts.insert(0, look.root)
        self.root = column(*parts, sizing_mode="stretch_both")

    def show(self, scene: view.Scene) -> None:
        """Show the panel, or what is missing."""
        there = bool(scene.records) and self.panel.root.visible
        self.panel.root.visible = there
        self.key.visible = there and self.has_key
        self.key.text = view.key_of_runs(scene.runs)
        self.empty.visible = not there
        self.empty.text = style.notice(self.panel.words if scene.records and self.panel.words else style.EMPTY)


def documents(scheduler: Scheduler, records: Records) -> dict[str, Callable[[Document], None]]:
    """Return, by the end of its address, what draws each page into a new Bokeh document.

    They have no navigation bar of Dask's, as they are panes of JupyterLab too, which labels them by their address.
    """
    say = partial(scheduler.log_event, TOPIC)
    kill = partial(kill_a_worker, scheduler)
    allowed = lambda: kill if dask.config.get(KILL_BUTTON, False) else None  # noqa: E731
    pages: dict[str, Callable[[], Watcher]] = {
        "": lambda: Training(records, say=say, kill=allowed()),
        "-loss": lambda: Pane(records, panels.Loss()),
        "-score": lambda: Pane(records, panels.Score()),
        "-speed": lambda: Pane(records, panels.speed()),
        "-breakdown": lambda: Pane(records, panels.Breakdown(), key=False),
        "-memory": lambda: Pane(records, panels.Memory(), key=False),
        "-signals": lambda: Pane(records, panels.signals()),
        "-runs": lambda: Pane(records, panels.Runs(say, allowed()), key=False),
    }
    return {part: partial(_draw, make) for part, make in pages.items()}


@log_errors
def _draw(make: Callable[[], Watcher], doc: Document) -> None:
    page = make()
    page.update()
    add_periodic_callback(doc, page, MILLISECONDS)
    doc.add_root(page.root)
    doc.theme = BOKEH_THEME
    doc.template = theme.template()
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
