"""What the estimators share: scikit-learn's conventions over Dask collections, and saving."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.validation import check_is_fitted

from daskdl.data.frame import (
    NO_TARGET,
    array_like,
    has_text_names,
    label_column,
    names_column,
    read_frame,
    source_label,
    to_pandas,
)
from daskdl.data.joining import label_names
from daskdl.data.lazy_objects import with_objects
from daskdl.data.rows import Rows, learn, read_rows
from daskdl.data.schema import Schema
from daskdl.data.schema.target import Target
from daskdl.data.sources.base import Source
from daskdl.errors import DataError
from daskdl.estimators import saving
from daskdl.estimators.predict import Outputs, Predictor, predict
from daskdl.run import Run
from daskdl.training.begin import begin
from daskdl.travel import pack

if TYPE_CHECKING:
    from distributed import Client

C = TypeVar("C", bound=type)


def documented_by(parent: type) -> Callable[[C], C]:
    """Put the parameters and attributes that ``parent`` documents into a class's docstring, behind its first line."""

    def decorate(cls: C) -> C:
        first, _, rest = (cls.__doc__ or "").partition("\n\n")
        shared = (parent.__doc__ or "").partition("\n\n")[2].rstrip()
        cls.__doc__ = f"{first}\n\n{shared}\n{rest}"
        return cls

    return decorate


def fit_again(resumed: Any, estimator: Any, X: Any, y: Any, validation_data: Any) -> Any:
    """Go on with a fit; what ``daskdl.resume`` calls."""
    return estimator._fit(resumed, X, y, validation_data)


