"""Gradient boosted trees on Dask data, with XGBoost."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from daskdl.clients import current_client
from daskdl.data.encoders import TableEncoder
from daskdl.data.pieces import Pieces
from daskdl.data.schema import Missing, Schema
from daskdl.errors import DataError, MissingExtraError
from daskdl.estimators.base import DaskClassifier, DaskEstimator, DaskRegressor, documented_by, fit_again
from daskdl.execution import spmd
from daskdl.execution.interrupts import noted_interrupts
from daskdl.preflight.facts import facts_of_rows
from daskdl.training.checkpoints import Checkpoints
from daskdl.training.commit import Commit, forget_commit
from daskdl.training.following import in_background
from daskdl.training.gangs import Gangs
from daskdl.training.job import NumWorkers, ranks_for, rules_of, started
from daskdl.training.resuming import Resumed, checkpoints_of, remember_call, workers_for

try:
    import xgboost
except ImportError as error:
    raise MissingExtraError(
        "XGBoost is not installed. Install it with daskdl: pip install 'daskdl[cpu]', or 'daskdl[cuda]' for GPUs."
    ) from error

if TYPE_CHECKING:
    from distributed import Client

    from daskdl.data.rows import Rows
    from daskdl.run import Run


class _XGBEstimator(DaskEstimator):
    """Boost trees on all workers of a Dask cluster, from a lazy frame, with XGBoost.

    Categories are split as categories, missing numbers follow the branch learned for them, and the evaluation log goes
    to the run.

    When workers are lost, the others go on from the last commit: about the last half second of rounds is done again,
    or 5 % of the time if a large booster takes longer to commit. The rounds after it use the same bins, so the trees
    are those of an undisturbed run but for the order in which numbers are added up; a run on one worker that is stopped
    and resumed gives the same booster bit by bit. With ``subsample`` or ``colsample_*`` below 1 that is not so: rounds
    after an interruption draw other random rows and columns, as XGBoost does not keep that state.

    Parameters
    ----------
    n_estimators, max_depth, learning_rate, min_child_weight, gamma, subsample, colsample_bytree, reg_lambda, \
