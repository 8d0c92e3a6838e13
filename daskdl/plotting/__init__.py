"""Plots of runs, predictions and models: pure ``*_data`` functions that aggregate, and hvPlot drawings of them.

Every function takes Dask, pandas, cudf or numpy collections. Of lazy ones it brings together counts, sums or a bounded
sample, made where the rows are.
"""

from daskdl.plotting.classification import (
    BINS,
    calibration_data,
    plot_calibration,
    plot_precision_recall,
    plot_roc,
    precision_recall_data,
    roc_data,
)
from daskdl.plotting.confusion import confusion_data, plot_confusion
from daskdl.plotting.drawing import POINTS
from daskdl.plotting.explain import embedding_data, importance_data, plot_embedding, plot_importance
from daskdl.plotting.regression import plot_residuals, residuals_data
from daskdl.plotting.runs import compare, compare_data, plot_run, plot_run_data, run_marks_data

__all__ = [
    "BINS",
    "POINTS",
    "calibration_data",
    "compare",
    "compare_data",
    "confusion_data",
    "embedding_data",
    "importance_data",
    "plot_calibration",
    "plot_confusion",
    "plot_embedding",
    "plot_importance",
    "plot_precision_recall",
    "plot_residuals",
    "plot_roc",
    "plot_run",
    "plot_run_data",
    "precision_recall_data",
    "residuals_data",
    "roc_data",
    "run_marks_data",
]
