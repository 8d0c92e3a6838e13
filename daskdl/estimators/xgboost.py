"""Gradient boosted trees on Dask data, with XGBoost."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from distributed import get_worker, wait

from daskdl.data.encoders import TableEncoder
from daskdl.data.schema import Missing, Schema
from daskdl.errors import DataError, MissingExtraError
from daskdl.estimators.base import DaskClassifier, DaskEstimator, DaskRegressor, documented_by
from daskdl.execution import spmd
from daskdl.preflight.facts import facts_of_rows
from daskdl.training.gangs import unwrapped
from daskdl.training.job import current_client, started

try:
    import xgboost
except ImportError as error:
    raise MissingExtraError(
        "XGBoost is not installed. Install it with daskdl: pip install 'daskdl[cpu]', or 'daskdl[cuda]' for GPUs."
    ) from error

if TYPE_CHECKING:
    from distributed import Client

    from daskdl.data.rows import Rows
    from daskdl.tracking.run import Run


class _XGBEstimator(DaskEstimator):
    """Boost trees on all workers of a Dask cluster, from a lazy frame, with XGBoost.

    Categories are split as categories, missing numbers follow the branch learned for them, and the evaluation log goes
    to the run.

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
    num_workers : int, optional
        Ranks; all workers by default.
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
        num_workers: int | None = None,
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
        self.seed = seed
        self.name = name
        self.verbose = verbose

    def fit(self, X: Any, y: Any, *, validation_data: tuple[Any, Any] | None = None) -> Self:
        """Train. Blocks until it is done; the rows stay on the workers.

        Parameters
        ----------
        X : Dask, pandas or cudf DataFrame, or array of shape (n_rows, n_features)
        y : Series of length n_rows, or str
            Labels, or the name of their column in ``X``.
        validation_data : tuple, optional
            ``(X, y)``, evaluated after every round.

        Returns
        -------
        self

        Raises
        ------
        DataError, NotEnoughWorkers, ValueError
            Before anything is launched.
        RankFailed
            A worker failed or died.
        """
        if self.early_stopping_rounds is not None and validation_data is None:
            raise ValueError(
                f"early_stopping_rounds={self.early_stopping_rounds} needs validation_data=(X, y): it is what is "
                "watched."
            )
        if self.n_estimators < 1:
            raise ValueError(f"n_estimators must be at least 1, got {self.n_estimators}")
        client = current_client()
        rows = self._read(X, y, client, moments=False)
        job = _Boost(self, rows, self._read_validation(validation_data, client), client)
        own = {k: v for k, v in self.get_params(deep=False).items() if k not in ("name", "verbose", "seed")}
        with started(self.name or "XGBoost", type(self).__name__, own, job, self.verbose) as run:
            self.run_ = run
            raw, self.best_iteration_ = job.run(run)
        self.model_ = _booster(raw)
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
    """A boosting job that is ready to launch: blocks laid on ranks, nothing running yet."""

    def __init__(self, estimator: _XGBEstimator, rows: Rows, validation: Rows | None, client: Client | None) -> None:
        from daskdl.training.boost import BoostConfig

        self.client, self.seed, self.n_rows, self.notes = client, estimator.seed, rows.n_rows, rows.notes
        self.total_steps = estimator.n_estimators
        self.workers: list[str] = []
        filled = [n for n in rows.counts if n]
        if client is not None:
            self.workers = spmd.choose_workers(client, estimator.num_workers)
            if estimator.num_workers is not None and len(filled) < estimator.num_workers:
                raise DataError(
                    f"num_workers={estimator.num_workers} ranks need a partition with rows each, and the data has "
                    f"{len(filled)}. Repartition it: df.repartition(npartitions={2 * estimator.num_workers})."
                )
            self.workers = self.workers[: max(1, len(filled))]
        elif estimator.num_workers not in (None, 1):
            raise ValueError(
                f"num_workers={estimator.num_workers} needs a cluster, and there is no Dask client. Start one: "
                "daskdl.connect()."
            )
        self.facts = facts_of_rows(rows, self.workers)
        schema, target = estimator.schema_, estimator.target_
        self.config = BoostConfig(
            estimator._booster_params(validation is not None),
            estimator.n_estimators,
            estimator.early_stopping_rounds,
            schema.feature_names,
            schema.feature_types,
            estimator.sketch_rows,
            rows.n_rows,
        )
        homes = _homes(client, rows, self.workers)
        owners = balanced(rows.counts, homes, self.world_size)
        places = (lambda i: [self.workers[owners[i]]]) if self.workers else (lambda i: None)
        blocks = rows.encode(TableEncoder(schema, target, rows.label_name), places)
        self.blocks = [
            [b for b, o, n in zip(blocks, owners, rows.counts, strict=True) if o == r and n]
            for r in range(self.world_size)
        ]
        self.validation: list[list[Any]] = [[] for _ in range(self.world_size)]
        if validation is not None:
            more = validation.encode(TableEncoder(schema, target, validation.label_name))
            self.validation = [more[r :: self.world_size] or more[:1] for r in range(self.world_size)]

    @property
    def world_size(self) -> int:
        return max(1, len(self.workers))

    def run(self, run: Run) -> tuple[bytes, int]:
        """Boost on all ranks; return the booster as UBJSON and its best round."""
        from daskdl.training.boost import boost_rank

        if self.client is None:
            answer = boost_rank(self.config, run.id, run.receive, False, self.blocks[0], self.validation[0])
        else:
            answer = unwrapped(
                spmd.run,
                boost_in_gang,
                self.config,
                run.id,
                rank_args=list(zip(self.blocks, self.validation, strict=True)),
                workers=self.workers,
                client=self.client,
            )[0]
        assert answer is not None
        raw, best, n_messages = answer
        self.blocks = self.validation = []
        run.wait_for_messages(n_messages)
        return bytes(raw), best


def boost_in_gang(config: Any, run: str, blocks: list[Any], validation: list[Any]) -> Any:
    """One rank of a boosting gang; runs in a worker."""
    from daskdl.training.boost import boost_rank
    from daskdl.tracking.record import TOPIC

    return boost_rank(config, run, partial(get_worker().log_event, TOPIC), True, blocks, validation)


def _homes(client: Client | None, rows: Rows, workers: list[str]) -> list[int | None]:
    """Rank whose worker already holds each piece; rows of a source are on none."""
    if client is None or rows.source is not None:
        return [None] * len(rows.pieces)
    wait(rows.pieces)
    held = client.who_has(rows.pieces)
    return [next((workers.index(a) for a in held.get(p.key, ()) if a in workers), None) for p in rows.pieces]


def balanced(counts: list[int], homes: list[int | None], n_ranks: int) -> list[int]:
    """Give each piece to a rank: where it lies, as long as that rank stays within a tenth of an equal share.

    Every rank gets a piece with rows, if there are as many.
    """
    load = [0] * n_ranks
    owners = [0] * len(counts)
    most = 1.1 * sum(counts) / n_ranks
    for piece in sorted(range(len(counts)), key=lambda p: -counts[p]):
        home = homes[piece]
        stays = home is not None and load[home] + counts[piece] <= most
        owners[piece] = home if stays and home is not None else load.index(min(load))
        load[owners[piece]] += counts[piece]
    for rank in (r for r in range(n_ranks) if not load[r]):
        giver = max(range(n_ranks), key=lambda r: sum(o == r and n > 0 for o, n in zip(owners, counts, strict=True)))
        owners[min((p for p, o in enumerate(owners) if o == giver and counts[p]), key=lambda p: counts[p])] = rank
    return owners


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
