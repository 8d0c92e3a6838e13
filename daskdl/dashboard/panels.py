"""The panels of the Training page, drawn with Bokeh; each is also a page of its own. Runs on the scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bokeh.layouts import column, row
from bokeh.models import (
    AdaptiveTicker,
    ColumnDataSource,
    CustomJSTickFormatter,
    DataRange1d,
    FactorRange,
)
from bokeh.models.layouts import LayoutDOM
from bokeh.models.widgets import Button, Div, Select

from daskdl.dashboard import ranks, style, view
from daskdl.dashboard.view import Scene
from daskdl.tracking.colors import AXIS_JS, BYTES_JS, MILLISECONDS_JS, PEAK
from daskdl.tracking.record import RunRecord

LOSS = "Loss (dashed: validation)"
Part = tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]  # lines and marks of one run


class Panel:
    """A part of the page that draws itself.

    Attributes
    ----------
    root : UIElement
        Not visible while there is nothing to see.
    words : str
        What to say then, as HTML.
    moves : bool
        Whether it changes with time, when nothing new was said.
    """

    root: LayoutDOM
    words = ""
    moves = False

    def draw(self, scene: Scene) -> None:
        """Show what there is now."""
        raise NotImplementedError


class Curves(Panel):
    """Curves of the runs over steps, with the best step of each marked.

    Parameters
    ----------
    title : str
    names : callable
        Returns which curves of a record.
    words : str
        Where there are none.
    **options
        Of the figure.

    Attributes
    ----------
    source, marks : ColumnDataSource
        ``view.LINE``, one row a curve, and ``view.MARK``.
    """

    def __init__(self, title: str, names: Callable[[RunRecord], list[str]], words: str, **options: Any) -> None:
        self.names, self.words = names, words
        self.source, self.marks = (ColumnDataSource(view.columns(keys, [])) for keys in (view.LINE, view.MARK))
        self.figure = style.curves(title, self.source, self.marks, **options)
        self.root: LayoutDOM = self.figure
        self._parts: dict[str, tuple[Any, Part]] = {}

    def draw(self, scene: Scene) -> None:
        """Bring the sources up to date; of runs that said nothing, nothing is computed."""
        before, self._parts = self._parts, {}
        for color, record in scene.runs:
            names = self.names(record)
            key = (record.changes, names, color, scene.smooth)
            old = before.get(record.id)
            self._parts[record.id] = old if old and old[0] == key else (key, self._part(color, record, names, scene))
        if [id(part) for _, part in before.values()] != [id(part) for _, part in self._parts.values()]:
            self._fill([part for _, part in self._parts.values()])
        self.root.visible = bool(self.source.data["xs"])

    def _part(self, color: str, record: RunRecord, names: list[str], scene: Scene) -> Part:
        return view.lines(color, record, names, scene.smooth), self._marks_of(color, record, names)

    def _marks_of(self, color: str, record: RunRecord, names: list[str]) -> list[tuple[Any, ...]]:
        return view.best_marks(color, record, names)

    def _fill(self, parts: list[Part]) -> None:
        fill(self.source, view.LINE, [line for lines, _ in parts for line in lines])
        marks = view.columns(view.MARK, (mark for _, marks in parts for mark in marks))
        if marks != self.marks.data:
            self.marks.data = marks


def fill(source: ColumnDataSource, keys: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Give a source of curves its rows; only points of curves that have changed are sent, if nothing else has."""
    data, before = view.columns(keys, rows), source.data
    if any(data[key] != before[key] for key in keys[2:]):
        source.data = data
        return
    changed = [i for i, (new, old) in enumerate(zip(data["ys"], before["ys"], strict=True)) if new is not old]
    if changed:
        source.patch({key: [(i, data[key][i]) for i in changed] for key in keys[:2]})


