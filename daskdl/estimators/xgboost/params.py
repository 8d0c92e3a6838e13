"""What a user says to XGBoost, under any of its names, as what XGBoost is told."""

from __future__ import annotations

import difflib
import functools
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from daskdl.data.schema import Schema
from daskdl.errors import DataError

F = TypeVar("F", bound=Callable[..., None])

ALIASES = {
    "eta": "learning_rate",
    "lambda": "reg_lambda",
    "alpha": "reg_alpha",
    "min_split_loss": "gamma",
    "random_state": "seed",
    "n_jobs": "nthread",
    "num_boost_round": "n_estimators",
    "num_round": "n_estimators",
}
# parameters of the constructor that are XGBoost's, or that XGBoost's users put among them
CONSTRUCTOR = (
    "n_estimators", "max_depth", "learning_rate", "min_child_weight", "gamma", "subsample", "colsample_bytree",
    "reg_lambda", "reg_alpha", "max_bin", "eval_metric", "early_stopping_rounds", "objective", "booster", "tree_method",
    "max_leaves", "grow_policy", "max_delta_step", "sampling_method", "colsample_bylevel", "colsample_bynode",
    "scale_pos_weight", "base_score", "num_parallel_tree", "monotone_constraints", "interaction_constraints",
    "multi_strategy", "max_cat_to_onehot", "max_cat_threshold", "feature_weights", "callbacks", "device", "n_jobs",
    "random_state", "seed",
)  # fmt: skip
OTHERS = (
    "quantile_alpha", "tweedie_variance_power", "huber_slope", "aft_loss_distribution", "aft_loss_distribution_scale",
    "lambdarank_pair_method", "lambdarank_num_pair_per_sample", "lambdarank_normalization", "lambdarank_unbiased",
    "lambdarank_bias_norm", "ndcg_exp_gain", "rate_drop", "skip_drop", "one_drop", "sample_type", "normalize_type",
    "feature_selector", "top_k", "updater", "refresh_leaf", "process_type", "num_class", "seed_per_iteration",
    "max_cached_hist_node", "disable_default_eval_metric", "verbosity",
)  # fmt: skip
OURS = ("params", "sketch_rows", "missing", "num_workers", "checkpoints", "name", "verbose", "importance_type",
        "class_weight")  # fmt: skip
ELSEWHERE = {
    "enable_categorical": "categories are always split as categories; leave it out",
    "feature_types": "kinds follow from the types of columns: df[column].astype('category')",
    "feature_names": "names are those of the columns of X",
    "validate_parameters": "parameters are always validated; leave it out",
    "silent": "verbose=0 shows nothing",
    "class_weights": "class_weight= is a parameter of XGBClassifier",
    "sample_weight": "fit(X, y, sample_weight=...)",
    "base_margin": "fit(X, y, base_margin=...)",
    "qid": "fit(X, y, qid=...)",
    "group": "fit(X, y, qid=...): the query of each row, not the sizes of queries",
    "eval_set": "fit(X, y, validation_data=(X, y))",
    "evals": "fit(X, y, validation_data=(X, y))",
    "eval_qid": "fit(X, y, validation_data=(X, y, {'qid': ...}))",
    "eval_group": "fit(X, y, validation_data=(X, y, {'qid': ...}))",
    "sample_weight_eval_set": "fit(X, y, validation_data=(X, y, {'sample_weight': ...}))",
    "base_margin_eval_set": "fit(X, y, validation_data=(X, y, {'base_margin': ...}))",
    "xgb_model": "fit(X, y, xgb_model=...)",
    "obj": "objective= takes a function",
    "feval": "eval_metric= takes a function, or a list of names and functions",
    "custom_metric": "eval_metric= takes a function, or a list of names and functions",
    "evals_result": "evals_result_ is an attribute after fit",
    "verbose_eval": "verbose=0 shows nothing",
    "client": "the current Dask client is used: daskdl.connect()",
}
LAST_SET_ONLY = ("n_estimators", "early_stopping_rounds", "eval_metric", "objective", "callbacks", "feature_weights")


