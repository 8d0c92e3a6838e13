"""The curves of runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from daskdl.errors import DataError
from daskdl.plotting.drawing import POINTS, hvplot, layout, lines
from daskdl.tracking import summary
from daskdl.tracking.archive import recorded
from daskdl.tracking.colors import ALERT
from daskdl.tracking.record import RunRecord
from daskdl.tracking.recording import Recording

if TYPE_CHECKING:
    from holoviews import Layout

MARKS = {"best": "star", "worker_lost": "x", "resize": "triangle", "resumed": "diamond", "early_stop": "square"}


def plot_run_data(run: Recording) -> pd.DataFrame:
    """Return the curves of a run as rows of ``step``, ``metric``, ``value``, at most 500 steps a metric."""
    curves = {name: curve.xy(limit=POINTS) for name, curve in run.record.curves.items()}
    parts = [pd.DataFrame({"step": xs, "metric": name, "value": ys}) for name, (xs, ys) in curves.items()]
    empty = pd.DataFrame({"step": [], "metric": [], "value": []})
    return pd.concat(parts, ignore_index=True) if parts else empty


def run_marks_data(run: Recording) -> pd.DataFrame:
    """Return what is marked on the curves of a run, as rows of ``step``, ``metric``, ``value``, ``mark``, ``text``.

    The marks are the ``best`` step of each validation curve and, on the training loss, the events ``worker_lost``,
    ``resize`` (a worker was taken in), ``resumed`` and ``early_stop``.

    Examples
    --------
    >>> run = Recording(RunRecord("a"), "runs/a")
    >>> for step, loss in enumerate([0.9, 0.4, 0.6]):
    ...     run.record.apply({"kind": "metrics", "time": 0.0, "points": [[step, {"val_loss": loss}]]})
    >>> run_marks_data(run)[["step", "mark", "text"]].values.tolist()
    [[1, 'best', 'best val_loss: 0.4']]
    """
    marks = [*_best_steps(run.record), *_marked_events(run.record)]
    return pd.DataFrame(marks, columns=["step", "metric", "value", "mark", "text"])


def _best_steps(record: RunRecord) -> Iterator[tuple[int, str, float, str, str]]:
    for name, curve in record.curves.items():
        point = curve.low if summary.lower_is_better(name) else curve.high
        if name.startswith("val") and point is not None and len(curve.steps) > 1:
            yield point[0], name, point[1], "best", f"best {name}: {summary.number(point[1])}"


def _marked_events(record: RunRecord) -> Iterator[tuple[int, str, float, str, str]]:
    losses = summary.loss_names(record)
    steps, values = record.curves[losses[0]].xy() if losses else ([], [])
    for event in record.events:
        if steps and event["event"] in MARKS and event["step"] is not None:
            height = float(np.interp(event["step"], steps, values))
            yield event["step"], losses[0], height, event["event"], event["text"] or ""


def plot_run(run: Recording, **options: Any) -> Layout:
    """Draw a run: losses in one panel, each other metric in its own, and what :func:`run_marks_data` marks.

    Parameters
    ----------
    run : Run
    **options
        Passed to every ``hvplot.line``, such as ``width=400``. ``logy=True`` is for the losses only.

    Raises
    ------
    DataError
        The run has no metrics yet.
    """
    data, marks = plot_run_data(run), run_marks_data(run)
    losses = summary.loss_names(run.record)
    panels = [("loss", losses)] if losses else []
    panels += [(n, [n]) for n in run.record.curves if n not in losses]
    if not panels:
        raise DataError(f"Run {run.id} has no metrics to draw: it is {run.state} at step {run.record.step}.")
    drawn = [
        _marked(lines(data[data["metric"].isin(names)], "metric", title, **options), marks[marks["metric"].isin(names)])
        for title, names in panels
    ]
    return layout(drawn).opts(title=f"{run.name} ({run.algorithm})")


def _marked(panel: Any, marks: pd.DataFrame) -> Any:
    for mark, rows in marks.groupby("mark", sort=False):
        look = {
            "marker": MARKS[str(mark)],
            "color": ALERT if mark == "worker_lost" else "#444444",
            "size": 90,
            "line_width": 2,
        }
        panel = panel * hvplot(rows).scatter(x="step", y="value", hover_cols=["text"], label=str(mark), **look)
    return panel


def compare_data(runs: Iterable[Recording | str]) -> pd.DataFrame:
    """Return the curves of several runs as rows of ``run``, ``step``, ``metric``, ``value``."""
    found = [recorded(run) for run in runs]
    if not found:
        raise ValueError("Nothing to compare: expected runs or their ids, got none. daskdl.runs() lists them.")
    names = [run.name for run in found]
    labels = [r.name if names.count(r.name) == 1 else f"{r.name} {r.id.split('-', 2)[-1]}" for r in found]
    return pd.concat([plot_run_data(r).assign(run=label) for r, label in zip(found, labels, strict=True)])


def compare(runs: Iterable[Recording | str], metrics: Iterable[str] | None = None, **options: Any) -> Layout:
    """Draw the same metrics of several runs over each other.

    Parameters
    ----------
    runs : iterable of Run or str
        Runs, or ids as :func:`daskdl.runs` lists them.
    metrics : iterable of str, optional
        One panel each; default all that at least two runs have, or that there are.
    **options
        Passed to every ``hvplot.line``.
    """
    data = compare_data(runs)
    shared = data.groupby("metric")["run"].nunique()
    wanted = list(metrics) if metrics is not None else list(shared[shared >= min(2, shared.max())].index)
    missing = sorted(set(wanted) - set(data["metric"]))
    if missing or not wanted:
        has = ", ".join(sorted(set(data["metric"]))) or "none"
        raise ValueError(f"No run has the metric {', '.join(missing) or 'to compare'}; the runs have: {has}.")
    wanted.sort(key=lambda name: (summary.is_speed(name), name))
    return layout([lines(data[data["metric"] == name], "run", name, **options) for name in wanted])