class Loss(Curves):
    """The loss, with what happened on the way; before there is any, what the run prepares."""

    def __init__(self) -> None:
        words = "The loss appears here when a run says one."
        super().__init__(LOSS, view.losses, words, ticks=6)
        self.log_figure = style.curves(LOSS, self.source, self.marks, y_axis_type="log", visible=False)
        self.waiting = Div(sizing_mode="stretch_both", stylesheets=[style.NOTICE], visible=False)
        self.root = column(self.waiting, self.figure, self.log_figure, sizing_mode="stretch_both")

    def draw(self, scene: Scene) -> None:
        """Show the curves on the axis that is wanted."""
        super().draw(scene)
        there, waits = bool(self.source.data["xs"]), view.preparing(scene.runs)
        self.figure.visible, self.log_figure.visible = there and not scene.log, there and scene.log
        self.waiting.visible, self.waiting.text = bool(waits), style.notice(waits)
        self.root.visible = there or bool(waits)

    def _marks_of(self, color: str, record: RunRecord, names: list[str]) -> list[tuple[Any, ...]]:
        return view.event_marks(color, record) + view.best_marks(color, record, view.validations(names))

    def _fill(self, parts: list[Part]) -> None:
        super()._fill(parts)
        key = view.key_of_marks(mark for _, marks in parts for mark in marks)
        for figure in (self.figure, self.log_figure):
            style.title_of(figure).text = f"{LOSS}    {key}" if key else LOSS


class Score(Curves):
    """One metric of the runs: the score that most of them have, until the user chooses another.

    Attributes
    ----------
    choice : Select
        Every metric of the runs that are shown, and the chosen one also where none of them has it.
    """

    def __init__(self) -> None:
        words = "A score, such as <code>val_auc</code>, appears here when a run says one."
        super().__init__("", self._names, words, ticks=4)
        self._chosen: str | None = None  # by the user
        self._metric: str | None = None  # that is shown
        self._scene: Scene | None = None
        self.choice = Select(width=None, stylesheets=[style.METRIC])
        self.choice.on_change("value", lambda attr, old, new: self._choose(new))
        self.key = Div(stylesheets=[style.WORDS], styles=style.FIXED)
        self.missing = Div(sizing_mode="stretch_both", stylesheets=[style.NOTICE], visible=False)
        heading = row(self.choice, self.key, sizing_mode="stretch_width", styles=style.HEADING)
        self.root = column(heading, self.figure, self.missing, sizing_mode="stretch_both")

    def draw(self, scene: Scene) -> None:
        """Show the chosen metric, or that no run has it."""
        self._scene = scene
        self._metric = self._chosen or view.default_metric(scene.runs)
        self._offer(view.metrics(scene.runs))
        super().draw(scene)
        there = self.root.visible
        self.figure.visible, self.missing.visible = there, not there
        self.missing.text = style.notice(view.lacking(self._metric)) if self._metric and not there else ""
        self.key.text = view.key_of_metric(self._metric) if self._metric and there else ""
        self.root.visible = there or self._chosen is not None

    def _choose(self, metric: str) -> None:
        """Show another metric from now on; what the page itself writes into the choice is no choice."""
        if metric != self._metric and self._scene is not None:
            self._chosen = metric
            self.draw(self._scene)

    def _offer(self, metrics: list[str]) -> None:
        shown = self._metric or ""
        options: list[Any] = metrics if shown in metrics or not shown else [shown, *metrics]
        if options != self.choice.options:
            self.choice.options = options
        if shown != self.choice.value:
            self.choice.value = shown

    def _names(self, record: RunRecord) -> list[str]:
        return [self._metric] if self._metric in record.curves else []


class Group(Panel):
    """Panels one above the other."""

    def __init__(self, *panels: Panel, words: str = "") -> None:
        self.panels, self.words = panels, words
        self.root = column(*[panel.root for panel in panels], sizing_mode="stretch_both")

    def draw(self, scene: Scene) -> None:
        """Have each of them drawn."""
        for panel in self.panels:
            panel.draw(scene)
        self.root.visible = any(panel.root.visible for panel in self.panels)


def speed() -> Curves:
    """Return the panel of rows per second."""
    words = "Rows per second appear here when a run says them."
    panel = Curves("Rows per second", _those("rows_per_s"), words, y_range=DataRange1d(start=0))
    panel.figure.yaxis.formatter = CustomJSTickFormatter(code=AXIS_JS)
    return panel


def signals() -> Group:
    """Return the panel of gradient norm and learning rate."""
    norm = Curves("Gradient norm", _those("grad_norm"), "")
    rate = Curves("Learning rate", _those("learning_rate"), "", y_range=DataRange1d(start=0))
    return Group(norm, rate, words="Gradient norm and learning rate appear here when a network is trained.")


def _those(name: str) -> Callable[[RunRecord], list[str]]:
    return lambda record: [name] if name in record.curves else []


