"""The pieces of the fit loop that are pure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from daskdl.training.evaluation import auc_of_histogram, score_histogram
from daskdl.training.optimizing import StepConfig, make_optimizer
from daskdl.training.outputs import class_scores


@given(st.integers(0, 2**31), st.integers(200, 500))
def test_the_binned_auc_is_that_of_sklearn(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 2)
    logits = rng.normal(size=n) + y
    binned = auc_of_histogram(score_histogram(torch.tensor(logits), torch.tensor(y)))
    assert binned == pytest.approx(roc_auc_score(y, logits), abs=0.005)


def test_one_class_has_no_auc() -> None:
    assert np.isnan(auc_of_histogram(score_histogram(torch.zeros(5), torch.ones(5, dtype=torch.int64))))


@pytest.mark.parametrize("output", [torch.tensor([0.3, -2.0]), torch.tensor([[0.3], [-2.0]])])
def test_one_logit_is_two_scores(output: torch.Tensor) -> None:
    assert class_scores(output, "logits")[:, 1].tolist() == pytest.approx(torch.sigmoid(output).reshape(-1).tolist())


@pytest.mark.parametrize("optimizer", ["adam", "SGD", lambda parameters, lr: torch.optim.Adagrad(parameters, lr=lr)])
def test_optimizers_by_name_or_function(optimizer: object) -> None:
    made = make_optimizer(StepConfig(optimizer, 0.5, 0.0), torch.nn.Linear(1, 1))
    assert made.param_groups[0]["lr"] == 0.5
