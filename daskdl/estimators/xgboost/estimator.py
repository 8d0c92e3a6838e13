"""What the estimators of trees share: XGBoost on all workers of a Dask cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from sklearn.base import ClassifierMixin

from daskdl.clients import current_client
from daskdl.data.joining import label_names
from daskdl.data.rows import Rows
from daskdl.data.schema import Missing
from daskdl.estimators.xgboost.configured import configured, tried_alone
from daskdl.estimators.xgboost.fitted import FittedTrees
from daskdl.estimators.xgboost.job import BoostJob, ranks_wanted
from daskdl.estimators.xgboost.objectives import one_rank_only
from daskdl.estimators.xgboost.params import Wanted, refuse_unknown, wanted, with_remedies
from daskdl.estimators.xgboost.sets import Sets, sets_of
from daskdl.estimators.xgboost.start import Start, booster_of, start_of
from daskdl.execution.interrupts import noted_interrupts
from daskdl.training.checkpoints import Checkpoints
from daskdl.training.following import in_background
from daskdl.training.job import NumWorkers, started
from daskdl.training.resuming import Resumed, remember_call, workers_for


def boost_again(resumed: Any, estimator: Any, *call: Any) -> Any:
    """Go on with a fit; what ``daskdl.resume`` calls."""
    return estimator._fit(resumed, *call)


class XGBEstimator(FittedTrees):
    """Boost trees on all workers of a Dask cluster, from a lazy frame, with XGBoost.

    Labels are taken as they are, in their own unit, and so is everything that XGBoost says of them. Categories are
    split as categories, missing numbers follow the branch learned for them, and the evaluation log goes to the run.

    When workers are lost, the others go on from the last commit: about the last half second of rounds is done again,
    or 5 % of the time if a large booster takes longer to commit. The rounds after it use the same bins, so the trees
    are those of an undisturbed run but for the order in which numbers are added up; a run on one worker that is stopped
    and resumed gives the same booster bit by bit. With ``subsample`` or ``colsample_*`` below 1, and with DART, that is
    not so: rounds after an interruption draw other random rows, columns and trees, as XGBoost does not keep that state.

    Parameters
    ----------
    n_estimators : int
        Rounds.
    max_depth, learning_rate, min_child_weight, gamma, subsample, colsample_bytree, colsample_bylevel, \
