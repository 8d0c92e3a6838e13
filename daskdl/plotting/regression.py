"""How far predicted numbers are from the true ones."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from daskdl.errors import DataError
from daskdl.plotting.drawing import ALONE, hvplot, reference
from daskdl.plotting.overview import Overview, merge_overviews, overview
from daskdl.plotting.partitions import Rows, column, floats, fold
from daskdl.tracking.colors import PALETTE

if TYPE_CHECKING:
    from holoviews import Overlay

RESIDUALS = 5_000  # rows in a sample
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BANDS = 10  # of equally many rows each, over which the quantiles are drawn


def residuals_data(y: Any, predicted: Any, points: int = RESIDUALS, seed: int = 0) -> pd.DataFrame:
    """Return a sample of rows as ``predicted`` and ``residual``, the true value less the predicted one.

    Parameters
    ----------
    y, predicted : Dask, pandas, cudf or numpy collection, shape (n_rows,)
        True and predicted numbers.
    points : int
        Rows in the sample, each as likely to be in it as any other; all rows if there are no more.
    seed : int
        Of the sample.

    Returns
    -------
    DataFrame of shape (at most points, 2)
        ``attrs`` has of all rows, exactly: ``rows``, ``bias`` (the mean residual), ``rmse``, ``mae`` and ``r2``; and
        of the sample ``quantiles``, a dict of the residuals at 5, 25, 50, 75 and 95 %.

    Raises
    ------
    DataError
        Values are missing, infinite or no numbers, or there are no rows.
    TypeError, ValueError
        The two cannot be paired row by row.

    Notes
    -----
    Computes at once, in one pass; a partition sends home its sample and a few sums.

    Examples
    --------
    >>> residuals_data([1.0, 2.0, 3.0], [1.0, 2.0, 6.0]).attrs["mae"]
    1.0
    """
    found = fold(partial(_look, points, seed), partial(merge_overviews, points), y=y, predicted=predicted)
    moments, (values,) = found.moments, found.sample.columns
    if not moments.n:
        raise DataError("Residuals need rows; y has none. Look at the filters of the frame.")
    frame = pd.DataFrame({"predicted": values[:, 1] - values[:, 0], "residual": values[:, 0]})
    bias, _, mae = moments.mean.tolist()
    squares, spread = moments.scatter[0, 0] / moments.n + bias**2, moments.scatter[1, 1] / moments.n
    frame.attrs |= {
        "rows": moments.n,
        "bias": bias,
        "rmse": float(np.sqrt(squares)),
        "mae": mae,
        "r2": float(1 - squares / spread) if spread else float("nan"),
        "quantiles": {q: float(frame["residual"].quantile(q)) for q in QUANTILES},
    }
    return frame


def _look(points: int, seed: int, y: Rows, predicted: Rows) -> Overview:
    """Look at residual, true value and absolute residual of one partition. Runs on a worker."""
    true = floats(column(y, "y"), "y")
    guess = floats(column(predicted, "predicted"), "predicted")
    residual = true - guess
    return overview(points, seed, np.stack([residual, true, np.abs(residual)], axis=1))


def plot_residuals(y: Any, predicted: Any, points: int = RESIDUALS, seed: int = 0, **options: Any) -> Overlay:
    """Draw residuals over predictions, with their median and the band that holds 90 % of them.

    See :func:`residuals_data`. The band and the median are those of ten parts of the sample with equally many rows.
    """
    data = residuals_data(y, predicted, points, seed)
    bands = _bands(data)
    about = data.attrs
    title = f"RMSE {about['rmse']:.4g}, R² {about['r2']:.4f}, {about['rows']:,} rows"
    labels = {"xlabel": "predicted", "ylabel": "true less predicted"} | ALONE
    settings = labels | {"title": title, "width": 480, "height": 360, "color": PALETTE[0]} | options
    dots = hvplot(data).scatter(x="predicted", y="residual", **({"size": 8, "alpha": 0.35} | settings))
    band = hvplot(bands).area(x="predicted", y="low", y2="high", color=PALETTE[1], alpha=0.2, line_width=0, **labels)
    median = hvplot(bands).line(x="predicted", y="median", color=PALETTE[1], **labels)
    ends = data["predicted"].min(), data["predicted"].max()
    return dots * band * median * reference(ends, (0.0, 0.0), **(labels | {"color": "black"}))


def _bands(data: pd.DataFrame) -> pd.DataFrame:
    """Return quantiles of the residuals along the predictions."""
    place = data["predicted"].rank(method="first") - 1
    groups = data.groupby((place * min(BANDS, len(data)) // len(data)).astype(int))
    low, median, high = (groups["residual"].quantile(q) for q in (0.05, 0.5, 0.95))
    return pd.DataFrame({"predicted": groups["predicted"].mean(), "low": low, "median": median, "high": high})
