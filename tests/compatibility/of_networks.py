"""Modules, losses and labels of networks, and what their fit takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client
from torch import nn

import daskdl

from .case import Case

MODULES, LOSSES = "Modules", "Losses"
LABELS, FIT = "Labels of networks", "What fit takes (networks)"
FEATURES = ["a", "b", "c"]
Check = Callable[[Client], None]


def _frame(n: int = 300) -> pd.DataFrame:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(n, 3)), columns=FEATURES)
    return frame.assign(two=(frame.a > 0).astype(int), three=(frame.a > 0) * 1 + (frame.b > 0), number=3 * frame.a + 2)


def _net(n_outputs: int, *end: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, n_outputs), *end)


def _learns(kind: str, module: Any, label: Any = "two", least: float = 0.85, **params: Any) -> Check:
    """A check that such a network learns."""

    def check(client: Client) -> None:
        frame = _frame()
        y = label(frame) if callable(label) else frame[label]
        options = {"epochs": 10, "batch_size": 64, "learning_rate": 0.03, "verbose": 0, "num_workers": 1, **params}
        fitted = getattr(daskdl, kind)(module, **options).fit(frame[FEATURES], y)
        assert fitted.score(frame[FEATURES], y) > least

    return check


def _refused(kind: str, module: Any, words: str, label: str = "two", **params: Any) -> Check:
    """A check that such a network is refused, with these words, before anything is launched."""

    def check(client: Client) -> None:
        frame = _frame()
        fitted = getattr(daskdl, kind)(module, verbose=0, **params)
        with pytest.raises((ValueError, TypeError), match=re.escape(words)):
            fitted.fit(frame[FEATURES], frame[label])
        assert not hasattr(fitted, "run_")

    return check


def _batch_norm(client: Client) -> None:
    frame = _frame(257)
    module = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    fitted = daskdl.TorchClassifier(module, epochs=1, batch_size=64, verbose=0).fit(frame[FEATURES], frame.two)
    assert len(fitted.run_.metrics) == 4


def _three_outputs(client: Client) -> None:
    frame = _frame()
    loss = _pinball
    fitted = daskdl.TorchRegressor(_net(3), loss=loss, epochs=1, verbose=0).fit(frame[FEATURES], frame.number)
    assert fitted.predict(frame[FEATURES]).shape == (300, 3)


def _pinball(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    d = y[:, None] - output
    return torch.maximum(0.1 * d, -0.9 * d).mean()


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = _net(2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, spread = self.net(x).split(1, dim=1)
        return mean, nn.functional.softplus(spread) + 1e-3


def _scores_have_no_probabilities(client: Client) -> None:
    frame = _frame()
    loss = nn.MultiMarginLoss()
    fitted = daskdl.TorchClassifier(_net(3), loss=loss, epochs=10, batch_size=64, learning_rate=0.03, verbose=0)
    assert fitted.fit(frame[FEATURES], frame.three).score(frame[FEATURES], frame.three) > 0.8
    with pytest.raises(ValueError, match="scores and no probabilities"):
        fitted.predict_proba(frame[FEATURES])


def _autoencoder(client: Client) -> None:
    frame = _frame()
    fitted = daskdl.TorchRegressor(_net(3), loss=nn.MSELoss(), epochs=1, verbose=0).fit(frame[FEATURES])
    assert fitted.predict(frame[FEATURES]).shape == (300, 3)


def _weighted(client: Client) -> None:
    frame, options = _frame(), {"epochs": 5, "batch_size": 64, "learning_rate": 0.03, "verbose": 0}
    rare = np.where(frame.two == 1, 1e-6, 1.0)
    fitted = daskdl.TorchClassifier(_net(1), **options).fit(frame[FEATURES], frame.two, rare)
    assert fitted.predict(frame[FEATURES]).mean() < 0.1


def _in_parts(client: Client) -> None:
    frame, fitted = _frame(), daskdl.TorchClassifier(_net(3), batch_size=32, learning_rate=0.03, verbose=0)
    for i in range(0, 300, 100):
        fitted.partial_fit(frame[i : i + 100][FEATURES], frame[i : i + 100].three, classes=[0, 1, 2])
    assert fitted.classes_.tolist() == [0, 1, 2]


def _several_classes(client: Client) -> None:
    frame = _frame()
    with pytest.raises(ValueError, match="BCEWithLogitsLoss"):
        daskdl.TorchClassifier(_net(2), verbose=0).fit(frame[FEATURES], frame[["two", "three"]])


C, R = "TorchClassifier", "TorchRegressor"
MEAN = "((o - y) ** 2).mean()"
CASES = [
    Case(MODULES, "none", "a `TabularNet` is made", _learns(C, None)),
    Case(MODULES, "two classes: one logit, `(n,)` or `(n, 1)`", "is trained on", _learns(C, _net(1))),
    Case(MODULES, "`k` classes: `k` logits", "is trained on", _learns(C, _net(3), "three", 0.8)),
    Case(
        MODULES,
        "one that ends in a sigmoid or softmax, no `loss`",
        "its outputs are taken for the probabilities that they are",
        _learns(C, _net(2, nn.Softmax(1))),
    ),
    Case(
        MODULES,
        "another number of outputs than classes",
        "error with both shapes: change the last layer",
        _refused(C, _net(5), "Change its last layer"),
    ),
    Case(
        MODULES,
        "several tensors",
        "the loss gets all of them, the first is predicted",
        _learns(R, _Two(), "number", loss=nn.GaussianNLLLoss()),
    ),
    Case(
        MODULES,
        "three outputs and a loss of its own",
        "`predict` gives `(n, 3)`, of a lazy frame a frame of three columns",
        _three_outputs,
    ),
    Case(
        MODULES,
        "batch norm, and a last batch of one row",
        "a last batch that is too short is joined to the one before, by the sample order",
        _batch_norm,
    ),
    Case(
        MODULES,
        "batch norm, and `batch_size=1`",
        "error: one row cannot be trained on",
        _refused(
            C, nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)), "cannot be trained", batch_size=1
        ),
    ),
    Case(
        MODULES,
        "no parameters that learn",
        "error: add a layer",
        _refused(C, nn.Flatten(0), "no parameters that learn"),
    ),
    Case(LOSSES, "`CrossEntropyLoss`, with weights, too", "logits", _learns(C, _net(2), loss=nn.CrossEntropyLoss())),
    Case(
        LOSSES,
        "`CrossEntropyLoss(weight=...)` and one logit for two classes",
        "the logit of the second class; the first has 0",
        _learns(C, _net(1), loss=nn.CrossEntropyLoss(torch.tensor([1.0, 2.0]))),
    ),
    Case(
        LOSSES,
        "`CrossEntropyLoss` and a module that ends in softmax",
        "error: leave the softmax out",
        _refused(C, _net(2, nn.Softmax(1)), "Leave out its softmax", loss=nn.CrossEntropyLoss()),
    ),
    Case(
        LOSSES,
        "`BCEWithLogitsLoss`, with `pos_weight`, too",
        "one logit; labels in its shape, as floats",
        _learns(C, _net(1), loss=nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0]))),
    ),
    Case(LOSSES, "`BCELoss` after a sigmoid", "probabilities", _learns(C, _net(1, nn.Sigmoid()), loss=nn.BCELoss())),
    Case(
        LOSSES, "`BCELoss` without one", "error: end in a sigmoid", _refused(C, _net(1), "sigmoid", loss=nn.BCELoss())
    ),
    Case(
        LOSSES,
        "`NLLLoss` after `LogSoftmax`",
        "log-probabilities; `predict_proba` gives their exponential",
        _learns(C, _net(3, nn.LogSoftmax(1)), "three", 0.8, loss=nn.NLLLoss()),
    ),
    Case(
        LOSSES,
        "`NLLLoss` of logits",
        "error: end in `LogSoftmax`",
        _refused(C, _net(2), "LogSoftmax", loss=nn.NLLLoss()),
    ),
    Case(LOSSES, "`SoftMarginLoss`", "one logit; labels as 1 and -1", _learns(C, _net(1), loss=nn.SoftMarginLoss())),
    Case(
        LOSSES,
        "`MultiMarginLoss`",
        "scores: `predict` takes the largest, `predict_proba` is refused",
        _scores_have_no_probabilities,
    ),
    Case(
        LOSSES,
        "`MSELoss`, `L1Loss`, `SmoothL1Loss`, `HuberLoss` of a regression",
        "labels are standardised, in the shape of the output; deltas count in standard deviations",
        _learns(R, _net(1), "number", loss=nn.L1Loss()),
    ),
    Case(
        LOSSES,
        "`PoissonNLLLoss`",
        "labels as they are, 0 or more; `predict` gives the rate",
        _learns(R, _net(1), lambda f: np.floor(np.exp(f.a + 1)), 0.5, loss=nn.PoissonNLLLoss()),
    ),
    Case(
        LOSSES,
        "`GaussianNLLLoss` and a module with one output",
        "error: return `(mean, variance)`",
        _refused(R, _net(1), "(mean, variance)", "number", loss=nn.GaussianNLLLoss()),
    ),
    Case(
        LOSSES,
        "`HingeEmbeddingLoss`, `KLDivLoss`, `CTCLoss`, losses of pairs and triplets",
        "error: write what you mean as a function, or a loop of your own",
        _refused(C, _net(1), "cannot be used here", loss=nn.HingeEmbeddingLoss()),
    ),
    Case(
        LOSSES,
        "a loss of classes for a regression, a loss of numbers for a classifier",
        "error with the estimator to take",
        _refused(R, _net(1), "Use TorchClassifier", "number", loss=nn.CrossEntropyLoss()),
    ),
    Case(
        LOSSES,
        f"a function such as `lambda o, y: {MEAN}`",
        "`(n, 1)` and `(n,)` are never compared each with all: the label takes the output's shape",
        _learns(R, _net(1), "number", loss=lambda o, y: ((o - y) ** 2).mean()),
    ),
    Case(
        LOSSES,
        "a function that looks at more than differences, such as `((o - y) / y).abs().mean()`",
        "labels are not standardised, and predictions are the outputs",
        _learns(R, _net(1), lambda f: f.number + 30, 0.0, loss=lambda o, y: ((o - y) / y).abs().mean(), epochs=40),
    ),
    Case(
        LOSSES,
        "a function that returns a loss per row, or `(total, count)`",
        "sums over all ranks are divided",
        _learns(R, _net(1), "number", loss=lambda o, y: (((o - y) ** 2).sum(), len(y))),
    ),
    Case(
        LOSSES,
        "a function that returns a Python number, or what has no gradient",
        "error before launch",
        _refused(R, _net(1), "returned float", "number", loss=lambda o, y: ((o - y) ** 2).mean().item()),
    ),
    Case(
        LABELS,
        "numbers as large as 1.7e12 that differ by 100",
        "predictions are put together in double precision",
        _learns(R, _net(1), lambda f: 1.7e12 + 100 * f.a),
    ),
    Case(
        LABELS, "text, booleans, categories", "classes", _learns(C, _net(1), lambda f: f.two.astype(bool).astype(str))
    ),
    Case(
        LABELS,
        "a frame or array of several numbers",
        "each is standardised; `predict` gives as many columns",
        _learns(R, None, lambda f: f[["number", "b"]]),
    ),
    Case(
        LABELS,
        "several labels for a classifier",
        "error: `TorchRegressor` with `BCEWithLogitsLoss` predicts the probability of each",
        _several_classes,
    ),
    Case(LABELS, "none, with a `loss`", "the module is to give back its first input, as an autoencoder", _autoencoder),
    Case(FIT, "`sample_weight`, `class_weight`", "losses of rows are weighted, over all ranks", _weighted),
    Case(
        FIT,
        "`class_weight=` with a loss that cannot be weighted",
        "error: take `sample_weight` or `reduction`, or return a loss per row",
        _refused(C, _net(1), "cannot be weighted", loss=lambda o, y: (o * y).mean(), class_weight="balanced"),
    ),
    Case(
        FIT,
        "`lr_scheduler=` a name or function",
        "goes on after every epoch, `OneCycleLR` and `CyclicLR` after every step",
        _learns(C, _net(1), lr_scheduler="OneCycleLR"),
    ),
    Case(
        FIT,
        "`ReduceLROnPlateau` without validation rows",
        "error: give `validation_data`",
        _refused(C, _net(1), "needs validation_data", lr_scheduler="ReduceLROnPlateau"),
    ),
    Case(
        FIT,
        "`gradient_clip_val=`, `accumulate_grad_batches=`",
        "as in Lightning; batches of a step count by their rows",
        _learns(C, _net(1), gradient_clip_val=1.0, accumulate_grad_batches=2),
    ),
    Case(
        FIT, '`precision=` `"bf16"` or `"16"`', "autocast; weights stay float32", _learns(C, _net(1), precision="bf16")
    ),
    Case(
        FIT, "`frozen=` names, layers or patterns", "these parameters stay", _learns(C, _net(1), least=0.7, frozen="0")
    ),
    Case(
        FIT,
        "`frozen=` what is no parameter",
        "error with the names there are",
        _refused(C, _net(1), "0.weight", frozen="x"),
    ),
    Case(
        FIT,
        "`metrics=` without validation rows, or a name that scikit-learn does not know",
        "error",
        _refused(C, _net(1), "validation", metrics=["f1"]),
    ),
    Case(
        FIT,
        "`callbacks=` functions, or objects with `on_step_end`, `on_epoch_end`",
        "are called in every rank; one that returns True ends the training",
        _learns(C, _net(1), callbacks=[lambda context, values: values["epoch"] == 8]),
    ),
    Case(
        FIT, "`partial_fit`, `warm_start=`", "go on from the weights there are, and read columns as before", _in_parts
    ),
]