colsample_bynode, reg_lambda, reg_alpha, max_bin, max_leaves, grow_policy, max_delta_step, sampling_method, \
scale_pos_weight, base_score, num_parallel_tree, multi_strategy, max_cat_to_onehot, max_cat_threshold, booster, \
tree_method, device
        As in XGBoost; None is XGBoost's own default.
    objective : str or callable, optional
        One of XGBoost's, or a function ``(y_true, y_pred)``, or with ``sample_weight`` besides, that returns gradient
        and hessian of its rank's rows. What such a function predicts is its margin.
    monotone_constraints : dict, list or str, optional
        1, -1 or 0 by the name of a column or its place.
    interaction_constraints : list of lists, or str, optional
        Columns, by name or place, that may be used together.
    feature_weights : list or dict, optional
        How often each column is drawn by ``colsample_*``, in order or by name.
    eval_metric : str, callable or list, optional
        XGBoost's metrics, and functions ``(y_true, y_pred)`` of all rows that are evaluated. By default XGBoost's own
        for the objective, and for two classes, with validation data, the AUC.
    early_stopping_rounds : int, optional
        Stop when the last metric on the last ``validation_data`` has not improved for so many rounds.
    callbacks : list of xgboost.callback.TrainingCallback, optional
        Called in every rank. After a loss they are called anew, as they were given, from the round of the commit on;
        ``EarlyStopping`` and ``LearningRateScheduler`` go on where they were.
    class_weight : dict or "balanced", optional
        Of a classifier: what the weights of rows are multiplied with.
    params : dict, optional
        Any other parameters of XGBoost, under any of its names. One that is given twice is refused.
    importance_type : str, optional
        Of ``feature_importances_``: ``"gain"`` by default.
    sketch_rows : int
        With at least twice as many rows, histogram bins are learned from a regular sample of about this many, and all
        rows are binned with them. 0 uses all rows.
    missing : {"impute", "refuse"}
        ``"impute"`` leaves missing numbers to XGBoost.
    num_workers : int or (int, int), optional
        Ranks; all workers by default, or one where XGBoost does it on one only. When workers are lost, training goes on
        with as few as one, and takes in those that join until there are as many again. A pair sets the fewest and the
        most: below the fewest it waits.
    checkpoints : Checkpoints or str, optional
        Where and how often the state is written, besides what the workers hold in memory; a string is the path. By
        default once a minute and at the end, into the folder of the run.
    n_jobs : int, optional
        Threads of each rank, at most those of its worker.
    random_state : int, optional
        The seed, as scikit-learn spells it.
    seed : int
    name : str, optional
        Of the run.
    verbose : int
        0 shows nothing.

    Attributes
    ----------
    model_ : xgboost.Booster
        Its features are called ``schema_.feature_names``.
    best_iteration_ : int
        Last round that counts, from 0.
    best_score_ : float or None
        Of that round, with early stopping.
    evals_result_ : dict
        ``{"train": {"rmse": [...]}, "val": {...}}``, one value for each round.
    feature_importances_ : Series
        By the names of columns.
    objective_ : str
        ``"custom"`` if it is a function.
    schema_ : Schema
    run_ : Run
    n_features_in_ : int
    feature_names_in_ : array of str
        If the names are strings.
    """

    n_estimators: int
    missing: Missing
    num_workers: NumWorkers
    checkpoints: Any
    params: dict[str, Any] | None
    class_weight: Any
    sketch_rows: int
    seed: int
    name: str | None
    verbose: int
    evals_result_: dict[str, dict[str, list[float]]]

    @with_remedies
    def __init__(
        self,
        *,
        n_estimators: int = 100,
        max_depth: int | None = None,
        learning_rate: float | None = None,
        min_child_weight: float | None = None,
        gamma: float | None = None,
        subsample: float | None = None,
        colsample_bytree: float | None = None,
        colsample_bylevel: float | None = None,
        colsample_bynode: float | None = None,
        reg_lambda: float | None = None,
        reg_alpha: float | None = None,
        max_bin: int | None = None,
        max_leaves: int | None = None,
        grow_policy: str | None = None,
        max_delta_step: float | None = None,
        sampling_method: str | None = None,
        scale_pos_weight: float | None = None,
        base_score: float | None = None,
        num_parallel_tree: int | None = None,
        multi_strategy: str | None = None,
        max_cat_to_onehot: int | None = None,
        max_cat_threshold: int | None = None,
        booster: str | None = None,
        tree_method: str | None = None,
        device: str | None = None,
        objective: Any = None,
        monotone_constraints: Any = None,
        interaction_constraints: Any = None,
        feature_weights: Any = None,
        eval_metric: Any = None,
        early_stopping_rounds: int | None = None,
        callbacks: Any = None,
        class_weight: Any = None,
        params: dict[str, Any] | None = None,
        importance_type: str | None = None,
        sketch_rows: int = 262_144,
        missing: Missing = "impute",
        num_workers: NumWorkers = None,
        checkpoints: Checkpoints | str | None = None,
        n_jobs: int | None = None,
        random_state: int | None = None,
        seed: int = 0,
        name: str | None = None,
        verbose: int = 1,
    ) -> None:
        self.__dict__.update({key: value for key, value in locals().items() if key not in ("self", "__class__")})

    # -- fit --------------------------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        sample_weight: Any = None,
        base_margin: Any = None,
        qid: Any = None,
        label_lower_bound: Any = None,
        label_upper_bound: Any = None,
        validation_data: Any = None,
        xgb_model: Any = None,
        background: bool = False,
        **unknown: Any,
    ) -> Self:
        """Train. Blocks until it is done; the rows stay on the workers.

        Parameters
        ----------
        X : Dask, pandas or cudf DataFrame, array of shape (n_rows, n_features), or Source
        y : Series of length n_rows, or str
            Labels, or the name of their column in ``X``; for a regressor also several, as a frame or a list of names.
            None with the two bounds of ``"survival:aft"``.
        sample_weight, base_margin, qid, label_lower_bound, label_upper_bound : Series, array or str, optional
            For each row: its weight, the margin that boosting begins with (of several classes one each), its query (of
            a ranker; rows of a query may lie anywhere), and between what its time lies (``"survival:aft"``). As long as
            ``X``, or the name of a column of ``X``, which is then no feature.
        validation_data : tuple or list of tuples, optional
            ``(X, y)``, or ``(X, y, {"sample_weight": ...})``, evaluated after every round. Columns named for training
            are taken from here, too.
        xgb_model : xgboost.Booster, str or estimator, optional
            A booster to go on with: ``n_estimators`` rounds are added to it.
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
        refuse_unknown(f"{type(self).__name__}.fit", unknown, ["sample_weight", "base_margin", "validation_data"])
        extras = {"sample_weight": sample_weight, "base_margin": base_margin, "qid": qid}
        extras |= {"label_lower_bound": label_lower_bound, "label_upper_bound": label_upper_bound}
        extras = {role: values for role, values in extras.items() if values is not None}
        if background:
            call = (boost_again, None, self._unfitted(), X, y, extras, validation_data, xgb_model)
            self.run_ = in_background(current_client(), self.num_workers, *call)
            return self
        return self._fit(None, X, y, extras, validation_data, xgb_model)

    @noted_interrupts()
    def _fit(
        self, resumed: Resumed | None, X: Any, y: Any, extras: dict[str, Any], validation_data: Any, xgb_model: Any
    ) -> Self:
        said, sets = self._wanted(), sets_of(validation_data, extras)
        self._check(said, sets, extras)
        y = extras["label_lower_bound"] if y is None and "label_lower_bound" in extras else y
        client, start = self._client(X, y, validation_data), start_of(xgb_model)
        rows = self._read(X, y, client, moments=False, extras=extras, several=not isinstance(self, ClassifierMixin))
        self._aside = [name for name in extras.values() if isinstance(name, str)]
        job = self._job(said, rows, label_names(y), sets, start, client, workers_for(resumed, self.num_workers))
        own = {k: v for k, v in self.get_params(deep=False).items() if k not in ("name", "verbose", "seed")}
        own = {k: v for k, v in own.items() if v is not None or k in ("num_workers", "checkpoints")}
        with started(self.name or "XGBoost", type(self).__name__, own, job, self.verbose, resumed) as run:
            self.run_ = run
            call = (self._unfitted(), X, y, extras, validation_data, xgb_model)
            self._try_saving(run)
            remember_call(run, job.checkpoints, job.fingerprint, boost_again, *call)
            self._keep(job.run(run, resumed.commit if resumed else None))
            self._save_for_others(run)
        return self

    def _wanted(self) -> Wanted:
        return wanted(self.get_params(deep=False), self.params)

    def _check(self, said: Wanted, sets: Sets, extras: Mapping[str, Any]) -> None:
        """Refuse what is known to be wrong before any row is read."""
        stops = said.early_stopping_rounds is not None
        if stops and not sets:
            raise ValueError(
                f"early_stopping_rounds={said.early_stopping_rounds} needs validation_data=(X, y): it is what is "
                "watched."
            )
        if self.missing not in ("impute", "refuse"):
            raise ValueError(
                f"missing must be 'impute' (NaN is missing, and left to XGBoost) or 'refuse', got {self.missing!r}. "
                "Where another value stands for a missing one, replace it: df.replace(-999, float('nan'))."
            )
        if self.class_weight is not None and not isinstance(self, ClassifierMixin):
            raise ValueError("class_weight is for XGBClassifier; a regression weighs rows: fit(..., sample_weight=).")
        tried_alone(type(self).__name__, said, extras)

    def _job(
        self,
        said: Wanted,
        rows: Rows,
        label: Any,
        sets: Sets,
        start: Start | None,
        client: Any,
        num_workers: NumWorkers,
    ) -> BoostJob:
        config, objective = configured(self, said, rows, label, len(sets), start)
        self.objective_, self._numbers_named = objective, list(self.target_.names) or said.alphas
        alone = one_rank_only(config.params, objective, config.params.get("eval_metric", []))
        ranks_wanted(num_workers, alone)
        found = [rows, *(self._read_set(data, client) for data in sets)]
        where = (client, num_workers, self.checkpoints, int(config.params["seed"]))
        return BoostJob(config, self.schema_, self.target_, found, *where, alone)

    def _read_set(self, data: tuple[Any, Any, dict[str, Any]], client: Any) -> Rows:
        X, y, extras = data
        y = extras["label_lower_bound"] if y is None and "label_lower_bound" in extras else y
        rows = self._read_validation((X, y), client, extras=extras, several=bool(self.target_.names))
        assert rows is not None
        return rows

    def _keep(self, found: dict[str, Any]) -> None:
        """Take over what the ranks hand back."""
        self.model_ = booster_of(found["booster"])
        self.best_score_ = found["score"]
        last = self.model_.num_boosted_rounds() - 1
        self.best_iteration_ = last if found["best"] is None else found["best"]
        metrics = self.run_.metrics
        self.evals_result_ = {}
        for name, (data, metric) in found["names"].items():
            if name in metrics:
                self.evals_result_.setdefault(data, {})[metric] = metrics[name].tolist()
