"""Plots of runs and of predictions: pure ``*_data`` functions that aggregate, and hvPlot drawings of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from daskdl.errors import DataError, MissingExtraError
from daskdl.tracking import summary
from daskdl.tracking.colors import AXIS_JS, PALETTE
from daskdl.tracking.run import Run, load_run

if TYPE_CHECKING:
    from holoviews import Layout, Overlay

POINTS = 500  # per curve in a drawing
BINS = 5_000  # of the probabilities, from which curves over any number of rows are made
_HISTOGRAM = {"bin": "int64", "positives": "float64", "negatives": "float64", "p_sum": "float64"}


def plot_run_data(run: Run) -> pd.DataFrame:
    """Return the curves of a run as rows of ``step``, ``metric``, ``value``, at most 500 steps a metric."""
    curves = {name: curve.xy(limit=POINTS) for name, curve in run.record.curves.items()}
    parts = [pd.DataFrame({"step": xs, "metric": name, "value": ys}) for name, (xs, ys) in curves.items()]
    empty = pd.DataFrame({"step": [], "metric": [], "value": []})
    return pd.concat(parts, ignore_index=True) if parts else empty


def plot_run(run: Run, **options: Any) -> Layout:
    """Draw a run: losses in one panel, each other metric in its own.

    Parameters
    ----------
    run : Run
    **options
        Passed to every ``hvplot.line``, such as ``width=400``.
    """
    data = plot_run_data(run)
    losses = summary.loss_names(run.record)
    panels = [("loss", losses)] if losses else []
    panels += [(n, [n]) for n in run.record.curves if n not in losses]
    if not panels:
        raise DataError(f"Run {run.id} has no metrics to draw: it is {run.state} at step {run.record.step}.")
    drawn = [_lines(data[data["metric"].isin(names)], "metric", title, **options) for title, names in panels]
    return _layout(drawn).opts(title=f"{run.name} ({run.algorithm})")


def compare_data(runs: Iterable[Run | str]) -> pd.DataFrame:
    """Return the curves of several runs as rows of ``run``, ``step``, ``metric``, ``value``."""
    found = [load_run(run) if isinstance(run, str) else run for run in runs]
    if not found:
        raise ValueError("Nothing to compare: expected runs or their ids, got none. daskdl.runs() lists them.")
    names = [run.name for run in found]
    labels = [r.name if names.count(r.name) == 1 else f"{r.name} {r.id.split('-', 2)[-1]}" for r in found]
    return pd.concat([plot_run_data(r).assign(run=label) for r, label in zip(found, labels, strict=True)])


def compare(runs: Iterable[Run | str], metrics: Iterable[str] | None = None, **options: Any) -> Layout:
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
    return _layout([_lines(data[data["metric"] == name], "run", name, **options) for name in wanted])


def roc_data(y: Any, p: Any, positive: Any = 1) -> pd.DataFrame:
    """Return the ROC curve as rows of ``threshold``, ``fpr``, ``tpr``, at most 500; ``attrs["auc"]`` is the area.

    Parameters
    ----------
    y : Dask, pandas or numpy collection, shape (n_rows,)
        Labels.
    p : Dask, pandas or numpy collection, shape (n_rows,) or (n_rows, 2)
        Probabilities; of two columns, the second counts.
    positive : default 1
        The label whose probability ``p`` is.

    Notes
    -----
    Computes at once. The probabilities are counted in 5,000 bins, partition by partition, so nothing large
    is brought together; the area is that of the binned curve.
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
    frame = frame.iloc[np.unique(np.linspace(0, len(frame) - 1, POINTS).astype(int))].reset_index(drop=True)
    frame.attrs["auc"] = area
    return frame


def plot_roc(y: Any, p: Any, positive: Any = 1, **options: Any) -> Overlay:
    """Draw the ROC curve with its area and the diagonal of chance; see :func:`roc_data`."""
    data = roc_data(y, p, positive)
    settings = {
        "xlabel": "false positive rate",
        "ylabel": "true positive rate",
        "title": f"AUC {data.attrs['auc']:.4f}",
    }
    line = _hvplot(data).line(x="fpr", y="tpr", **_square(settings | options))
    return _diagonal(xlabel=settings["xlabel"], ylabel=settings["ylabel"]) * line


