"""Networks: losses, modules and labels fit one another or are refused before launch; what ``fit`` takes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client
from sklearn.metrics import f1_score, make_scorer, mean_absolute_error, r2_score
from torch import nn

import daskdl
from daskdl.errors import DataError

F = list("abc")
OPTIONS: dict[str, Any] = {"epochs": 4, "batch_size": 64, "learning_rate": 0.02, "verbose": 0}


def table(n: int = 400) -> pd.DataFrame:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(n, 3)), columns=F)
    return frame.assign(y=(frame.a > 0).astype(int), z=3 * frame.a + 2, third=(frame.a > 0) * 1 + (frame.b > 0) * 1)


def network(n_outputs: int = 1, *end: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, n_outputs), *end)


def classifier(module: Any = None, **params: Any) -> daskdl.TorchClassifier:
    return daskdl.TorchClassifier(module if module is not None else network(), **{**OPTIONS, **params})


def regressor(module: Any = None, **params: Any) -> daskdl.TorchRegressor:
    return daskdl.TorchRegressor(module if module is not None else network(), **{**OPTIONS, **params})


# -- losses, modules, labels --------------------------------------------------------------------------------------


def test_an_output_of_one_column_is_never_compared_with_every_label() -> None:
    """The example of the issue: R2 was 0.0009, as (n, 1) and (n,) were made n x n."""
    pdf = table()
    assert daskdl.TorchRegressor(loss=nn.L1Loss(), **OPTIONS).fit(pdf[F], pdf.z).score(pdf[F], pdf.z) > 0.9
    assert regressor(loss=lambda o, y: ((o - y) ** 2).mean(), epochs=8).fit(pdf[F], pdf.z).score(pdf[F], pdf.z) > 0.9


@pytest.mark.parametrize(
    "module, loss",
    [
        (None, nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0]))),
        (None, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))),
        (network(2), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))),
        (daskdl.TabularNet, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))),
        (network(2, nn.LogSoftmax(1)), nn.NLLLoss()),
        (network(1, nn.Sigmoid()), None),
    ],
    ids=["pos_weight", "one logit", "two logits", "made for it", "log-probabilities", "probability"],
)
def test_two_classes_and_what_a_loss_wants_of_them(client: Client, module: Any, loss: Any) -> None:
    pdf = table()
    clf = classifier(module, loss=loss, epochs=8).fit(pdf[F], pdf.y)
    p = clf.predict_proba(pdf[F])
    assert clf.score(pdf[F], pdf.y) > 0.9
    assert p.shape == (400, 2) and p.sum(axis=1) == pytest.approx(np.ones(400), abs=1e-5)
    assert np.corrcoef(p[:, 1], pdf.a)[0, 1] > 0.5


@pytest.mark.parametrize(
    "module, loss, words",
    [
        (network(5), None, r"output of shape \(6, 5\) for 6 rows .*expected \(6,\) or \(6, 1\) or \(6, 2\) for 2 cl"),
        (network(2), nn.NLLLoss(), "gives no log-probabilities, but logits.* End it in nn.LogSoftmax"),
        (network(2, nn.Softmax(1)), nn.CrossEntropyLoss(), "gives probabilities already.* Leave out its softmax"),
        (network(1, nn.Sigmoid()), nn.BCEWithLogitsLoss(), "gives probabilities already.* Leave out its sigmoid"),
        (network(1), nn.BCELoss(), "gives no probabilities .*BCEWithLogitsLoss"),
        (network(1), nn.MSELoss(), "gives no probabilities .*TorchRegressor"),
        (network(2), nn.BCEWithLogitsLoss(), "gives 2 outputs of a row .*CrossEntropyLoss"),
        (network(1), nn.MultiMarginLoss(), "gives one output for two classes .*Let it give 2"),
        (network(1), nn.HingeEmbeddingLoss(), "HingeEmbeddingLoss cannot be used here: it takes outputs for distances"),
        (network(2), nn.CrossEntropyLoss(weight=torch.ones(3)), r"float32 of shape \(6, 2\), the label is int64 of sh"),
        (network(1), lambda output, y: ((output - y) ** 2).mean().item(), "returned float"),
        (network(1), lambda output, y: (output.detach() * y).mean(), "does not depend on any parameter that learns"),
        (network(1), "log_loss", r"loss must be a function loss\(output, y\)"),
    ],
)
def test_what_does_not_fit_is_refused_before_launch(client: Client, module: Any, loss: Any, words: str) -> None:
    pdf = table()
    clf = classifier(module, loss=loss)
    with pytest.raises((ValueError, TypeError), match=words):
        clf.fit(pdf[F], pdf.y)
    assert not hasattr(clf, "run_")


@pytest.mark.parametrize(
    "loss, label, words",
    [
        (nn.CrossEntropyLoss(), "z", "takes classes, and a regression has numbers. Use TorchClassifier"),
        (nn.PoissonNLLLoss(), "z", "takes labels of 0 to inf; these are -"),
        (nn.BCEWithLogitsLoss(), "z", "takes labels of 0 to 1; these are -"),
        (nn.GaussianNLLLoss(), "z", r"gives one output .*Return two tensors, \(mean, variance\)"),
        (lambda o, y: ((o - y) / y).abs().mean(), "far", "labels of about 1.7e.12 .*do not fit into float32"),
    ],
)
def test_numbers_that_a_loss_cannot_take(loss: Any, label: str, words: str) -> None:
    pdf = table().assign(far=lambda f: f.z + 1.7e12)
    with pytest.raises(ValueError, match=words):
        regressor(loss=loss).fit(pdf[F], pdf[label])


def test_labels_are_in_the_unit_in_which_a_loss_reads_them() -> None:
    pdf = table().assign(n=lambda f: np.floor(np.exp(f.a + 1)))
    for loss in (nn.PoissonNLLLoss(), nn.PoissonNLLLoss(log_input=True, full=True)):
        counts = regressor(loss=loss, epochs=15).fit(pdf[F], pdf.n)
        assert counts.score(pdf[F], pdf.n) > 0.6 and (counts.predict(pdf[F]) >= 0).all()
    shares = regressor(loss=nn.BCEWithLogitsLoss(), epochs=8).fit(pdf[F], pdf.y)
    assert shares.predict(pdf[F]).min() >= 0 and shares.predict(pdf[F]).max() <= 1


class Spread(nn.Module):
    """A mean and a variance."""

    def __init__(self) -> None:
        super().__init__()
        self.both = network(2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, spread = self.both(x).split(1, dim=1)
        return mean, nn.functional.softplus(spread) + 1e-3


def test_of_several_outputs_the_first_is_predicted() -> None:
    pdf = table()
    assert regressor(Spread(), loss=nn.GaussianNLLLoss(), epochs=15).fit(pdf[F], pdf.z).score(pdf[F], pdf.z) > 0.9


def test_three_outputs_and_a_loss_of_its_own(client: Client) -> None:
    """The example of the issue: 3,000 rows gave 9,000 numbers. These are quantiles, in the unit of the label."""
    quantiles = torch.tensor([0.1, 0.5, 0.9])

    def pinball(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        d = y[:, None] - output
        return torch.maximum(quantiles * d, (quantiles - 1) * d).mean()

    pdf = table()
    lazy = dd.from_pandas(pdf, npartitions=3)
    reg = regressor(network(3), loss=pinball, epochs=15).fit(pdf[F], 100 * pdf.z)
    found = reg.predict(pdf[F])
    assert found.shape == (400, 3)
    assert np.corrcoef(found[:, 1], pdf.z)[0, 1] > 0.9 and 100 < found.std() < 1000
    later = reg.predict(lazy[F])
    assert list(later.columns) == [0, 1, 2]
    assert later.compute().to_numpy() == pytest.approx(found, rel=1e-5)


def test_several_labels(client: Client) -> None:
    pdf = table().assign(u=lambda f: f.z * 1000, v=lambda f: -f.b + 7)
    lazy = dd.from_pandas(pdf, npartitions=3)
    reg = daskdl.TorchRegressor(**{**OPTIONS, "epochs": 10}).fit(lazy[F], lazy[["u", "v"]])
    assert list(reg.predict(lazy[F]).columns) == ["u", "v"]
    found = reg.predict(pdf[F])
    assert found.shape == (400, 2)
    assert (
        reg.score(pdf[F], pdf[["u", "v"]]) == pytest.approx(r2_score(pdf[["u", "v"]], found)) and found[:, 0].std() > 99
    )
    with pytest.raises(DataError, match="y has several columns, and a classifier predicts one class for each row"):
        classifier().fit(lazy[F], lazy[["u", "v"]])


def test_a_large_label_that_differs_little() -> None:
    """The example of the issue: R2 was -151,940."""
    pdf = table()
    assert regressor(epochs=10).fit(pdf[F], 1.7e12 + 100 * pdf.z).score(pdf[F], 1.7e12 + 100 * pdf.z) > 0.9


# -- batch norm ---------------------------------------------------------------------------------------------------


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


@pytest.mark.parametrize("reproducible", [False, True])
def test_a_last_batch_of_one_row_is_joined_for_a_module_that_needs_more(client: Client, reproducible: bool) -> None:
    """The example of the issue, smaller: 257 rows in batches of 64 died at the end of the first epoch."""
    pdf = table(257)
    fits = [
        classifier(normed(), reproducible=reproducible, num_workers=n, optimizer="sgd").fit(pdf[F], pdf.y)
        for n in (1, 2)
    ]
    for clf in fits:
        assert len(clf.run_.metrics) == 4 * 4
        assert clf.run_.audit().as_planned.all() and (clf.run_.audit().rows == 257).all()
    one, two = (clf.model_[1].running_mean for clf in fits)
    assert torch.allclose(one, two, atol=1e-4)
    plain = classifier(reproducible=reproducible).fit(pdf[F], pdf.y)
    assert len(plain.run_.metrics) == 4 * 5, "a module that can be trained on one row gets one"


@pytest.mark.parametrize(
    "params, words",
    [
        ({"batch_size": 1}, "cannot be trained on one row.*in batches of 1 one has 1, and it takes 2"),
        ({"batch_size": 8, "reproducible": True}, "one has 8, and 8 virtual ranks need 16, two for each"),
        ({"batch_size": 3, "num_workers": 2}, "cannot share batches of 2 rows: a rank would have one"),
    ],
)
def test_batches_that_are_too_short_for_a_module(client: Client, params: dict[str, Any], words: str) -> None:
    pdf = table(257)
    with pytest.raises(DataError, match=words):
        classifier(normed(), **params).fit(pdf[F], pdf.y)


# -- what fit takes -----------------------------------------------------------------------------------------------


def test_weights_of_rows_and_classes(client: Client) -> None:
    pdf = table().assign(w=lambda f: np.where(f.y == 1, 1e-6, 1.0))
    lazy = dd.from_pandas(pdf, npartitions=3)
    assert classifier(epochs=8).fit(lazy[F], lazy.y, lazy.w).predict(pdf[F]).mean() < 0.1
    named = classifier(epochs=8).fit(lazy[[*F, "y", "w"]], "y", "w")
    assert named.feature_names_in_.tolist() == F
    assert named.predict(pdf[[*F, "w"]]).mean() < 0.1
    assert classifier(epochs=8, class_weight={1: 1e-6}).fit(pdf[F], pdf.y).predict(pdf[F]).mean() < 0.1
    with pytest.raises(ValueError, match="it returns one number for all rows, which cannot be weighted"):
        classifier(loss=lambda o, y: nn.functional.binary_cross_entropy_with_logits(o, y)).fit(pdf[F], pdf.y, pdf.w)


def test_metrics_over_the_validation_rows(client: Client) -> None:
    pdf = table()
    recent = (pdf[F], pdf.third, pd.Series(np.where(pdf.a > 1, 3.0, 1.0)))
    clf = classifier(network(3), metrics=["neg_log_loss", f1_score_of_all], num_workers=2)
    clf.fit(pdf[F], pdf.third, validation_data=recent)
    last, weight = clf.run_.metrics.iloc[-1], recent[2]
    assert last.val_accuracy == pytest.approx(clf.score(pdf[F], pdf.third, sample_weight=weight), abs=1e-6)
    assert last.val_neg_log_loss == pytest.approx(-last.val_loss, abs=1e-4)
    assert last.val_f1_score_of_all == pytest.approx(f1_score_of_all(pdf.third, clf.predict(pdf[F])))
    reg = regressor(metrics={"error": make_scorer(mean_absolute_error), "r2": "r2"})
    reg.fit(pdf[F], 1000 * pdf.z, validation_data=(pdf[F], 1000 * pdf.z))
    error = mean_absolute_error(1000 * pdf.z, reg.predict(pdf[F]))
    assert reg.run_.metrics.val_error.iloc[-1] == pytest.approx(error, rel=1e-4), "in the unit of the label"


def f1_score_of_all(y: Any, predicted: Any) -> float:
    return float(f1_score(y, predicted, average="macro"))


@pytest.mark.parametrize(
    "params, words",
    [
        ({"metrics": ["f17"]}, "'f17' is none of scikit-learn's names"),
        ({"lr_scheduler": "StepLR"}, "lr_scheduler=StepLR needs step_size. Give a function"),
        ({"lr_scheduler": "OneCycle"}, "lr_scheduler must be one of .*'OneCycleLR'"),
        ({"lr_scheduler": "ReduceLROnPlateau"}, "needs validation_data"),
        ({"lr_scheduler": lambda optimizer: 3}, "must make a scheduler .*it made 3"),
        ({"gradient_clip_val": 0}, "must be above 0"),
        ({"accumulate_grad_batches": 0}, "at least 1 batch, got 0"),
        ({"precision": "64"}, "precision must be one of .*got '64'"),
        ({"frozen": "encoder"}, "frozen='encoder' is no parameter of the module.*'0.weight'"),
        ({"frozen": ["*"]}, "no parameters that learn"),
        ({"class_weight": {"x": 1}}, r"class_weight has \['x'\], which are none of the classes \[0, 1\]"),
        ({"callbacks": [3]}, r"a callback is a function f\(context, values\).*got 3"),
    ],
)
def test_what_fit_does_not_take(params: dict[str, Any], words: str) -> None:
    pdf = table()
    with pytest.raises((ValueError, TypeError), match=words):
        classifier(**params).fit(pdf[F], pdf.y)


def test_layers_that_are_frozen_stay_as_they_are(client: Client) -> None:
    pdf, start = table(), network()
    model = classifier(start, frozen=["0", "*.bias"], weight_decay=0.1).fit(pdf[F], pdf.y).model_
    same = {name: bool(torch.equal(p, dict(start.named_parameters())[name])) for name, p in model.named_parameters()}
    assert same == {"0.weight": True, "0.bias": True, "2.weight": False, "2.bias": True}


def test_batches_that_make_one_step_are_one_batch(client: Client) -> None:
    pdf = table(300)
    whole, parts = (
        classifier(optimizer="sgd", batch_size=b, accumulate_grad_batches=k).fit(pdf[F], pdf.y).model_
        for b, k in ((300, 1), (70, 5))
    )
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_warm_start_and_rows_that_come_in_parts() -> None:
    pdf = table()
    clf = classifier(warm_start=True, epochs=3).fit(pdf[F], pdf.y)
    first, losses = clf.schema_, clf.run_.metrics.train_loss
    clf.fit(pdf[:200][F], pdf[:200].y)
    assert clf.schema_ is first
    assert clf.run_.metrics.train_loss.mean() < losses.mean()
    parts = classifier(network(3))
    for i in range(0, 400, 50):
        parts.partial_fit(pdf[i : i + 50][F], pdf[i : i + 50].third, classes=np.array([0, 1, 2]))
    assert parts.classes_.tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=r"X has labels that training data does not: \[14, 7\]"):
        parts.partial_fit(pdf[F], pdf.third * 7)


def test_without_labels_a_module_gives_back_its_input(client: Client) -> None:
    pdf = table()
    coder = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    reg = regressor(coder, loss=nn.MSELoss(), epochs=40).fit(dd.from_pandas(pdf[F], npartitions=2))
    assert list(reg.predict(dd.from_pandas(pdf[F], npartitions=2)).columns) == F
    standardised = (pdf[F] - pdf[F].mean()) / pdf[F].std(ddof=0)
    assert r2_score(standardised, reg.predict(pdf[F])) > 0.8
    with pytest.raises(ValueError, match="requires y to be passed"):
        regressor(coder).fit(pdf[F])


class Halt:
    """Counts steps; has a step of its own killed, and the training stopped."""

    def __init__(self, mark: str = "", kill_at: int = -1, stop_at: int = 10**9) -> None:
        self.mark, self.kill_at, self.stop_at, self.steps = mark, kill_at, stop_at, 0

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]

    def on_step_end(self, context: daskdl.Context, values: dict[str, float]) -> bool:
        if values["step"] == self.kill_at and context.rank == 1 and not Path(self.mark).exists():
            time.sleep(0.2)
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps += 1
        assert self.steps == values["step"] + 1, "what was done again was counted again"
        return self.steps >= self.stop_at


def test_a_kill_loses_neither_schedule_nor_gradients_nor_callbacks(client: Client, tmp_path: Path) -> None:
    pdf = table()
    mark = str(tmp_path / "killed")
    options = {"lr_scheduler": "OneCycleLR", "accumulate_grad_batches": 3, "reproducible": True, "precision": "bf16"}
    fits = [
        classifier(callbacks=[Halt(mark, kill_at, stop_at=23)], **options).fit(pdf[F], pdf.y) for kill_at in (-1, 11)
    ]
    assert Path(mark).exists() and "worker_lost" in fits[1].run_.events.event.tolist()
    assert [clf.run_.metrics.index[-1] for clf in fits] == [fits[0].run_.metrics.index[22]] * 2, "of 28 steps"
    rates = [clf.run_.metrics.learning_rate.dropna().iloc[-1] for clf in fits]
    assert rates[0] == rates[1] != 0.02
    for one, other in zip(*(clf.model_.parameters() for clf in fits), strict=True):
        assert torch.equal(one, other)
