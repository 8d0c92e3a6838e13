"""What a model looks at, and how it sees rows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from daskdl.errors import DataError
from daskdl.plotting.drawing import ALONE, hvplot
from daskdl.plotting.overview import Overview, merge_overviews, overview
from daskdl.plotting.partitions import Rows, column, floats, fold
from daskdl.tracking.colors import PALETTE

if TYPE_CHECKING:
    from holoviews import Bars, Scatter

Importance = Literal["gain", "weight", "cover", "total_gain", "total_cover"]
IMPORTANCES = ("gain", "weight", "cover", "total_gain", "total_cover")
MEANINGS = {
    "gain": "mean gain of a split",
    "weight": "number of splits",
    "cover": "mean cover of a split",
    "total_gain": "gain of all splits",
    "total_cover": "cover of all splits",
}
EMBEDDED = 2_000  # rows in a sample
MAX_COLORS = 20  # that can be told apart
MAX_WIDTH = 4_096  # of embeddings: a partition sends home the square of it, 128 MiB


def importance_data(estimator: Any, kind: Importance = "gain", top: int | None = 20) -> pd.DataFrame:
    """Return the features of a fitted XGBoost estimator by importance, as rows of ``feature``, ``importance``.

    Parameters
    ----------
    estimator : XGBClassifier or XGBRegressor
        Fitted.
    kind : {"gain", "weight", "cover", "total_gain", "total_cover"}
        As in XGBoost: how much the splits on a feature lower the loss, how many there are, how much data goes through
        them; the first and the third are means over splits.
    top : int, optional
        Only so many, the most important ones; None for all. Features that no tree splits have 0.

    Returns
    -------
    DataFrame
        Most important first. Features are called as the columns of ``fit``; a date or an array is several, such as
        ``time_hour`` or ``pixels_7``. ``attrs["kind"]`` is the kind.

    Raises
    ------
    TypeError
        The estimator is not one of XGBoost's.
    ValueError
        ``kind`` is unknown, or the estimator is not fitted (scikit-learn's ``NotFittedError``).

    Examples
    --------
    >>> from daskdl import XGBClassifier
    >>> X = pd.DataFrame({"noise": [0, 1] * 50, "x": range(100)})
    >>> importance_data(XGBClassifier(n_estimators=3, verbose=0).fit(X, X.x > 49))["feature"].tolist()
    ['x', 'noise']
    """
    from sklearn.base import BaseEstimator
    from sklearn.utils.validation import check_is_fitted

    if kind not in IMPORTANCES:
        raise ValueError(f"kind is one of {', '.join(IMPORTANCES)}; got {kind!r}")
    if top is not None and top < 1:
        raise ValueError(f"top is a number of features, at least 1, or None for all; got {top}")
    if isinstance(estimator, BaseEstimator):
        check_is_fitted(estimator, "model_")
    model: Any = getattr(estimator, "model_", None)
    if not hasattr(model, "get_score"):
        raise TypeError(
            "Feature importance is read from the trees of a fitted daskdl.XGBClassifier or XGBRegressor; got "
            f"{type(estimator).__name__}, which has none. For any other model, shuffle one column at a time and "
            "compare the scores."
        )
    names = estimator.schema_.feature_names
    scores = model.get_score(importance_type=kind)
    importance = [float(np.sum(scores.get(name, 0.0))) for name in names]
    frame = pd.DataFrame({"feature": estimator.schema_.feature_labels, "importance": importance})
    frame = frame.sort_values("importance", ascending=False, kind="stable").head(top or len(names))
    frame = frame.reset_index(drop=True)
    frame.attrs["kind"] = kind
    return frame


def plot_importance(estimator: Any, kind: Importance = "gain", top: int | None = 20, **options: Any) -> Bars:
    """Draw the importance of features as bars, the longest at the top; see :func:`importance_data`."""
    data = importance_data(estimator, kind, top)
    settings: dict[str, Any] = {"width": 480, "height": 80 + 22 * len(data), "color": PALETTE[0], "flip_yaxis": True}
    settings |= {"title": f"Importance: {MEANINGS[kind]}", "ylabel": "", "xlabel": ""} | ALONE
    return hvplot(data).barh(x="feature", y="importance", **(settings | options))


def embedding_data(X: Any, labels: Any = None, points: int = EMBEDDED, seed: int = 0) -> pd.DataFrame:
    """Return a sample of rows, projected to their first two principal components, as ``pc1``, ``pc2`` and ``label``.

    Parameters
    ----------
    X : Dask, pandas, cudf or numpy collection, shape (n_rows, n_columns)
        Numbers, such as the embeddings of a network; from 2 to 4,096 columns.
    labels : Dask, pandas, cudf or numpy collection, shape (n_rows,), optional
        Lazy if ``X`` is.
    points : int
        Rows in the sample, each as likely to be in it as any other; all rows if there are no more.
    seed : int
        Of the sample.

    Returns
    -------
    DataFrame of shape (at most points, 2 or 3)
        ``attrs["explained"]`` has the share of the variance along each component, ``attrs["components"]`` their
        directions as lists of n_columns numbers, and ``attrs["rows"]`` the number of all rows.

    Raises
    ------
    DataError
        Values are missing, infinite or no numbers; there are too few or too many columns; all rows are the same.
    TypeError, ValueError
        ``X`` and ``labels`` cannot be paired row by row.

    Notes
    -----
    Computes at once, in one pass: the covariance is added up over partitions, so the components are exactly those of
    all rows (Pearson, "On Lines and Planes of Closest Fit", 1901). The largest entry of each is positive, as in
    scikit-learn.

    Examples
    --------
    >>> embedding_data([[0, 0, 5], [3, 4, 5], [6, 8, 5]])["pc1"].abs().sort_values().tolist()
    [0.0, 5.0, 5.0]
    """
    rows = {"X": X} if labels is None else {"X": X, "labels": labels}
    found = fold(partial(_look, points, seed), partial(merge_overviews, points), **rows)
    moments, (values, *names) = found.moments, found.sample.columns
    if moments.n < 2 or not np.trace(moments.scatter):
        raise DataError(f"A projection needs rows that differ; X has {moments.n:,} rows, all the same. Take more rows.")
    components, explained = _components(moments.scatter)
    places = (values - moments.mean) @ components.T
    frame = pd.DataFrame({"pc1": places[:, 0], "pc2": places[:, 1]})
    if names:
        frame["label"] = names[0]
    frame.attrs |= {"explained": explained, "components": components.tolist(), "rows": moments.n}
    return frame


def _components(scatter: Rows) -> tuple[Rows, list[float]]:
    """Return the first two eigenvectors, shape (2, n_columns), and their shares of the trace."""
    variances, vectors = np.linalg.eigh(scatter)  # smallest first
    components = vectors[:, [-1, -2]].T
    largest = np.abs(components).argmax(axis=1)
    signs = np.sign(components[[0, 1], largest])
    return components * signs[:, None], [max(0.0, float(v / variances.sum())) for v in variances[[-1, -2]]]


def _look(points: int, seed: int, X: Rows, labels: Rows | None = None) -> Overview:
    """Look at the rows of one partition. Runs on a worker."""
    if X.ndim != 2 or not 2 <= X.shape[1] <= MAX_WIDTH:
        raise DataError(
            f"X must have the shape (n_rows, n_columns) with 2 to {MAX_WIDTH:,} columns; it has {X.shape}. Flatten "
            "images and arrays first; of more columns take some."
        )
    matrix = floats(X, "X")
    return overview(points, seed, matrix, *(() if labels is None else [column(labels, "labels")]))


def plot_embedding(X: Any, labels: Any = None, points: int = EMBEDDED, seed: int = 0, **options: Any) -> Scatter:
    """Draw a sample of rows along their first two principal components; see :func:`embedding_data`.

    Each label has a color; of more than 20 different numbers, the color is a scale.
    """
    data = embedding_data(X, labels, points, seed)
    data = data.sort_values("label", key=_sortable) if "label" in data else data
    first, second = data.attrs["explained"]
    settings: dict[str, Any] = {"xlabel": f"component 1 ({first:.0%})", "ylabel": f"component 2 ({second:.0%})"}
    settings |= {"title": f"{len(data):,} of {data.attrs['rows']:,} rows"}
    settings |= {"width": 480, "height": 400, "size": 12, "alpha": 0.7} | ALONE | _coloring(data)
    return hvplot(data).scatter(x="pc1", y="pc2", **(settings | options))


def _sortable(labels: pd.Series) -> pd.Series:
    return labels if pd.api.types.is_numeric_dtype(labels) else labels.map(str)


def _coloring(data: pd.DataFrame) -> dict[str, Any]:
    if "label" not in data:
        return {"color": PALETTE[0]}
    n_labels = data["label"].nunique()
    if n_labels > MAX_COLORS and pd.api.types.is_numeric_dtype(data["label"]):
        return {"c": "label", "cmap": "viridis"}
    from bokeh.palettes import Category20

    return {"by": "label", "color": list(PALETTE if n_labels <= len(PALETTE) else Category20[MAX_COLORS])}