class DaskEstimator(BaseEstimator):
    """An estimator that takes Dask, pandas or cudf frames, or arrays.

    Subclasses give ``_outputs`` and ``_train``, and ``_model_bytes`` / ``_model_from_bytes`` to be saved.
    """

    _outputs: Outputs
    missing: Any
    model_: Any

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing != "refuse"
        tags.target_tags.required = True
        return tags

    def _unfitted(self) -> Self:
        """Make another with the same parameters, not copied."""
        return type(self)(**self.get_params(deep=False))

    # -- fit --------------------------------------------------------------------------------------------------

    def _client(self, *data: Any) -> Client | None:
        """The client to train with on some data; what cannot be done is refused here, before rows are read."""
        client = begin(None, getattr(self, "checkpoints", None), *data)
        for name, value in self.get_params(deep=False).items() if client is not None else ():
            if not isinstance(value, (str, int, float, type(None))):
                pack(value, name)
        return client

    def _read(self, X: Any, y: Any, client: Any, known: Any = None, needs_label: bool = True, **how: Any) -> Rows:
        """Read and learn, ``how`` as in ``read_rows``: sets ``schema_``, ``target_`` and what scikit-learn knows.

        ``known`` are all classes there will be; without ``y`` there is no target, unless a label is needed.
        """
        classes, kinds = isinstance(self, ClassifierMixin), how.get("kinds")
        if y is None and needs_label:
            raise ValueError(NO_TARGET)
        rows = read_rows(X, y, classes=classes, client=client, **how)
        rows.label.values |= {c: 0 for c in plain_classes(known) if c not in rows.label.values}
        if y is None:
            self.schema_, self.target_ = Schema.from_stats(rows.stats, self.missing, kinds), Target(None)
        else:
            how = {"classes": classes, "missing": self.missing, "kinds": kinds}
            self.schema_, self.target_ = learn(rows, label_names(y), **how)
        self.n_features_in_ = len(self.schema_.columns)
        self.__dict__.pop("feature_names_in_", None)
        if has_text_names(X):
            self.feature_names_in_ = np.array(self.schema_.names, dtype=object)
        if classes:
            self.classes_ = self.target_.classes
        return rows

    def _read_validation(self, validation_data: Any, client: Any, **how: Any) -> Rows | None:
        if validation_data is None:
            return None
        if not isinstance(validation_data, tuple) or len(validation_data) != 2:
            raise TypeError(f"validation_data must be (X, y), got {type(validation_data).__name__}")
        X, y = validation_data
        how = {"kinds": getattr(self, "kinds", None), **how}
        return self._read_known(X, y, client, "validation_data", moments=False, **how)

    def _read_known(self, X: Any, y: Any, client: Any, what: str, needs_label: bool = True, **how: Any) -> Rows:
        """Read more rows, as those of ``fit``; ``what`` names them in messages."""
        if y is None and needs_label:
            raise ValueError(f"{what} {NO_TARGET}")
        if what == "X":
            X = self._with_fit_names(X) if not hasattr(X, "columns") and not isinstance(X, Source) else X
        rows = read_rows(X, y, classes=isinstance(self, ClassifierMixin), client=client, **how)
        if not rows.n_rows:
            raise DataError(f"{what} has no rows; there is nothing to learn from. Look at its filters.")
        self.schema_.check([name for name in rows.stats if not self._is_weight(name)])
        unknown = set(rows.label.values) - set([] if self.target_.classes is None else self.target_.classes.tolist())
        if self.target_.classes is not None and unknown:
            raise DataError(
                f"{what} has labels that training data does not: {sorted(unknown, key=str)[:10]}. Known: "
                f"{self.target_.classes.tolist()[:10]}."
            )
        return rows

    # -- predict ----------------------------------------------------------------------------------------------

    def _predict(self, X: Any, what: str) -> Any:
        check_is_fitted(self, "model_")
        aside = [n for n in X.provenance if n not in self.schema_.names] if isinstance(X, Source) else []
        return array_like(X, predict(self._predictor(), self._with_fit_names(X), what, aside))

    def _predictor(self) -> Predictor:
        return Predictor(self.model_, self.schema_, self.target_, type(self)._outputs, self.target_.names)

    def _without_weights(self, X: Any) -> Any:
        """Drop the column of sampling weights: it is no feature."""
        weights = [name for name in getattr(X, "columns", ()) if self._is_weight(name)]
        return X.drop(columns=weights) if weights else X

    def _is_weight(self, name: Any) -> bool:
        aside = (getattr(self, "sampling", None), *getattr(self, "_set_aside", ()))
        return name in aside and name not in self.schema_.names

    def _read_lazily(self, X: Source) -> Any:
        """Return the rows of a source, with the columns that were in fit or say where a row comes from."""
        if not X.n_rows:
            raise DataError(f"{X!r} has no rows; there is nothing to predict. Look at its path and filters.")
        frame = X.to_dask()
        beside = [name for name in X.provenance if name not in self.schema_.names]
        return frame[[name for name in (*self.schema_.names, *beside) if name in frame.columns]]

    def _with_fit_names(self, X: Any) -> Any:
        """An array has no names: it must have as many columns as in fit, and gets their names."""
        if isinstance(X, Source):
            return self._read_lazily(X)
        frame, names = read_frame(X, getattr(self, "kinds", None))
        frame = self._without_weights(frame)
        if names is None:
            if len(frame.columns) != self.n_features_in_:
                raise ValueError(
                    f"X has {len(frame.columns)} features, but {type(self).__name__} is expecting "
                    f"{self.n_features_in_} features as input."
                )
            frame.columns = self.schema_.names
        return frame

    def predict(self, X: Any) -> Any:
        """Predict labels.

        Parameters
        ----------
        X : Dask, pandas or cudf DataFrame, array of shape (n_rows, n_features), or Source

        Returns
        -------
        dask.dataframe.Series or array of shape (n_rows,)
            Lazy for a Dask frame or a source: predicted on the workers when it is computed. Else computed here. Of
            several labels or outputs: a frame with a column for each, or an array of shape (n_rows, n_outputs).

        Raises
        ------
        DataError
            The columns are not those of ``fit``.
        """
        return self._predict(X, "labels")

    # -- save and load ----------------------------------------------------------------------------------------

    def save(self, path: str) -> None:
        """Write the fitted estimator to a folder, through fsspec: plain JSON and the model's own safe format.

        Nothing in it is a pickle. ``daskdl.load`` reads it back. An estimator that was saved there before is replaced;
        who reads meanwhile finds one or the other. When it fails, nothing of it is left.

        Raises
        ------
        FileExistsError
            The folder has files in it, and no saved estimator.
        TypeError
            A part of the model is neither a dense tensor nor a plain value, or the schema holds code.
        """
        check_is_fitted(self, "model_")
        saving.save(self, path)

    def _save_for_others(self, run: Run) -> None:
        """Save what a run in the background trained, before it ends: who waits for its end finds it."""
        if run.awaited:
            self.save(f"{run.folder}/model")

    def _try_saving(self, run: Run, model: Any = None) -> None:
        """Refuse at the beginning, on a model that has learned nothing yet, what could not be saved at the end."""
        if not run.awaited:
            return
        tried = copy.copy(self)
        tried.model_ = model
        try:
            saving.described(self)
            if model is not None:
                tried._model_bytes()
        except TypeError as error:
            raise TypeError(
                "background=True saves what it has trained, for other processes, and this could not be saved: "
                f"{error} Train without background=True, in this process."
            ) from error

    def _restore(self, about: dict[str, Any], model: bytes) -> Self:
        self.schema_ = Schema.from_dict(about["schema"])
        self.target_ = Target.from_dict(about["target"])
        self.n_features_in_ = len(self.schema_.columns)
        if about["named"]:
            self.feature_names_in_ = np.array(self.schema_.names, dtype=object)
        if isinstance(self, ClassifierMixin):
            self.classes_ = self.target_.classes
        self.model_ = self._model_from_bytes(model, about["model"])
        return self

    def _model_notes(self) -> dict[str, Any]:
        return {}

    def _model_bytes(self) -> bytes:
        raise NotImplementedError

    def _model_from_bytes(self, data: bytes, notes: dict[str, Any]) -> Any:
        raise NotImplementedError