class _Bars(Panel):
    """Horizontal bars by rank of one run, under a line of words."""

    make: Callable[[RunRecord | None], ranks.Bars]
    keys: tuple[str, ...]

    def __init__(self) -> None:
        self.source = ColumnDataSource(view.columns(self.keys, []))
        self.factors = FactorRange()
        self.figure = style.bars(self.factors)
        self.heading = Div(sizing_mode="stretch_width", stylesheets=[style.WORDS], styles=style.FIXED)
        self.root = column(self.heading, self.figure, sizing_mode="stretch_both")
        self._drawn: Any = ()

    def draw(self, scene: Scene) -> None:
        """Draw the bars if the run has changed."""
        record = ranks.watched(scene.runs)
        state = (record.id, record.changes) if record is not None else None
        if state == self._drawn:
            return
        self._drawn = state
        bars = type(self).make(record)
        self.root.visible = bool(bars.rows)
        self.heading.text = bars.words
        self.factors.factors = bars.factors[::-1]
        self.factors.range_padding = max(0.0, 4 / max(1, len(bars.factors)) - 1)
        self.source.data = view.columns(self.keys, bars.rows)


class Breakdown(_Bars):
    """Where the time of a step goes, by rank, and what that means."""

    words = "Where the time of a step goes appears here when ranks train."
    make = staticmethod(ranks.breakdown)
    keys = ranks.BAR

    def __init__(self) -> None:
        super().__init__()
        bars = self.figure.hbar("rank", 0.75, "right", "left", source=self.source, fill_color="color", line_color=None)
        style.explain(self.figure, bars)
        self.figure.xaxis.formatter = CustomJSTickFormatter(code=MILLISECONDS_JS)


class Memory(_Bars):
    """Memory of each rank, of host and GPU, now (solid) and at its peak (outline)."""

    words = "The memory of ranks appears here when they train."
    make = staticmethod(ranks.memory)
    keys = ranks.MEMORY

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"source": self.source, "height": 0.36}
        now = self.figure.hbar("rank", right="now", fill_color="color", line_color=None, **options)
        self.figure.hbar("rank", right="peak", fill_color=None, line_color=PEAK, line_width=1.5, **options)
        style.explain(self.figure, now)
        powers = [2**i for i in range(10)]
        self.figure.xaxis.ticker = AdaptiveTicker(base=1024, mantissas=powers, desired_num_ticks=4)
        self.figure.xaxis.formatter = CustomJSTickFormatter(code=BYTES_JS)


class Runs(Panel):
    """A table of all runs, with buttons to stop one and, on a demo, to kill a worker.

    Parameters
    ----------
    say : callable, optional
        Sends a message to those who train; without it there is no button to stop a run.
    kill : callable, optional
        Kills a worker, to see what happens; without it there is no button for it.
    """

    moves = True

    def __init__(self, say: Callable[[dict[str, Any]], None] | None, kill: Callable[[], None] | None) -> None:
        self.say, self.now = say, 0.0
        self.asked: set[str] = set()  # runs that were asked to stop
        scrolls: dict[str, str | None] = {"overflow-y": "auto", "flex": "0 1 auto"}
        self.table = Div(sizing_mode="stretch_width", stylesheets=[style.TABLE], styles=scrolls)
        self.choice = Select(width=320, visible=False, stylesheets=[style.WIDGET])
        self.stop = Button(label="Stop", visible=say is not None, width=90, stylesheets=[style.ACTION])
        self.kill = Button(label="Kill a worker", visible=kill is not None, width=110, stylesheets=[style.ACTION])
        self.stop.on_click(self.ask_to_stop)
        if kill is not None:
            self.kill.on_click(kill)
        self.controls = row(self.choice, self.stop, self.kill, visible=False, styles=style.STRIP)
        self.root = column(self.controls, self.table, sizing_mode="stretch_both")

    def draw(self, scene: Scene) -> None:
        """Write the table anew, and show the buttons that are of use."""
        self.now = scene.now
        self.root.visible = bool(scene.records)
        self.table.text = view.table(scene.records, scene.now)
        self._offer([record for record in scene.records if record.state == "running"])

    def ask_to_stop(self) -> None:
        """Ask those who train the chosen run to stop it at its next step."""
        if self.say is not None and self.choice.value:
            self.stop.label, self.stop.disabled = "Stopping ...", True
            self.asked.add(self.choice.value)
            why = "the stop button of the Training page"
            self.say({"run": self.choice.value, "kind": "stop", "time": self.now, "why": why})

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
