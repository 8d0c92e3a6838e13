"""Which classes are taken for which."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from daskdl.errors import DataError
from daskdl.plotting.drawing import ALONE, hvplot
from daskdl.plotting.partitions import Rows, column, fold

if TYPE_CHECKING:
    from holoviews import Overlay

MAX_LABELS = 200
ANNOTATED = 25  # labels up to which a cell has room for its number

Normalize = Literal["true", "pred", "all"]


def confusion_data(y: Any, predicted: Any, normalize: Normalize | None = None) -> pd.DataFrame:
    """Return the confusion matrix: true labels down, predicted ones across; ``attrs["accuracy"]`` is the share right.

    Parameters
    ----------
    y, predicted : Dask, pandas, cudf or numpy collection, shape (n_rows,)
        True and predicted labels of at most 200 classes.
    normalize : {"true", "pred", "all"}, optional
        Give shares of each true label, of each predicted one, or of all rows, instead of numbers of rows.

    Returns
    -------
    DataFrame of shape (n_classes, n_classes)
        Index ``label``, columns ``predicted``, both sorted.

    Raises
    ------
    DataError
        There are missing labels, or more than 200 different ones.
    TypeError, ValueError
        The two cannot be paired row by row, or ``normalize`` is unknown.

    Notes
    -----
    Computes at once; pairs of labels are counted partition by partition.

    Examples
    --------
    >>> confusion_data(["late", "late", "early"], ["late", "early", "early"]).values.tolist()
    [[1, 0], [1, 1]]
    """
    if normalize not in (None, "true", "pred", "all"):
        raise ValueError(f'normalize is "true", "pred", "all" or None, got {normalize!r}')
    pairs = fold(_count_pairs, _add_pairs, y=y, predicted=predicted)
    if not pairs:
        raise DataError("A confusion matrix needs rows; y has none. Look at the filters of the frame.")
    labels = _in_order({label for pair in pairs for label in pair})
    counts = np.array([[pairs[true, guess] for guess in labels] for true in labels], dtype="int64")
    sums = {"true": counts.sum(axis=1, keepdims=True), "pred": counts.sum(axis=0), "all": counts.sum()}
    values = counts if normalize is None else counts / np.maximum(sums[normalize], 1)
    names = pd.Index(labels, name="label"), pd.Index(labels, name="predicted")
    frame = pd.DataFrame(values, index=names[0], columns=names[1])
    frame.attrs["accuracy"] = float(counts.trace() / counts.sum())
    return frame


def plot_confusion(y: Any, predicted: Any, normalize: Normalize | None = None, **options: Any) -> Overlay:
    """Draw the confusion matrix; its cells are annotated up to 25 classes. See :func:`confusion_data`."""
    table = confusion_data(y, predicted, normalize)
    what = "rows" if normalize is None else "share"
    cells = table.set_axis(table.index.map(str)).set_axis(table.columns.map(str), axis=1)
    data = cells.stack().rename(what).rename_axis(["label", "predicted"]).reset_index()
    data["text"] = [f"{v:,}" if normalize is None else f"{v:.2f}" for v in data[what]]
    top = data[what].max() if normalize is None else 1.0
    data["dark"] = data[what] > top / 2
    settings: dict[str, Any] = {"cmap": "Blues", "clim": (0, top), "width": 420, "height": 360, "flip_yaxis": True}
    if len(table) > ANNOTATED:
        side = min(900, 120 + 12 * len(table))
        settings |= {"width": side + 60, "height": side, "rot": 90, "fontsize": {"ticks": "6pt"}}
    settings |= {"colorbar": len(table) > ANNOTATED} | ALONE
    settings |= {"title": f"Accuracy {table.attrs['accuracy']:.4f}", "ylabel": "true label", "xlabel": "predicted"}
    drawing = hvplot(data).heatmap(x="predicted", y="label", C=what, **(settings | options))
    if len(table) <= ANNOTATED:
        drawing = drawing * _annotations(data)
    return drawing


def _annotations(data: pd.DataFrame) -> Any:
    import holoviews as hv

    colors = hv.dim("dark").categorize({True: "white", False: "black"})
    return hv.Labels(data, ["predicted", "label"], ["text", "dark"]).opts(text_color=colors, text_font_size="9pt")


def _count_pairs(y: Rows, predicted: Rows) -> Counter[tuple[Any, Any]]:
    """Count the pairs of true and predicted label of one partition. Runs on a worker."""
    frame = pd.DataFrame({"y": column(y, "y"), "predicted": column(predicted, "predicted")})
    for name, values in frame.items():
        if values.isna().any():
            raise DataError(
                f"{name} holds {values.isna().sum():,} missing labels, which are neither right nor wrong. Leave those "
                "rows out: frame.dropna(subset=[label])."
            )
        _refuse_many(set(values.unique()), str(name))
    sizes = frame.groupby(["y", "predicted"], sort=False).size()
    return Counter(dict(zip(sizes.index, sizes.tolist(), strict=True)))


def _add_pairs(a: Counter[tuple[Any, Any]], b: Counter[tuple[Any, Any]]) -> Counter[tuple[Any, Any]]:
    both = a + b
    for i, name in enumerate(("y", "predicted")):
        _refuse_many({pair[i] for pair in both}, name)
    return both


def _refuse_many(labels: set[Any], name: str) -> None:
    if len(labels) > MAX_LABELS:
        some = ", ".join(repr(x.item() if isinstance(x, np.generic) else x) for x in sorted(labels, key=str)[:3])
        raise DataError(
            f"{name} has {len(labels):,} different values or more, such as {some}, and a confusion matrix shows at "
            f"most {MAX_LABELS} classes. Give labels, as clf.predict(X) does, not probabilities or numbers to regress "
            "on; or group rare classes."
        )


def _in_order(labels: set[Any]) -> list[Any]:
    try:
        return sorted(labels)
    except TypeError:  # of several types
        return sorted(labels, key=lambda label: (type(label).__name__, str(label)))
