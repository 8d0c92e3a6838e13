"""A booster that is gone on with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import xgboost

from daskdl.data.schema import Schema
from daskdl.data.schema.target import Target
from daskdl.errors import DataError
from daskdl.estimators.base import DaskEstimator


@dataclass(frozen=True)
class Start:
    """What is known of it; the encoding of its rows, if an estimator of daskdl trained it."""

    raw: bytes
    schema: Schema | None = None
    target: Target | None = None

    def check(self, schema: Schema, target: Target) -> tuple[Schema, Target]:
        """Return the encoding with which it is gone on; refuse rows of other columns or classes.

        Raises
        ------
        DataError
        """
        if self.schema is not None and self.target is not None:
            self.schema.check(schema.names)
            old, new = self.target.classes, target.classes
            if new is not None and old is not None and not set(new.tolist()) <= set(old.tolist()):
                raise DataError(
                    f"y has classes that xgb_model was not trained on: {sorted(set(new) - set(old), key=str)[:5]}. A "
                    "booster cannot learn new ones: train from the beginning."
                )
            return self.schema, self.target
        booster = booster_of(self.raw)
        if booster.num_features() != len(schema.feature_names):
            raise DataError(
                f"xgb_model has {booster.num_features()} features, and X becomes {len(schema.feature_names)}: "
                f"{schema.feature_names[:10]}. Select the columns it was trained on."
            )
        names = booster.feature_names
        if names and names != schema.feature_names:
            raise DataError(f"xgb_model has the features {names[:20]}, and X becomes {schema.feature_names[:20]}.")
        if "c" in schema.feature_types:
            raise DataError(
                "xgb_model is a bare booster, which does not say which code stands for which category, and X has "
                "categories. Go on from a fitted daskdl estimator, or from its folder."
            )
        return schema, target


def start_of(given: Any) -> Start | None:
    """Take a booster, an estimator of daskdl's or XGBoost's, or the path of one.

    Raises
    ------
    TypeError, ValueError
        It is none of these.
    """
    if given is None:
        return None
    if isinstance(given, (str, os.PathLike)):
        path = os.fspath(given)
        if os.path.isdir(path):
            from daskdl.estimators.saving import load

            return start_of(load(path))
        booster = xgboost.Booster()
        try:
            booster.load_model(path)
        except xgboost.core.XGBoostError as error:
            raise ValueError(f"xgb_model={path!r} cannot be read as a booster: {str(error).splitlines()[0]}") from error
        return start_of(booster)
    if isinstance(given, DaskEstimator) and isinstance(getattr(given, "model_", None), xgboost.Booster):
        return Start(_raw(given.model_), given.schema_, given.target_)
    if isinstance(given, xgboost.XGBModel):
        return Start(_raw(given.get_booster()))
    if isinstance(given, xgboost.Booster):
        return Start(_raw(given))
    raise TypeError(f"xgb_model must be a Booster, a fitted estimator or the path of one, got {type(given).__name__}.")


def _raw(booster: xgboost.Booster) -> bytes:
    """The booster without what early stopping noted in it: that is of the rounds before."""
    copy = booster_of(booster.save_raw("ubj"))
    copy.set_attr(best_iteration=None, best_score=None)
    return bytes(copy.save_raw("ubj"))


def booster_of(raw: bytes | bytearray) -> xgboost.Booster:
    """Read a booster."""
    booster = xgboost.Booster()
    booster.load_model(bytearray(raw))
    return booster
