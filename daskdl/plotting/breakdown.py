"""Where the time of the ranks of a run goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from daskdl.errors import DataError
from daskdl.plotting.drawing import hvplot
from daskdl.tracking.archive import recorded
from daskdl.tracking.colors import PHASE_COLORS
from daskdl.tracking.recording import Recording

if TYPE_CHECKING:
    from holoviews import Bars

MOST_RANKS = 32


def breakdown_data(run: Recording | str) -> pd.DataFrame:
    """Return where a step of each rank goes as rows of ``rank``, ``phase``, ``milliseconds``.

    Of more than 32 ranks those that wait longest and least for the others, 16 each. ``attrs["verdict"]`` says in words
    what it means.

    Raises
    ------
    DataError
        The run has told nothing of its steps.
    """
    run = recorded(run)
    table = run.breakdown()
    said = table.attrs["verdict"]
    if table.empty:
        raise DataError(f"Run {run.id} has told nothing of its steps: it is {run.state} at step {run.record.step}.")
    if len(table) > MOST_RANKS:
        waits = table["all-reduce"].sort_values().index
        table = table.loc[sorted([*waits[: MOST_RANKS // 2], *waits[-MOST_RANKS // 2 :]])]
    data = table.rename_axis(columns="phase").stack().rename("milliseconds").reset_index()
    data.attrs["verdict"] = said
    return data


def plot_breakdown(run: Recording | str, **options: Any) -> Bars:
    """Draw a step of each rank as a stacked bar, with the verdict as its title; see :meth:`daskdl.Run.breakdown`.

    Parameters
    ----------
    run : Run or str
        A run, or the id of one.
    **options
        Passed to ``hvplot.barh``, such as ``width=500``.
    """
    data = breakdown_data(run)
    phases = list(dict.fromkeys(data["phase"]))
    wide = data.pivot(index="rank", columns="phase", values="milliseconds")[phases]
    wide.index = [f"rank {rank}" for rank in wide.index]
    settings: dict[str, Any] = {
        "stacked": True,
        "ylabel": "milliseconds a step",
        "xlabel": "",
        "width": 760,
        "height": max(280, 110 + 30 * len(wide)),
        "color": [PHASE_COLORS[phase] for phase in phases],
        "title": data.attrs["verdict"].replace(". ", ".\n"),  # the legend covers the end of a long line
        "legend": "right",
        "flip_yaxis": True,
    }
    return hvplot(wide).barh(**(settings | options)).opts(fontsize={"title": "9pt", "legend": "8pt"})
