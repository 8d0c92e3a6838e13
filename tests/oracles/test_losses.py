"""Plain torch on the same rows is the answer: for the loss, for what is learned, and for what is predicted."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import daskdl
from daskdl.data.schema import ColumnStats, Schema
from daskdl.data.schema.target import Target, describe_target, describe_targets
from daskdl.training.losses import as_loss
from daskdl.training.trial import standardised, try_out

reductions = st.sampled_from(["mean", "sum"])
positive = st.floats(0.1, 5)
FEATURES = ["a", "b", "c"]


def network(n_outputs: int, end: str = "") -> nn.Sequential:
    layers = {"sigmoid": [nn.Sigmoid()], "softmax": [nn.Softmax(1)], "log_softmax": [nn.LogSoftmax(1)]}
    return nn.Sequential(nn.Linear(3, n_outputs), *layers.get(end, []), *([nn.Flatten(0)] if end == "flat" else []))


@st.composite
def for_classes(draw: Any) -> dict[str, Any]:
    """A loss, a module for it, and what torch is given for labels of so many classes."""
    kind = draw(st.sampled_from(["ce", "ce1", "nll", "bcel", "bce", "soft", "margin", "mse", "own", "own1", "none"]))
    single = kind in ("ce1", "bcel", "bce", "soft", "mse", "own1") or (kind == "none" and draw(st.booleans()))
    k = 2 if single else draw(st.integers(2, 4))
    weight = draw(st.none() | st.lists(positive, min_size=k, max_size=k).map(torch.tensor))
    smoothing, ignored = draw(st.sampled_from([0.0, 0.1])), draw(st.sampled_from([-100, 0, k - 1]))
    how = draw(reductions)
    loss: Any = None
    if kind in ("ce", "ce1"):
        loss = nn.CrossEntropyLoss(weight, ignore_index=ignored, label_smoothing=smoothing, reduction=how)
    elif kind == "nll":
        loss = nn.NLLLoss(weight, ignore_index=ignored, reduction=how)
    elif kind == "bcel":
        loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([draw(positive)]), reduction=how)
    elif kind in ("bce", "soft", "mse"):
        loss = {"bce": nn.BCELoss, "soft": nn.SoftMarginLoss, "mse": nn.MSELoss}[kind](reduction=how)
    elif kind == "margin":
        loss = nn.MultiMarginLoss(weight=weight, reduction=how)
    elif kind == "own":
        loss = draw(st.sampled_from([lambda o, y: F.cross_entropy(o, y), lambda o, y: F.cross_entropy(o, y.long())]))
    elif kind == "own1":
        loss = draw(
            st.sampled_from(
                [
                    lambda o, y: F.binary_cross_entropy_with_logits(o, y),
                    lambda o, y: F.binary_cross_entropy_with_logits(o.squeeze(1), y.float()),
                    lambda o, y: F.softplus(torch.where(y.reshape(-1) == 1, -o.reshape(-1), o.reshape(-1))).mean(),
                ]
            )
        )
    end = {"nll": "log_softmax", "bce": "sigmoid", "mse": "sigmoid"}.get(kind, "")
    if kind == "none":
        end = draw(st.sampled_from(["", "sigmoid"] if single else ["", "softmax", "log_softmax"]))
    return {"kind": kind, "loss": loss, "k": k, "single": single, "end": end}


def by_hand(case: dict[str, Any], output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The loss as it is written in torch's documentation."""
    kind, loss, column = case["kind"], case["loss"], y.float().reshape(-1, 1)
    if kind == "ce1":
        return loss(torch.cat([torch.zeros_like(output), output], dim=1), y)
    if kind in ("bcel", "bce", "mse"):
        return loss(output, column)
    if kind == "soft":
        return loss(output, 2 * column - 1)
    if kind == "own1":
        return F.binary_cross_entropy_with_logits(output, column)
    if kind != "none":
        return loss(output, y)
    if case["single"]:
        return (F.binary_cross_entropy if case["end"] else F.binary_cross_entropy_with_logits)(output, column)
    logs = {"": F.log_softmax(output, 1), "softmax": output.log(), "log_softmax": output}[case["end"]]
    return F.nll_loss(logs, y)


def probabilities(case: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
    if case["single"]:
        p = output if case["end"] == "sigmoid" else output.sigmoid()
        return torch.cat([1 - p, p], dim=1)
    return {"": output.softmax(1), "softmax": output, "log_softmax": output.exp()}[case["end"]]


def learned(X: pd.DataFrame) -> Schema:
    return Schema.learn(X)


def rows(seed: int, n: int) -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(seed).normal(size=(n, 3)), columns=FEATURES)