def calibration_data(y: Any, p: Any, positive: Any = 1, bins: int = 10) -> pd.DataFrame:
    """Return one row per bin of equal width: mean ``predicted`` probability, ``observed`` share, ``rows``.

    Computes at once; parameters as in :func:`roc_data`.
    """
    counts = _histogram(y, p, positive)
    groups = counts.groupby(np.minimum(counts.index * bins // BINS, bins - 1)).sum()
    rows = groups["positives"] + groups["negatives"]
    data = {"predicted": groups["p_sum"] / rows, "observed": groups["positives"] / rows, "rows": rows.astype("int64")}
    return pd.DataFrame(data).reset_index(drop=True)


def plot_calibration(y: Any, p: Any, positive: Any = 1, bins: int = 10, **options: Any) -> Overlay:
    """Draw observed shares over predicted probabilities; on the diagonal the two agree."""
    data = calibration_data(y, p, positive, bins)
    settings = {"xlabel": "predicted probability", "ylabel": "observed share", "title": "Calibration"}
    chart = _hvplot(data)
    line = chart.line(x="predicted", y="observed", **_square(settings | options))
    dots = chart.scatter(x="predicted", y="observed", hover_cols=["rows"], **_square(settings | {"size": 40} | options))
    return _diagonal(xlabel=settings["xlabel"], ylabel=settings["ylabel"]) * line * dots


def _histogram(y: Any, p: Any, positive: Any) -> pd.DataFrame:
    """Count rows per bin of the probability, of Dask collections by a tree over partitions."""
    lazy = [hasattr(v, "__dask_graph__") for v in (y, p)]
    if all(lazy):
        y, p = (_as_dask_frame(v) for v in (y, p))
        if y.npartitions != p.npartitions:
            raise ValueError(
                f"y has {y.npartitions} partitions and p {p.npartitions}, so their rows cannot be paired without "
                "moving them. Make p from the same frame as y: p = clf.predict_proba(frame[features])."
            )
        parts = y.map_partitions(_count, p, positive, meta=_HISTOGRAM, align_dataframes=False)
        return parts.groupby("bin").sum().compute().sort_index()
    if any(lazy):
        raise TypeError("y and p must both be Dask collections or both be in memory; call .compute() on the Dask one.")
    return _count(y, p, positive).set_index("bin")


def _as_dask_frame(values: Any) -> Any:
    import dask.dataframe as dd

    return values if hasattr(values, "map_partitions") else dd.from_dask_array(values)


def _count(y: Any, p: Any, positive: Any) -> pd.DataFrame:
    """Count the rows of one partition per bin; bins without rows are left out. Runs on a worker."""
    labels, chance = _on_host(y).ravel() == positive, _on_host(p).astype("float64")
    chance = chance[:, -1] if chance.ndim == 2 else chance
    if len(labels) != len(chance):
        raise DataError(f"y has {len(labels):,} rows and p {len(chance):,}: expected one probability a row.")
    if not ((chance >= 0) & (chance <= 1)).all():
        raise DataError(
            "p must hold probabilities from 0 to 1; it holds other numbers or NaN. Use clf.predict_proba(X)."
        )
    bins = np.minimum((chance * BINS).astype("int64"), BINS - 1)
    columns = {"positives": labels, "negatives": ~labels, "p_sum": chance}
    counts = {name: np.bincount(bins, weights=weights, minlength=BINS) for name, weights in columns.items()}
    frame = pd.DataFrame({"bin": np.arange(BINS), **counts})
    return frame[(frame["positives"] + frame["negatives"]) > 0]


def _on_host(values: Any) -> np.ndarray[Any, Any]:
    """Return a numpy array of a pandas, cudf, cupy or numpy collection."""
    for method in ("to_numpy", "get"):
        if hasattr(values, method) and not isinstance(values, np.ndarray):
            return np.asarray(getattr(values, method)())
    return np.asarray(values)


def _hvplot(data: pd.DataFrame) -> Any:
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


def _lines(data: pd.DataFrame, by: str, title: str, **options: Any) -> Any:
    settings: dict[str, Any] = {"title": title, "ylabel": "", "width": 420, "height": 260, "color": list(PALETTE)}
    if summary.is_speed(title):
        from bokeh.models import CustomJSTickFormatter

        settings |= {"ylim": (0, None), "yformatter": CustomJSTickFormatter(code=AXIS_JS), "legend": "bottom_right"}
    else:  # away from the curves: losses fall, scores rise
        settings["legend"] = "top_right" if summary.lower_is_better(title) else "bottom_right"
    return _hvplot(data).line(x="step", y="value", by=by, **(settings | options))


def _layout(panels: list[Any]) -> Layout:
    import holoviews as hv

    return hv.Layout(panels).cols(2).opts(shared_axes=False)


def _diagonal(**options: Any) -> Any:
    line = pd.DataFrame({"x": [0.0, 1.0], "y": [0.0, 1.0]})
    return _hvplot(line).line(
        x="x", y="y", **_square({"color": "grey", "line_dash": "dashed", "line_width": 1} | options)
    )


def _square(options: dict[str, Any]) -> dict[str, Any]:
    return {"width": 380, "height": 360, "xlim": (0, 1), "ylim": (0, 1), "color": PALETTE[0]} | options
