"""How well probabilities tell two classes apart: ROC, precision and recall, calibration."""

from __future__ import annotations

from functools import partial
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from daskdl.errors import DataError
from daskdl.plotting.drawing import POINTS, hvplot, reference, square
from daskdl.plotting.partitions import Rows, column, fold

if TYPE_CHECKING:
    from holoviews import Overlay

BINS = 5_000  # of the probabilities, from which curves over any number of rows are made


def roc_data(y: Any, p: Any, positive: Any = 1) -> pd.DataFrame:
    """Return the ROC curve as rows of ``threshold``, ``fpr``, ``tpr``, at most 500; ``attrs["auc"]`` is the area.

    Parameters
    ----------
    y : Dask, pandas, cudf or numpy collection, shape (n_rows,)
        Labels.
    p : Dask, pandas, cudf or numpy collection, shape (n_rows,) or (n_rows, 2)
        Probabilities; of two columns, the second counts.
    positive : default 1
        The label whose probability ``p`` is.

    Raises
    ------
    DataError
        ``p`` holds no probabilities, or ``y`` has only one kind of labels.
    TypeError, ValueError
        The two cannot be paired row by row.

    Notes
    -----
    Computes at once. The probabilities are counted in 5,000 bins, partition by partition, so nothing large
    is brought together; the area is that of the binned curve.

    Examples
    --------
    >>> roc_data([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9]).attrs["auc"]
    0.75
    """
    counts = _histogram(y, p, positive).iloc[::-1]
    if not counts["positives"].sum() or not counts["negatives"].sum():
        raise DataError(
            f"A ROC curve needs rows with the label {positive!r} and rows with another; y has only one kind."
        )
    tpr = np.concatenate([[0.0], counts["positives"].cumsum() / counts["positives"].sum()])
    fpr = np.concatenate([[0.0], counts["negatives"].cumsum() / counts["negatives"].sum()])
    frame = pd.DataFrame({"threshold": np.concatenate([[1.0], counts.index / BINS]), "fpr": fpr, "tpr": tpr})
    area = float(np.trapezoid(tpr, fpr))
    frame = _thinned(frame)
    frame.attrs["auc"] = area
    return frame


def plot_roc(y: Any, p: Any, positive: Any = 1, **options: Any) -> Overlay:
    """Draw the ROC curve with its area and the diagonal of chance; see :func:`roc_data`."""
    data = roc_data(y, p, positive)
    labels = {"xlabel": "false positive rate", "ylabel": "true positive rate"}
    settings = labels | {"title": f"AUC {data.attrs['auc']:.4f}"} | options
    line = hvplot(data).line(x="fpr", y="tpr", **square(settings))
    return _diagonal(**labels) * line


def precision_recall_data(y: Any, p: Any, positive: Any = 1) -> pd.DataFrame:
    """Return the precision-recall curve as rows of ``threshold``, ``precision``, ``recall``, at most 500.

    Recall rises from row to row. ``attrs["average_precision"]`` is the mean of the precision over the steps of the
    recall, as scikit-learn has it, and ``attrs["positives"]`` the share of positive rows, which is the precision of
    chance. Computes at once, from the same counts as :func:`roc_data`; parameters and errors are the same.

    Examples
    --------
    >>> precision_recall_data([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9])[["precision", "recall"]].round(2).values.tolist()
    [[1.0, 0.0], [1.0, 0.5], [0.5, 0.5], [0.67, 1.0], [0.5, 1.0]]
    """
    counts = _histogram(y, p, positive).iloc[::-1]
    total = counts["positives"].sum()
    if not total:
        raise DataError(
            f"A precision-recall curve needs rows with the label {positive!r}; y has none. Say which label p is the "
            "probability of: positive=..."
        )
    found = counts["positives"].cumsum().to_numpy()
    rows = (counts["positives"] + counts["negatives"]).cumsum().to_numpy()
    recall = np.concatenate([[0.0], found / total])
    precision = np.concatenate([[1.0], found / rows])
    thresholds = np.concatenate([[1.0], counts.index / BINS])
    average = float(np.sum(np.diff(recall) * precision[1:]))
    frame = _thinned(pd.DataFrame({"threshold": thresholds, "precision": precision, "recall": recall}))
    frame.attrs |= {"average_precision": average, "positives": float(total / rows[-1])}
    return frame