class DaskClassifier(ClassifierMixin, DaskEstimator):
    """What classifiers add: probabilities, and accuracy as the score."""

    def predict_proba(self, X: Any) -> Any:
        """Predict class probabilities.

        Returns
        -------
        dask.dataframe.DataFrame or array of shape (n_rows, n_classes)
            Lazy for a Dask frame: one column per class in the order of ``classes_``, named by the class as text, with
            the frame's index. Else computed here.
        """
        return self._predict(X, "probabilities")

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Mean accuracy. Computes; only the labels and the predictions come to the client."""
        return float(accuracy_score(*_compared(self, X, y), sample_weight=sample_weight))


class DaskRegressor(RegressorMixin, DaskEstimator):
    """What regressors add: R squared as the score."""

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R squared. Computes; only the labels and the predictions come to the client."""
        return float(r2_score(*_compared(self, X, y), sample_weight=sample_weight))


def _compared(estimator: Any, X: Any, y: Any) -> tuple[Any, Any]:
    if y is None:
        raise ValueError(f"score {NO_TARGET}")
    check_is_fitted(estimator, "model_")
    if isinstance(X, Source):
        y = X.to_dask()[source_label(X, y)]
    elif names_column(X, y):
        X, y = label_column(X, y)
    if isinstance(y, da.Array):  # of another kind of graph, which Dask computes apart
        y = y.compute()
    y, found = dask.compute(with_objects(y) if isinstance(y, dd.Series) else y, estimator.predict(X))
    return estimator.target_.known(to_pandas(y)), found


def plain_classes(classes: Any) -> list[Any]:
    """Class labels as Python's own values."""
    return [] if classes is None else [c.item() if isinstance(c, np.generic) else c for c in classes]