@dataclass(frozen=True)
class Wanted:
    """What the user wants, with each of XGBoost's parameters under one name.

    Attributes
    ----------
    params : dict
        For XGBoost, but for objective and metrics that are functions.
    n_estimators : int
    early_stopping_rounds : int or None
    objective : str, callable or None
    eval_metric : list
        Names and functions; empty for the default.
    callbacks : tuple
    feature_weights : array, optional
    """

    params: dict[str, Any]
    n_estimators: int
    early_stopping_rounds: int | None
    objective: Any
    eval_metric: list[Any]
    callbacks: tuple[Any, ...]
    feature_weights: Any

    @property
    def alphas(self) -> list[float]:
        """The quantiles, of their objective."""
        given = self.params.get("quantile_alpha")
        if self.objective != "reg:quantileerror" or given is None:
            return []
        return [float(a) for a in (given if isinstance(given, (list, tuple, np.ndarray)) else [given])]


def wanted(constructor: Mapping[str, Any], params: Mapping[str, Any] | None) -> Wanted:
    """Bring together what was said in the constructor and in ``params``.

    Raises
    ------
    ValueError
        Two values for one parameter, or a name that belongs elsewhere.

    Examples
    --------
    >>> wanted({"n_estimators": 10}, {"eta": 0.1, "lambda": 2}).params
    {'learning_rate': 0.1, 'reg_lambda': 2}
    """
    said: dict[str, tuple[str, Any]] = {}
    if params is not None and not isinstance(params, Mapping):
        raise TypeError(f"params must be a dict of XGBoost's parameters, got {type(params).__name__}")
    first = {k: v for k, v in constructor.items() if k in CONSTRUCTOR and not _is_default(k, v)}
    for where, given in (("", first), ("params: ", params or {})):
        for name, value in given.items():
            if value is None:
                continue
            if where:
                _check_place(name)
            one = ALIASES.get(name, name)
            if one in said and not _same(said[one][1], value):
                raise ValueError(
                    f"{said[one][0]}={said[one][1]!r} and {where}{name}={value!r} are two values for one parameter of "
                    "XGBoost. Give one of them."
                )
            said.setdefault(one, (f"{where}{name}", value))
    values = {name: value for name, (_, value) in said.items()}
    seed = values.get("seed", 0)
    if not isinstance(seed, (int, np.integer)):
        raise ValueError(f"the seed must be an int, which a run that is resumed gets again; got {seed!r}")
    own = {name: values.pop(name, None) for name in LAST_SET_ONLY}
    n_estimators = 100 if own["n_estimators"] is None else own["n_estimators"]
    if not isinstance(n_estimators, (int, np.integer)) or n_estimators < 1:
        raise ValueError(f"n_estimators must be at least 1, got {n_estimators}")
    metrics = own["eval_metric"]
    metrics = [] if metrics is None else list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]
    return Wanted(
        values,
        int(n_estimators),
        own["early_stopping_rounds"],
        own["objective"],
        metrics,
        tuple(own["callbacks"] or ()),
        own["feature_weights"],
    )


def _is_default(name: str, value: Any) -> bool:
    return value is None or (name == "n_estimators" and value == 100) or (name == "seed" and value == 0)


def _same(one: Any, other: Any) -> bool:
    return one is other or bool(np.array_equal(np.asarray(one, dtype=object), np.asarray(other, dtype=object)))


def _check_place(name: str) -> None:
    if name in ELSEWHERE:
        raise ValueError(f"params holds {name!r}, which goes elsewhere: {ELSEWHERE[name]}.")
    if name in OURS:
        raise ValueError(f"params holds {name!r}, which is no parameter of XGBoost: give {name}= to the constructor.")