def plot_precision_recall(y: Any, p: Any, positive: Any = 1, **options: Any) -> Overlay:
    """Draw precision over recall, and the precision of chance; see :func:`precision_recall_data`."""
    data = precision_recall_data(y, p, positive)
    labels = {"xlabel": "recall", "ylabel": "precision"}
    settings = labels | {"title": f"Average precision {data.attrs['average_precision']:.4f}"} | options
    line = hvplot(data).line(x="recall", y="precision", **square(settings))
    chance = data.attrs["positives"]
    return reference((0.0, 1.0), (chance, chance), **square(labels | {"color": "grey"})) * line


def calibration_data(y: Any, p: Any, positive: Any = 1, bins: int = 10) -> pd.DataFrame:
    """Return one row per bin of equal width: mean ``predicted`` probability, ``observed`` share, ``rows``.

    Computes at once; parameters as in :func:`roc_data`.

    Examples
    --------
    >>> calibration_data([0, 0, 1, 1], [0.25, 0.25, 0.25, 1.0], bins=2).round(2).values.tolist()
    [[0.25, 0.33, 3.0], [1.0, 1.0, 1.0]]
    """
    counts = _histogram(y, p, positive)
    groups = counts.groupby(np.minimum(counts.index * bins // BINS, bins - 1)).sum()
    rows = groups["positives"] + groups["negatives"]
    data = {"predicted": groups["p_sum"] / rows, "observed": groups["positives"] / rows, "rows": rows.astype("int64")}
    return pd.DataFrame(data).reset_index(drop=True)


def plot_calibration(y: Any, p: Any, positive: Any = 1, bins: int = 10, **options: Any) -> Overlay:
    """Draw observed shares over predicted probabilities; on the diagonal the two agree."""
    data = calibration_data(y, p, positive, bins)
    labels = {"xlabel": "predicted probability", "ylabel": "observed share"}
    settings = square(labels | {"title": "Calibration"} | options)
    chart = hvplot(data)
    line = chart.line(x="predicted", y="observed", **settings)
    dots = chart.scatter(x="predicted", y="observed", hover_cols=["rows"], **({"size": 40} | settings))
    return _diagonal(**labels) * line * dots


def _thinned(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[np.unique(np.linspace(0, len(frame) - 1, POINTS).astype(int))].reset_index(drop=True)


def _histogram(y: Any, p: Any, positive: Any) -> pd.DataFrame:
    """Count rows per bin of the probability; bins without rows are left out."""
    counts = fold(partial(_count, positive), add, y=y, p=p)
    frame = pd.DataFrame(counts.T, columns=["positives", "negatives", "p_sum"]).rename_axis("bin")
    return frame[(frame["positives"] + frame["negatives"]) > 0]


def _count(positive: Any, y: Rows, p: Rows) -> npt.NDArray[np.float64]:
    """Count the positive and the negative rows, and add up the probabilities, per bin: (3, BINS). Runs on a worker."""
    y, chance = column(y, "y"), p.astype("float64")
    if pd.isna(y).any():
        raise DataError("y holds missing labels. Leave those rows out: frame.dropna(subset=[label]).")
    labels = np.asarray(y == positive, dtype=bool)
    if chance.ndim == 2 and chance.shape[1] > 2:
        raise DataError(
            f"p has {chance.shape[1]} columns: expected the probability of the label {positive!r}, or one column for "
            "each of two labels. Of several classes give the column of one: p[label], with positive=label."
        )
    chance = chance[:, -1] if chance.ndim == 2 else chance
    if not ((chance >= 0) & (chance <= 1)).all():
        raise DataError(
            "p must hold probabilities from 0 to 1; it holds other numbers or NaN. Use clf.predict_proba(X)."
        )
    bins = np.minimum((chance * BINS).astype("int64"), BINS - 1)
    return np.stack([np.bincount(bins, weights=weights, minlength=BINS) for weights in (labels, ~labels, chance)])


def _diagonal(**labels: Any) -> Any:
    return reference((0.0, 1.0), (0.0, 1.0), **square({"color": "grey"} | labels))