@settings(max_examples=100, deadline=None)
@given(for_classes(), st.integers(1, 40), st.integers(0, 99), st.data())
def test_the_loss_over_any_ranks_is_torchs_over_all_rows(
    case: dict[str, Any], n: int, seed: int, data: st.DataObject
) -> None:
    torch.manual_seed(seed)
    module, X, k = network(1 if case["single"] else case["k"], case["end"]), rows(seed, max(n, 2)), case["k"]
    target = Target(np.arange(k))
    loss = None if case["loss"] is None else as_loss(case["loss"])
    objective = try_out(module, loss, target, learned(X), ColumnStats("label", n), False).objective
    inputs = torch.randn(n, 3)
    y = torch.randint(0, k, (n,))
    output = module(inputs)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=3)))
    totals, counts = zip(
        *(
            objective(output[a:b], y[a:b], share=(b - a) / n)
            for a, b in zip([0, *cuts], [*cuts, n], strict=True)
            if b > a
        ),
        strict=True,
    )
    expected = by_hand(case, output, y)
    total, count = sum(totals), sum(torch.as_tensor(c).double() for c in counts)
    if bool(expected.isfinite()):  # torch divides by 0 where all labels are ignored
        assert float(total / count) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(for_classes(), st.integers(0, 99))
def test_a_row_of_weight_two_is_there_twice(case: dict[str, Any], seed: int) -> None:
    if case["kind"].startswith("own") or getattr(case["loss"], "reduction", "mean") == "sum":
        return
    torch.manual_seed(seed)
    module, n, k = network(1 if case["single"] else case["k"], case["end"]), 12, case["k"]
    loss = None if case["loss"] is None else as_loss(case["loss"])
    schema, target = learned(rows(seed, n)), Target(np.arange(k))
    objective = try_out(module, loss, target, schema, ColumnStats("label", n), True).objective
    y, output, times = torch.randint(0, k, (n,)), module(torch.randn(n, 3)), torch.randint(0, 4, (n,))
    total, count = objective(output, y, times.float())
    again = torch.arange(n).repeat_interleave(times)
    expected, divisor = objective(output[again], y[again])
    assert float(total) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
    assert float(count) == pytest.approx(float(divisor), rel=1e-4, abs=1e-6)


@st.composite
def for_numbers(draw: Any) -> dict[str, Any]:
    """A loss of a regression, and the same as torch computes it for output and label of one shape."""
    targets = draw(st.sampled_from([1, 1, 1, 2, 3]))
    end = draw(st.sampled_from(["", "flat"])) if targets == 1 else ""
    by_kind: dict[str, Any] = {
        "none": (None, F.mse_loss),
        "l1": (nn.L1Loss(), F.l1_loss),
        "smooth": (nn.SmoothL1Loss(beta=0.5), lambda o, y: F.smooth_l1_loss(o, y, beta=0.5)),
        "huber": (nn.HuberLoss(delta=0.7), lambda o, y: F.huber_loss(o, y, delta=0.7)),
        "sum": (nn.MSELoss(reduction="sum"), lambda o, y: F.mse_loss(o, y, reduction="sum")),
        "poisson": (nn.PoissonNLLLoss(), F.poisson_nll_loss),
        "function": (F.l1_loss, F.l1_loss),
        "own": (lambda o, y: ((o - y) ** 2).mean(), F.mse_loss),
        "own rows": (lambda o, y: (o - y).abs(), F.l1_loss),
        "own pair": (lambda o, y: (((o - y) ** 2).sum(), o.numel()), F.mse_loss),
        "own flat": (lambda o, y: ((o.reshape(-1) - y.reshape(-1)) ** 2).mean(), F.mse_loss),
        "own poisson": (lambda o, y: (o.exp() - y * o).mean(), F.poisson_nll_loss),
    }
    kind = draw(st.sampled_from(sorted(by_kind)))
    loss, same = by_kind[kind]
    scale, mean = draw(st.sampled_from([(1.0, 0.0), (100.0, 1.7e12), (0.01, -5.0)]))
    if "poisson" in kind:
        scale, mean = 1.0, 0.0
    return {"kind": kind, "loss": loss, "same": same, "targets": targets, "end": end, "scale": scale, "mean": mean}


def numbers_for(case: dict[str, Any], X: pd.DataFrame) -> Any:
    raw = np.stack([X.a + 0.3 * i * X.b for i in range(case["targets"])], axis=1)
    raw = np.floor(np.exp(raw)) if "poisson" in case["kind"] else raw * case["scale"] + case["mean"]
    return pd.Series(raw[:, 0]) if case["targets"] == 1 else pd.DataFrame(raw, columns=[*"uvw"][: case["targets"]])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(for_numbers(), st.integers(0, 9))
def test_a_regression_is_a_plain_loop_on_the_same_rows(case: dict[str, Any], seed: int) -> None:
    X, n = rows(seed, 30), 30
    y = numbers_for(case, X)
    torch.manual_seed(seed)
    start = network(case["targets"], case["end"])
    options = {"epochs": 4, "batch_size": n, "optimizer": "sgd", "learning_rate": 0.01, "verbose": 0}
    reg = daskdl.TorchRegressor(start, loss=case["loss"], **options).fit(X, y)
    poisson, frame = "poisson" in case["kind"], np.asarray(y, dtype=np.float64).reshape(n, -1)
    means, scales = (0.0, 1.0) if poisson else (frame.mean(0), frame.std(0))
    label = torch.tensor((frame - means) / scales, dtype=torch.float32)
    plain, inputs = copy.deepcopy(start), torch.tensor(((X - X.mean()) / X.std(ddof=0)).to_numpy(), dtype=torch.float32)
    trained(plain, lambda: case["same"](plain(inputs).reshape(label.shape), label), 4)
    assert_same_weights(reg.model_, plain)
    found = plain(inputs).detach().double().reshape(n, -1).numpy()
    found = np.exp(found) if case["kind"] == "poisson" else found
    assert reg.predict(X) == pytest.approx((found * scales + means).reshape(reg.predict(X).shape), rel=1e-12, abs=1e-3)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(for_classes(), st.integers(0, 9), st.sampled_from(["int", "str", "bool", "float", "category"]))
