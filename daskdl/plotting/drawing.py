"""What the drawings share: hvPlot, ready for a notebook, and the look of a curve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from daskdl.errors import MissingExtraError
from daskdl.tracking import summary
from daskdl.tracking.colors import AXIS_JS, PALETTE

if TYPE_CHECKING:
    from holoviews import Layout

POINTS = 500  # per curve in a drawing
ALONE = {"shared_axes": False}  # beside another drawing, a + b, the two would be scaled and ordered as one


def hvplot(data: pd.DataFrame) -> Any:
    """Return the hvPlot accessor of a frame.

    Raises
    ------
    MissingExtraError
        hvPlot is not installed.
    """
    try:
        import holoviews as hv
        from hvplot import hvPlot
    except ImportError as error:
        raise MissingExtraError(
            f"Plots need hvPlot, which cannot be imported ({error}). Install it: pip install hvplot"
        ) from error
    if not getattr(hv.extension, "_loaded", False):
        hv.extension("bokeh", inline=True, logo=False)  # without a network, scripts from elsewhere would not load
    return hvPlot(data)


def lines(data: pd.DataFrame, by: str, title: str, **options: Any) -> Any:
    """Draw ``value`` over ``step``, a line for each value of ``by``; only losses and errors on a log scale."""
    settings: dict[str, Any] = {"title": title, "ylabel": "", "width": 420, "height": 260, "color": list(PALETTE)}
    if not summary.lower_is_better(title):
        options = {name: value for name, value in options.items() if name != "logy"}
    if summary.is_speed(title):
        from bokeh.models import CustomJSTickFormatter

        settings |= {"ylim": (0, None), "yformatter": CustomJSTickFormatter(code=AXIS_JS), "legend": "bottom_right"}
    else:  # away from the curves: losses fall, scores rise
        settings["legend"] = "top_right" if summary.lower_is_better(title) else "bottom_right"
    return hvplot(data).line(x="step", y="value", by=by, **(settings | options))


def layout(panels: list[Any]) -> Layout:
    """Put panels side by side, each with axes of its own."""
    import holoviews as hv

    return hv.Layout(panels).cols(2).opts(shared_axes=False)


def reference(x: tuple[float, float], y: tuple[float, float], **options: Any) -> Any:
    """Draw a dashed grey line that curves are compared with."""
    settings = {"color": "grey", "line_dash": "dashed", "line_width": 1}
    return hvplot(pd.DataFrame({"x": x, "y": y})).line(x="x", y="y", **(settings | options))


def square(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of a square drawing whose axes go from 0 to 1."""
    settings = {"width": 380, "height": 360, "xlim": (0, 1), "ylim": (0, 1), "color": PALETTE[0]}
    return settings | ALONE | options