def refuse_unknown(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keyword names, with where they go or what was meant.

    Raises
    ------
    TypeError
    """
    for name in names:
        if name in ELSEWHERE:
            raise TypeError(f"{where} takes no {name!r}: {ELSEWHERE[name]}.")
        if name in ALIASES or name in OTHERS:
            one = ALIASES.get(name, name)
            raise TypeError(
                f"{where} takes no {name!r}: give params={{{name!r}: ...}}"
                + (f", or {one}=." if one in CONSTRUCTOR else ".")
            )
        near = difflib.get_close_matches(name, [*known], n=3)
        raise TypeError(f"{where} takes no {name!r}.{f' Did you mean {near}?' if near else ''}")


def with_remedies(init: F) -> F:
    """Let a constructor say of an unknown name where it goes, or what was meant."""
    known = inspect.signature(init).parameters

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **given: Any) -> None:
        refuse_unknown(type(self).__name__, [name for name in given if name not in known], known)
        init(self, *args, **given)

    return cast(F, checked)


def near_names(name: str) -> list[str]:
    """Parameters of XGBoost that are spelt alike."""
    return difflib.get_close_matches(name, [*CONSTRUCTOR, *OTHERS, *ALIASES], n=3)


# -- of columns ---------------------------------------------------------------------------------------------------


def constraints_of(params: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """Return the constraints among ``params`` for the columns of trees, given those of ``X`` by name or place."""
    found: dict[str, Any] = {}
    if params.get("monotone_constraints") is not None:
        found["monotone_constraints"] = _monotone(params["monotone_constraints"], schema)
    if params.get("interaction_constraints") is not None:
        found["interaction_constraints"] = _interactions(params["interaction_constraints"], schema)
    return found


def _monotone(given: Any, schema: Schema) -> str:
    if isinstance(given, str):
        given = [int(v) for v in given.strip("() ").split(",") if v.strip()]
    if not isinstance(given, Mapping):
        if len(given) != len(schema.columns):
            raise ValueError(
                f"monotone_constraints has {len(given)} values and X {len(schema.columns)} columns. Give one for each, "
                "or a dict of names."
            )
        given = dict(zip(range(len(given)), given, strict=True))
    signs = [0] * len(schema.feature_names)
    for key, sign in given.items():
        column, places = _places(key, schema, "monotone_constraints")
        if sign not in (-1, 0, 1):
            raise ValueError(f"monotone_constraints: {key!r} must be -1, 0 or 1, got {sign!r}")
        if sign and column.kind == "category":
            raise ValueError(
                f"monotone_constraints: column {key!r} is a category, which has no order. Give it as numbers, or leave "
                "the constraint out."
            )
        for place in places[:1] if column.kind == "time" else places:  # of a date: its days
            signs[place] = int(sign)
    return f"({','.join(map(str, signs))})"


def _interactions(given: Any, schema: Schema) -> str:
    groups = json.loads(given) if isinstance(given, str) else given
    return json.dumps(
        [[place for key in group for place in _places(key, schema, "interaction_constraints")[1]] for group in groups]
    )


def _places(key: Any, schema: Schema, what: str) -> tuple[Any, list[int]]:
    """The column called so, or at that place, and where its features lie in the table."""
    owners = schema.feature_columns
    names = schema.names
    if key in names:
        number = names.index(key)
    elif isinstance(key, (int, np.integer)) and 0 <= key < len(names):
        number = int(key)
    else:
        near = difflib.get_close_matches(str(key), [str(n) for n in names], n=3)
        raise ValueError(
            f"{what} names column {key!r}, which is not in X.{f' Did you mean {near}?' if near else ''} The columns "
            f"are {names[:20]}."
        )
    return schema.columns[number], [i for i, owner in enumerate(owners) if owner == number]


def weights_of(given: Any, schema: Schema) -> npt.NDArray[np.float32] | None:
    """Return the feature weights of the columns of trees, given those of ``X``: in order, or by name."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        for key in given:
            _places(key, schema, "feature_weights")
        given = [given.get(name, 1.0) for name in schema.names]
    each = np.asarray(given, dtype=np.float32)
    if each.shape != (len(schema.columns),) or not np.isfinite(each).all() or (each < 0).any():
        raise ValueError(
            f"feature_weights must be finite and 0 or more, one for each of the {len(schema.columns)} columns of X, or "
            f"a dict of names; got shape {each.shape}."
        )
    return each[schema.feature_columns]


def class_weights_of(given: Any, classes: Sequence[Any], counts: Mapping[Any, int]) -> npt.NDArray[np.float64] | None:
    """Return the weight of each class, given by class or as ``"balanced"``."""
    if given is None:
        return None
    if isinstance(given, str):
        if given != "balanced":
            raise ValueError(f"class_weight must be 'balanced' or a dict of classes, got {given!r}")
        rows = np.array([counts[c] for c in classes], dtype=np.float64)
        return rows.sum() / (len(rows) * rows)
    unknown = [c for c in given if c not in classes]
    if unknown:
        raise DataError(f"class_weight names classes that are not in y: {unknown[:5]}. They are {list(classes)[:10]}.")
    return np.array([float(given.get(c, 1.0)) for c in classes])