def test_a_classification_is_a_plain_loop_on_the_same_rows(case: dict[str, Any], seed: int, dtype: str) -> None:
    X, n, k = rows(seed, 30), 30, case["k"]
    codes = np.argsort(np.argsort(X.a.to_numpy())) * k // n
    if dtype == "bool" and k > 2:
        dtype = "int"
    y = pd.Series(codes) if dtype == "int" else pd.Series(codes).astype(dtype)
    torch.manual_seed(seed)
    start = network(1 if case["single"] else k, case["end"])
    options = {"epochs": 4, "batch_size": n, "optimizer": "sgd", "learning_rate": 0.01, "verbose": 0}
    clf = daskdl.TorchClassifier(start, loss=case["loss"], **options).fit(X, y)
    plain, inputs = copy.deepcopy(start), torch.tensor(((X - X.mean()) / X.std(ddof=0)).to_numpy(), dtype=torch.float32)
    trained(plain, lambda: by_hand(case, plain(inputs), torch.tensor(codes)), 4)
    assert_same_weights(clf.model_, plain)
    output = plain(inputs).detach()
    scores = output if case["kind"] == "margin" else probabilities(case, output)
    assert (clf.predict(X) == clf.classes_[scores.argmax(1).numpy()]).mean() > 0.95  # but for scores that are equal
    if case["kind"] != "margin":
        assert clf.predict_proba(X) == pytest.approx(scores.numpy(), abs=1e-4)


def trained(module: nn.Module, loss: Any, epochs: int) -> None:
    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        assert torch.allclose(value, other.state_dict()[name], rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize(
    "params, weights",
    [
        ({"loss": nn.CrossEntropyLoss(torch.tensor([1.0, 7.0, 0.2]), label_smoothing=0.1)}, False),
        ({"loss": nn.CrossEntropyLoss(ignore_index=1)}, False),
        ({"class_weight": "balanced"}, True),
        ({"loss": lambda o, y: ((F.cross_entropy(o, y, reduction="none") * (1 + y)).sum(), (1 + y).sum())}, False),
        ({"class_weight": {0: 5.0}, "accumulate_grad_batches": 2, "reproducible": True}, True),
        ({"lr_scheduler": "OneCycleLR", "gradient_clip_val": 0.1, "precision": "bf16"}, True),
    ],
    ids=["class weights", "ignored", "balanced", "own pair", "virtual", "clipped"],
)
def test_two_ranks_learn_what_one_learns(client: Client, params: dict[str, Any], weights: bool) -> None:
    X = rows(1, 203)  # a last batch of three rows
    y, weight = pd.Series((X.a > 0.8).astype(int) + (X.b > 0)), pd.Series(np.exp(X.c))
    torch.manual_seed(1)
    start = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    options = {"epochs": 3, "batch_size": 50, "optimizer": "sgd", "learning_rate": 0.5, "verbose": 0, **params}
    one, two = (
        daskdl.TorchClassifier(start, num_workers=n, **options).fit(X, y, weight if weights else None).model_
        for n in (1, 2)
    )
    tolerance = 0.05 if "precision" in params else 1e-4
    for name, value in one.state_dict().items():
        assert torch.allclose(value, two.state_dict()[name], rtol=tolerance, atol=tolerance), name


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.booleans(), st.floats(-5, 5), st.floats(0.5, 3))
def test_labels_are_standardised_if_only_differences_count(k: int, pairs: bool, low: float, scale: float) -> None:
    """A loss by hand, of any number of outputs: what it sees is the label, moved and stretched, or the label itself."""
    quantiles = torch.tensor([0.1, 0.5, 0.9])[:k]

    def pinball(o: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        d = y.reshape(-1, 1) - o
        return torch.maximum(quantiles * d, (quantiles - 1) * d).mean()

    def relative(o: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ((o - y.reshape(-1, 1)) / (1 + y.reshape(-1, 1).abs())).abs().mean()

    y = pd.Series(np.random.default_rng(0).normal(low, scale, 50))
    stats = describe_target(y, classes=False)
    target = Target.from_stats("y", stats, classes=False)
    trial = try_out(network(k), as_loss(relative if pairs else pinball), target, learned(rows(0, 50)), stats, False)
    found = standardised(target, trial)
    assert (found.mean, found.scale) == ((0.0, 1.0) if pairs else (target.mean, target.scale))
    assert trial.n_outputs == k
    assert describe_targets([y, y], classes=False).low == y.min()
