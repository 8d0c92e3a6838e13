"""What a fit of a network does: read, try, train. Runs in the client."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from daskdl.data.batches import check_transform
from daskdl.data.rows import Rows
from daskdl.data.schema import Schema
from daskdl.data.schema.target import Target
from daskdl.errors import DataError, LossDiverged
from daskdl.estimators.forward import make_module
from daskdl.estimators.tabular import TabularNet
from daskdl.execution.interrupts import held_interrupts, noted_interrupts
from daskdl.training.callbacks import check_callbacks
from daskdl.training.evaluation import EvaluationConfig
from daskdl.training.fit import FitConfig, fit_loop
from daskdl.training.job import Job, rules_of, started, weight_column
from daskdl.training.losses import as_loss
from daskdl.training.metrics import check_metrics
from daskdl.training.optimizing import StepConfig, freeze
from daskdl.training.resuming import Resumed, remember_call, workers_for
from daskdl.training.trial import n_outputs_for, standardised, try_out


@dataclass(frozen=True)
class Request:
    """What ``fit`` or ``partial_fit`` was called with.

    Attributes
    ----------
    continues : bool
        Whether the weights that the estimator has are trained on.
    classes : sequence, optional
        All there will be.
    """

    X: Any
    y: Any
    sample_weight: Any = None
    validation_data: tuple[Any, ...] | None = None
    epochs: int = 1
    continues: bool = False
    keeps_state: bool = False
    classes: Sequence[Any] | None = None


@noted_interrupts()
def fit_network(resumed: Resumed | None, estimator: Any, request: Request) -> Any:
    """Train; what ``daskdl.resume`` calls, too. Sets the fitted attributes of the estimator and returns it."""
    fitting = _Fitting(estimator, request)
    fitting.check()
    client = estimator._client(request.X, request.y, request.validation_data)
    rows = fitting.read(client)
    module, objective, takes_one_row = fitting.made(rows)
    validation = fitting.read_validation(client)
    config = fitting.config(objective.reads)
    job = Job(
        rows,
        estimator.schema_,
        estimator.target_,
        estimator.batch_size,
        request.epochs,
        estimator.seed,
        workers_for(resumed, estimator.num_workers),
        client,
        validation,
        estimator.sampling,
        estimator.batch_transform,
        rules_of(estimator.checkpoints),
        estimator.reproducible,
        takes_one_row,
    )
    given = estimator.module or TabularNet
    title = estimator.name or str(getattr(given, "__name__", type(given).__name__))
    params = {k: v for k, v in estimator.get_params(deep=False).items() if k not in ("name", "verbose", "seed")}
    with started(title, type(estimator).__name__, params, job, estimator.verbose, resumed) as run:
        estimator.run_ = run
        estimator._try_saving(run, module)
        again = estimator if request.continues else estimator._unfitted()
        remember_call(run, job.checkpoints, job.fingerprint, fit_network, again, request)
        try:
            answer = job.run(fit_loop, (module, objective, config), run, resumed.commit if resumed else None)
        except LossDiverged as error:
            module.load_state_dict(error.state or module.state_dict())
            estimator.model_ = module.eval()
            raise
        if answer.problem is not None:  # what the module became cannot be sent, but what it learned was
            module.load_state_dict(answer.state["model"])
        estimator.model_ = (module if answer.problem is not None else answer.value).eval()
        estimator._optimizer_state = answer.state["optimizer"] if request.keeps_state else {}
        estimator._save_for_others(run)
    return estimator


class _Fitting:
    """The steps of a fit before anything is launched."""

    def __init__(self, estimator: Any, request: Request) -> None:
        self.estimator, self.request = estimator, request
        self.classifies = hasattr(type(estimator), "predict_proba")
        self.loss = None if estimator.loss is None else as_loss(estimator.loss)
        self.metrics = check_metrics(estimator.metrics)
        self.callbacks = check_callbacks(estimator.callbacks)
        self.steps = StepConfig(
            estimator.optimizer,
            estimator.learning_rate,
            estimator.weight_decay,
            estimator.lr_scheduler,
            estimator.gradient_clip_val,
            estimator.accumulate_grad_batches,
            estimator.precision,
        )

    def check(self) -> None:
        """Refuse what can be refused without the data."""
        estimator, request = self.estimator, self.request
        has_validation = request.validation_data is not None
        if estimator.patience is not None and not has_validation:
            raise ValueError(f"patience={estimator.patience} needs validation_data=(X, y): it is what is waited for.")
        if self.metrics and not has_validation:
            raise ValueError("metrics are computed over the validation rows: give validation_data=(X, y).")
        if estimator.class_weight is not None and not self.classifies:
            raise ValueError("class_weight is for classes, and a regression has none. Use sample_weight.")
        with held_interrupts():  # the first optimizer of a process makes torch import its compiler
            self.steps.check(torch.nn.Linear(1, 1), request.epochs, has_validation)

    def _how(self, weight: Any) -> dict[str, Any]:
        extras = {} if weight is None else {"sample_weight": weight}
        return {"kinds": self.estimator.kinds, "several": not self.classifies, "extras": extras}

    def read(self, client: Any) -> Rows:
        """Read the rows; learn from them how, or read them as the fit before did."""
        estimator, request = self.estimator, self.request
        how = {**self._how(request.sample_weight), "weight": weight_column(estimator.sampling), "moments": True}
        if self.classifies and getattr(request.y, "ndim", 1) == 2 and request.y.shape[1] > 1:
            raise DataError(
                "y has several columns, and a classifier predicts one class for each row. For several labels of 0 and "
                "1 use TorchRegressor(loss=torch.nn.BCEWithLogitsLoss()), which predicts the probability of each."
            )
        how["needs_label"] = self.classifies or self.loss is None
        estimator._set_aside = (request.sample_weight,) if isinstance(request.sample_weight, str) else ()
        if request.continues:
            return estimator._read_known(request.X, request.y, client, "X", **how)
        rows = estimator._read(request.X, request.y, client, known=request.classes, **how)
        if request.y is None:
            estimator.target_ = Target(None, names=_input_names(estimator.schema_))
        return rows

    def read_validation(self, client: Any) -> Rows | None:
        """Read the validation rows, in the same way."""
        data = self.request.validation_data
        if data is None:
            return None
        if not isinstance(data, tuple) or len(data) not in (2, 3):
            raise TypeError(f"validation_data must be (X, y) or (X, y, sample_weight), got {type(data).__name__}")
        how = self._how(data[2] if len(data) == 3 else None) | {"needs_label": self.request.y is not None}
        return self.estimator._read_known(*data[:2], client, "validation_data", moments=False, **how)

    def made(self, rows: Rows) -> tuple[Any, Any, bool]:
        """The module, the objective, and whether the module can be trained on one row."""
        estimator, request = self.estimator, self.request
        if not request.continues:
            estimator._made_for = n_outputs_for(self.loss, estimator.target_)
        module = make_module(estimator.module, estimator.schema_, estimator._made_for, estimator.seed)
        if request.continues:
            module.load_state_dict(estimator.model_.state_dict())
        freeze(module, estimator.frozen)
        weights = class_weights(estimator.class_weight, estimator.target_, rows.label.values)
        weighted = weights is not None or request.sample_weight is not None
        rebuilds = rows.label_name is None
        trial = try_out(module, self.loss, estimator.target_, estimator.schema_, rows.label, weighted, rebuilds)
        if not request.continues:
            estimator.target_ = standardised(estimator.target_, trial)
        estimator._reads, estimator._n_outputs = trial.objective.reads, trial.n_outputs
        y_type = np.float32 if estimator.target_.classes is None else np.int64
        example = estimator.schema_.example(2) | ({} if rebuilds else {"y": np.zeros(2, dtype=y_type)})
        check_transform(estimator.batch_transform, example)
        return module, replace(trial.objective, of_class=weights), trial.takes_one_row

    def config(self, reads: str) -> FitConfig:
        """What the loop is told."""
        estimator, target = self.estimator, self.estimator.target_
        n_outputs = target.n_classes or estimator._n_outputs
        evaluation = EvaluationConfig(self.metrics, n_outputs, target.n_targets)
        state = getattr(estimator, "_optimizer_state", {}) if self.request.continues else {}
        return FitConfig(self.steps, estimator.patience, evaluation, self.callbacks, state)


def _input_names(schema: Schema) -> tuple[Any, ...]:
    """Names of the numbers that a module is to give back: those of its first input."""
    first = next(iter(schema.example(1).values()))
    names = [c.name for c in schema.number_columns]
    n = math.prod(first.shape[1:])
    return tuple(names) if len(names) == n else tuple(range(n))


def class_weights(given: Any, target: Target, counts: Mapping[Any, int]) -> torch.Tensor | None:
    """Weight of each class: a dict's, 1 for those it lacks, or ``"balanced"``: the rarer the more, as in scikit-learn.

    Raises
    ------
    ValueError
        A class that there is not, or a weight below 0.

    Examples
    --------
    >>> class_weights("balanced", Target(np.array(["no", "yes"])), {"no": 6, "yes": 2})
    tensor([0.6667, 2.0000])
    """
    if given is None:
        return None
    assert target.classes is not None
    classes = target.classes.tolist()
    if given == "balanced":
        n = sum(counts.values())
        return torch.tensor([n / (len(classes) * counts[c]) if counts.get(c) else 1.0 for c in classes])
    if not isinstance(given, Mapping):
        raise ValueError(f"class_weight must be 'balanced' or a dict of class to weight, got {given!r}")
    unknown = [c for c in given if c not in classes]
    if unknown:
        raise ValueError(f"class_weight has {unknown[:10]}, which are none of the classes {classes[:10]}.")
    weights = torch.tensor([float(given.get(c, 1.0)) for c in classes])
    if not bool((weights >= 0).all() and weights.isfinite().all() and weights.any()):
        raise ValueError(f"class_weight must be finite, 0 or more and not 0 for all classes, got {given!r}")
    return weights
