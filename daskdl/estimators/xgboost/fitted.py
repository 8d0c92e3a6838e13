"""What trees do once they are grown: predict, explain, be kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xgboost
from sklearn.utils.validation import check_is_fitted

from daskdl.data.frame import array_like
from daskdl.data.joining import joined
from daskdl.data.sources.base import Source
from daskdl.estimators.base import DaskEstimator
from daskdl.estimators.predict import predict
from daskdl.estimators.xgboost.predicting import NO_PROBABILITIES, TreePredictor
from daskdl.estimators.xgboost.start import booster_of


class FittedTrees(DaskEstimator):
    """A booster, and what is known of it."""

    model_: xgboost.Booster
    importance_type: str | None
    best_iteration_: int
    best_score_: float | None
    objective_: str
    _aside: list[str]
    _numbers_named: list[Any]

    # -- predict ----------------------------------------------------------------------------------------------

    def predict(
        self, X: Any, *, output_margin: bool = False, iteration_range: Any = None, base_margin: Any = None
    ) -> Any:
        """Predict labels, in their own unit.

        Parameters
        ----------
        X : Dask, pandas or cudf DataFrame, array of shape (n_rows, n_features), or Source
        output_margin : bool
            What the trees add up to, before the objective's link.
        iteration_range : (int, int), optional
            Rounds that count, the second not included; by default up to the best one.
        base_margin : Series, array or str, optional
            As in ``fit``.

        Returns
        -------
        dask.dataframe.Series or array of shape (n_rows,)
            Lazy for a Dask frame or a source: predicted on the workers when it is computed. Else computed here. Of
            several labels or quantiles a lazy frame with a column each, or an array of shape (n_rows, n_outputs).

        Raises
        ------
        DataError
            The columns are not those of ``fit``.
        """
        what = "margins" if output_margin else "labels"
        return self._ask(X, what, iteration_range, base_margin)

    def predict_contributions(
        self, X: Any, *, interactions: bool = False, approximate: bool = False, iteration_range: Any = None
    ) -> Any:
        """Say how much each feature adds to the margin of each row (SHAP values), and the bias.

        Parameters
        ----------
        X
            As in ``predict``.
        interactions : bool
            Of each pair of features.
        approximate : bool
            By the faster way of Saabas, "Interpreting random forests" (2014).
        iteration_range : (int, int), optional
            As in ``predict``.

        Returns
        -------
        dask.dataframe.DataFrame or pandas.DataFrame
            Lazy if ``X`` is. A column for each feature by its name, then ``bias``; a row adds up to its margin. Of
            several classes ``"<class>: <feature>"``.
        """
        what = "interactions" if interactions else "contributions"
        return self._ask(X, what, iteration_range, approximate=approximate)

    def apply(self, X: Any, *, iteration_range: Any = None) -> Any:
        """Return the leaf that each row falls into: a frame with a column for each tree, lazy if ``X`` is."""
        return self._ask(X, "leaves", iteration_range)

    def _predict(self, X: Any, what: str) -> Any:
        return self._ask(X, what)

    def _ask(
        self, X: Any, what: str, iteration_range: Any = None, base_margin: Any = None, approximate: bool = False
    ) -> Any:
        check_is_fitted(self, "model_")
        if what == "probabilities" and self.objective_ in NO_PROBABILITIES:
            raise ValueError(NO_PROBABILITIES[self.objective_])
        aside = [n for n in X.provenance if n not in self.schema_.names] if isinstance(X, Source) else []
        beside: tuple[Any, ...] = ()
        if base_margin is not None:
            if isinstance(X, Source):
                X = X.to_dask()
            X, _, columns = joined(X, None, extras={"base_margin": base_margin})
            beside = columns["base_margin"]
        frame = self._with_fit_names(X) if not beside else self._without_weights(X)
        best = self.model_.attr("best_iteration")
        rounds = iteration_range or ((0, int(best) + 1) if best else (0, 0))
        names = tuple(self._outputs_of_rows)
        how = (self.objective_, names, (int(rounds[0]), int(rounds[1])), approximate, beside)
        predictor = TreePredictor(self.model_, self.schema_, self.target_, *how)
        return array_like(X, predict(predictor, frame, what, aside, beside))

    def _is_weight(self, name: Any) -> bool:
        return name in self._aside and name not in self.schema_.names

    @property
    def _outputs_of_rows(self) -> list[Any]:
        """Names of several outputs."""
        return self._numbers_named if self.target_.classes is None else pd.Index(self.target_.classes).tolist()

    # -- what was learned -------------------------------------------------------------------------------------

    @property
    def feature_importances_(self) -> pd.Series:
        """Share of each feature in what the splits gain (or what ``importance_type`` says), by its name."""
        check_is_fitted(self, "model_")
        linear = self.model_.save_config().find('"name":"gblinear"') >= 0
        kind = self.importance_type or ("weight" if linear else "gain")
        scores = self.model_.get_score(importance_type=kind)
        found = [np.sum(scores.get(name, 0.0)) for name in self.schema_.feature_names]
        values = pd.Series(found, index=self.schema_.feature_labels, dtype=np.float64)
        return values / values.sum() if values.sum() else values

    # -- save and load ----------------------------------------------------------------------------------------

    def _model_bytes(self) -> bytes:
        return bytes(self.model_.save_raw("ubj"))

    def _model_notes(self) -> dict[str, Any]:
        notes = {"best_iteration": self.best_iteration_, "best_score": self.best_score_, "objective": self.objective_}
        return {**notes, "aside": self._aside, "outputs": self._numbers_named}

    def _model_from_bytes(self, data: bytes, notes: dict[str, Any]) -> Any:
        self.best_iteration_, self.best_score_ = notes["best_iteration"], notes["best_score"]
        self.objective_, self._aside, self._numbers_named = notes["objective"], notes["aside"], notes["outputs"]
        return booster_of(data)