reg_alpha, max_bin
        As in XGBoost.
    eval_metric : str or list of str, optional
        XGBoost's metrics. By default the log loss (and, with validation data, the AUC), or the root mean squared error.
    early_stopping_rounds : int, optional
        Stop when the last metric on ``validation_data`` has not improved for so many rounds.
    params : dict, optional
        Any other parameters of XGBoost; they win over the ones above.
    sketch_rows : int
        With at least twice as many rows, histogram bins are learned from a regular sample of about this many, and all
        rows are binned with them. 0 uses all rows.
    missing : {"impute", "refuse"}
        ``"impute"`` leaves missing numbers to XGBoost.
    num_workers : int or (int, int), optional
        Ranks; all workers by default. When workers are lost, training goes on with as few as one, and takes in those
        that join until there are as many again. A pair sets the fewest and the most: below the fewest it waits.
    checkpoints : Checkpoints or str, optional
        Where and how often the state is written, besides what the workers hold in memory; a string is the path. By
        default once a minute and at the end, into the folder of the run.
    seed : int
    name : str, optional
        Of the run.
    verbose : int
        0 shows nothing.

    Attributes
    ----------
    model_ : xgboost.Booster
    best_iteration_ : int
        Last round that counts, from 0.
    schema_ : Schema
    run_ : Run
    n_features_in_ : int
    feature_names_in_ : array of str
        If the names are strings.
    """

    _objective: str
    _metrics: tuple[str, ...]

    def __init__(
        self,
        *,
        n_estimators: int = 100,
        max_depth: int = 6,
        learning_rate: float = 0.3,
        min_child_weight: float = 1.0,
        gamma: float = 0.0,
        subsample: float = 1.0,
        colsample_bytree: float = 1.0,
        reg_lambda: float = 1.0,
        reg_alpha: float = 0.0,
        max_bin: int = 256,
        eval_metric: str | list[str] | None = None,
        early_stopping_rounds: int | None = None,
        params: dict[str, Any] | None = None,
        sketch_rows: int = 262_144,
        missing: Missing = "impute",
        num_workers: NumWorkers = None,
        checkpoints: Checkpoints | str | None = None,
        seed: int = 0,
        name: str | None = None,
        verbose: int = 1,
    ) -> None:
        self.n_estimators = n_estimators
        self.max_depth = max_depth
        self.learning_rate = learning_rate
        self.min_child_weight = min_child_weight
        self.gamma = gamma
        self.subsample = subsample
        self.colsample_bytree = colsample_bytree
        self.reg_lambda = reg_lambda
        self.reg_alpha = reg_alpha
        self.max_bin = max_bin
        self.eval_metric = eval_metric
        self.early_stopping_rounds = early_stopping_rounds
        self.params = params
        self.sketch_rows = sketch_rows
        self.missing = missing
        self.num_workers = num_workers
        self.checkpoints = checkpoints
        self.seed = seed
        self.name = name
        self.verbose = verbose

    def fit(self, X: Any, y: Any, *, validation_data: tuple[Any, Any] | None = None, background: bool = False) -> Self:
        """Train. Blocks until it is done; the rows stay on the workers.

        Parameters
        ----------
        X : Dask, pandas or cudf DataFrame, or array of shape (n_rows, n_features)
        y : Series of length n_rows, or str
            Labels, or the name of their column in ``X``.
        validation_data : tuple, optional
            ``(X, y)``, evaluated after every round.
        background : bool
            Train in a process of its own, which the end of this notebook does not end, and return when the run has
            begun: ``run_`` follows it, as ``daskdl.attach(run_.id)`` does from any notebook. The trained estimator is
            saved in the run's folder: ``daskdl.load(f"{run_.folder}/model")``.

        Returns
        -------
        self

        Raises
        ------
        DataError, NotEnoughWorkers, ValueError
            Before anything is launched.
        RankFailed
            A worker failed, or workers died again and again.
        KeyboardInterrupt
            The cell was interrupted: the ranks stopped after their round, and ``model_`` holds the rounds until then.
            A second interrupt does not wait for it.
        """
        if background:
            call = (fit_again, None, self._unfitted(), X, y, validation_data)
            self.run_ = in_background(current_client(), self.num_workers, *call)
            return self
        return self._fit(None, X, y, validation_data)

    @noted_interrupts()
    def _fit(self, resumed: Resumed | None, X: Any, y: Any, validation_data: tuple[Any, Any] | None) -> Self:
        if self.early_stopping_rounds is not None and validation_data is None:
            raise ValueError(
                f"early_stopping_rounds={self.early_stopping_rounds} needs validation_data=(X, y): it is what is "
                "watched."
            )
        if self.n_estimators < 1:
            raise ValueError(f"n_estimators must be at least 1, got {self.n_estimators}")
        client = current_client()
        rows = self._read(X, y, client, moments=False)
        num_workers = workers_for(resumed, self.num_workers)
        job = _Boost(self, rows, self._read_validation(validation_data, client), client, num_workers)
        own = {k: v for k, v in self.get_params(deep=False).items() if k not in ("name", "verbose", "seed")}
        with started(self.name or "XGBoost", type(self).__name__, own, job, self.verbose, resumed) as run:
            self.run_ = run
            remember_call(run, job.checkpoints, job.fingerprint, fit_again, self._unfitted(), X, y, validation_data)
            raw, self.best_iteration_ = job.run(run, resumed.commit if resumed else None)
            self.model_ = _booster(raw)
            self._save_for_others(run)
        return self

    def _booster_params(self, validated: bool) -> dict[str, Any]:
        names = ("max_depth", "learning_rate", "min_child_weight", "gamma", "subsample", "colsample_bytree",
                 "reg_lambda", "reg_alpha", "max_bin", "seed")  # fmt: skip
        params: dict[str, Any] = {k: getattr(self, k) for k in names}
        params |= {
            "tree_method": "hist",
            "objective": self._objective,
            "eval_metric": list(self._metrics[: 2 if validated else 1]),
        }
        if self.target_.n_classes > 2:
            params |= {"objective": "multi:softprob", "num_class": self.target_.n_classes}
            params["eval_metric"] = ["mlogloss"]
        if self.eval_metric is not None:
            params["eval_metric"] = self.eval_metric
        return params | (self.params or {})

    def _model_bytes(self) -> bytes:
        return bytes(self.model_.save_raw("ubj"))

    def _model_notes(self) -> dict[str, Any]:
        return {"best_iteration": self.best_iteration_}

    def _model_from_bytes(self, data: bytes, notes: dict[str, Any]) -> Any:
        self.best_iteration_ = notes["best_iteration"]
        return _booster(data)


def _booster(raw: bytes | bytearray) -> xgboost.Booster:
    booster = xgboost.Booster()
    booster.load_model(bytearray(raw))
    return booster


class _Boost:
    """A boosting job that is ready to launch: rows on their way to the ranks, nothing running yet."""

    def __init__(
        self,
        estimator: _XGBEstimator,
        rows: Rows,
        validation: Rows | None,
        client: Client | None,
        num_workers: NumWorkers,
    ) -> None:
        from daskdl.training.boost import BoostConfig

        self.client, self.seed, self.n_rows, self.notes = client, estimator.seed, rows.n_rows, rows.notes
        self.total_steps, self.num_workers = estimator.n_estimators, num_workers
        self.checkpoints = rules_of(estimator.checkpoints)
        self.most = max(1, sum(n > 0 for n in rows.counts))
        workers = ranks_for(client, num_workers)
        if (fewest := spmd.span_of(num_workers)[0]) > self.most:
            raise DataError(
                f"num_workers={num_workers} ranks need a partition with rows each, and the data has {self.most}. "
                f"Repartition it: df.repartition(npartitions={2 * fewest})."
            )
        self.workers = workers[: self.most]
        self.facts = facts_of_rows(rows, self.workers)
        self._digests = rows.source.fingerprint if rows.source is not None else [look.digest for look in rows.looks]
        schema, target = estimator.schema_, estimator.target_
        self.config = BoostConfig(
            estimator._booster_params(validation is not None),
            estimator.n_estimators,
            estimator.early_stopping_rounds,
            schema.feature_names,
            schema.feature_types,
            estimator.sketch_rows,
            rows.n_rows,
            validation is not None,
        )
        self._pieces = [
            Pieces(part, TableEncoder(schema, target, part.label_name), self.workers)
            for part in (rows, validation)
            if part is not None
        ]

    @property
    def world_size(self) -> int:
        return max(1, len(self.workers))

    @property
    def fingerprint(self) -> str:
        """Of the rows."""
        return hashlib.sha256(repr(self._digests).encode()).hexdigest()

    def run(self, run: Run, commit: Commit | None = None) -> tuple[bytes, int]:
        """Boost on all ranks, from a commit if one is given; return the booster as UBJSON and its best round."""
        from daskdl.training.boost import boost_rank

        folder, rules = checkpoints_of(run, self.checkpoints, self.workers)
        generation = 0
        try:
            if self.client is None:
                answer = boost_rank(self.config, run.id, rules, run.receive, 0, commit, *self._readers([])[0])
            else:
                gangs = Gangs(self.client, run, self.workers, self.num_workers, self.most, folder)
                answer = gangs(boost_rank, (self.config, run.id, rules, None), self._readers, commit)
                generation = gangs.generation
        finally:
            forget_commit(run.id)  # of a rank in this process
            for pieces in self._pieces:
                pieces.close()
        run.wait_for_messages(answer.n_messages, generation)
        raw, best = answer.value
        return raw, best

    def _readers(self, workers: list[str]) -> list[tuple[Any, ...]]:
        return list(zip(*(pieces.readers(workers) for pieces in self._pieces), strict=True))


@documented_by(_XGBEstimator)
class XGBClassifier(DaskClassifier, _XGBEstimator):
    """Classify rows with gradient boosted trees (XGBoost), grown on all workers of a Dask cluster.

    classes_ : array of shape (n_classes,)

    Examples
    --------
    >>> import pandas as pd
    >>> X = pd.DataFrame({"x": range(100)})
    >>> clf = XGBClassifier(n_estimators=5, verbose=0).fit(X, X.x > 49)
    >>> clf.predict(pd.DataFrame({"x": [3, 97]})).tolist()
    [False, True]
    """

    _objective = "binary:logistic"
    _metrics = ("logloss", "auc")

    @staticmethod
    def _outputs(model: xgboost.Booster, schema: Schema, frame: pd.DataFrame) -> npt.NDArray[np.float32]:
        found = _margins(model, schema, frame)
        return found if found.ndim == 2 else np.stack([1 - found, found], axis=1)


@documented_by(_XGBEstimator)
class XGBRegressor(DaskRegressor, _XGBEstimator):
    """Predict a number with gradient boosted trees (XGBoost), grown on all workers of a Dask cluster.

    Examples
    --------
    >>> import pandas as pd
    >>> X = pd.DataFrame({"x": range(100)})
    >>> reg = XGBRegressor(n_estimators=50, verbose=0).fit(X, 2.0 * X.x)
    >>> bool(abs(reg.predict(pd.DataFrame({"x": [50]}))[0] - 100) < 10)
    True
    """

    _objective = "reg:squarederror"
    _metrics = ("rmse",)

    @staticmethod
    def _outputs(model: xgboost.Booster, schema: Schema, frame: pd.DataFrame) -> npt.NDArray[np.float32]:
        return _margins(model, schema, frame)


def _margins(model: xgboost.Booster, schema: Schema, frame: pd.DataFrame) -> npt.NDArray[np.float32]:
    matrix = xgboost.DMatrix(
        schema.table(frame),
        feature_names=schema.feature_names,
        feature_types=schema.feature_types,
        enable_categorical=True,
    )
    best = model.attr("best_iteration")
    found: npt.NDArray[np.float32] = model.predict(matrix, iteration_range=(0, int(best) + 1) if best else (0, 0))
    return found
