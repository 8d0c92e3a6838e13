"""Gradient boosted trees on Dask data, with XGBoost."""

from daskdl.errors import MissingExtraError

try:
    import xgboost  # noqa: F401
except ImportError as error:
    raise MissingExtraError(
        "XGBoost is not installed. Install it with daskdl: pip install 'daskdl[cpu]', or 'daskdl[cuda]' for GPUs."
    ) from error

from daskdl.estimators.xgboost.classes import XGBClassifier, XGBRanker, XGBRegressor

__all__ = ["XGBClassifier", "XGBRanker", "XGBRegressor"]
