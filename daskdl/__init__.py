"""From a Dask DataFrame to a trained model, PyTorch or XGBoost, CPU or GPU, on the cluster you already have."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# name -> module that defines it; loaded on first use, so that `import daskdl` stays light
_NAMES = {
    "connect": "cluster",
    "check": "checking",
    "train": "training.train",
    "Context": "training.context",
    "resume": "training.resuming",
    "attach": "training.following",
    "load_result": "training.train",
    "Checkpoints": "training.checkpoints",
    "load_checkpoint": "training.checkpoints",
    "TorchClassifier": "estimators.torch",
    "TorchRegressor": "estimators.torch",
    "XGBClassifier": "estimators.xgboost",
    "XGBRegressor": "estimators.xgboost",
    "XGBRanker": "estimators.xgboost",
    "TabularNet": "estimators.tabular",
    "Schema": "data.schema",
    "Image": "data.schema",
    "Text": "data.schema",
    "Array": "data.schema",
    "Category": "data.schema",
    "SampleOrder": "data.order",
    "Source": "data.sources.base",
    "ParquetSource": "data.sources.parquet",
    "MemorySource": "data.sources.memory",
    "DatasetSource": "data.sources.dataset",
    "TextSource": "data.sources.files",
    "ImageFolderSource": "data.sources.images",
    "TimeWindows": "data.sources.timewindows",
    "stage": "data.staging.stage",
    "batches": "data.loader",
    "Run": "run",
    "runs": "run",
    "load_run": "run",
    "compare": "plotting",
    "load": "estimators.saving",
}
_MODULES = ("datasets", "errors", "plotting", "spmd")

__all__ = [*_NAMES, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f"daskdl.{_NAMES[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"daskdl.execution.{name}" if name == "spmd" else f"daskdl.{name}")
    else:
        raise AttributeError(f"module 'daskdl' has no attribute {name!r}; it has: {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
