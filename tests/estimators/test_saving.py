"""Saving and loading: whatever a module holds, whatever was given, and nothing half written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import daskdl
from daskdl.estimators import saving
from daskdl.estimators.weights import put_weights, weights_of

FEATURES = ["a", "b"]


class Tied(nn.Module):
    """Two layers with one weight, a buffer of no values, one that is a view, and complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)
        self.b.weight = self.a.weight
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)
        self.waves = nn.Parameter(torch.randn(2, dtype=torch.complex128))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.b(torch.relu(self.a(x)))) * self.waves.abs().sum().float()


@pytest.fixture
def fitted(planted: pd.DataFrame) -> daskdl.TorchClassifier:
    frame = planted[[*FEATURES, "late"]].fillna(0)
    return daskdl.TorchClassifier(Tied(), epochs=1, verbose=0).fit(frame[FEATURES], frame["late"])


def test_tied_complex_empty_and_turned_weights_are_saved(fitted: Any, planted: pd.DataFrame, tmp_path: Path) -> None:
    fitted.save(str(tmp_path))
    loaded = daskdl.load(str(tmp_path), module=Tied())
    assert np.array_equal(loaded.predict_proba(planted[FEATURES]), fitted.predict_proba(planted[FEATURES]))
    assert loaded.model_.b.weight is loaded.model_.a.weight
    assert torch.equal(loaded.model_.turned, fitted.model_.turned)


def test_what_cannot_be_saved_is_named_and_leaves_nothing(fitted: Any, tmp_path: Path) -> None:
    fitted.model_.register_buffer("sparse", torch.eye(3).to_sparse())
    with pytest.raises(TypeError, match="sparse of the module is sparse_coo, and a file of weights takes dense"):
        fitted.save(f"{tmp_path}/model")
    assert not os.path.exists(f"{tmp_path}/model")


def test_a_save_that_fails_leaves_what_was_there(
    fitted: Any, planted: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted.save(str(tmp_path))
    before = fitted.predict_proba(planted[FEATURES])
    with torch.no_grad():
        fitted.model_.out.bias += 1
    with monkeypatch.context() as patch:
        patch.setattr(saving, "ABOUT", "no/such/folder.json")  # the disk refuses the second of the two files
        with pytest.raises(OSError, match="folder.json"):
            saving.save(fitted, f"{tmp_path}/new")
    assert not os.path.exists(f"{tmp_path}/new")
    assert np.array_equal(daskdl.load(str(tmp_path), module=Tied()).predict_proba(planted[FEATURES]), before)
    fitted.save(str(tmp_path))
    assert len(os.listdir(tmp_path)) == 2
    loaded = daskdl.load(str(tmp_path), module=Tied())
    assert torch.equal(loaded.model_.out.bias, fitted.model_.out.bias)


def test_a_folder_of_other_things_is_refused(fitted: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not empty, and no saved estimator: it has thesis.tex"):
        fitted.save(str(tmp_path))
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_what_a_file_cannot_hold_is_asked_for_by_name(planted: pd.DataFrame, tmp_path: Path) -> None:
    frame = planted[[*FEATURES, "late"]].fillna(0)
    loss = nn.BCEWithLogitsLoss()
    options: dict[str, Any] = {"num_workers": (1, 2), "checkpoints": daskdl.Checkpoints("/x", storage_options={"s": 1})}
    options |= {"kinds": {"a": "number"}, "name": "late"}
    clf = daskdl.TorchClassifier(loss=loss, **options)
    held, left = saving.params_of(clf)
    assert list(left) == ["loss"]
    assert "'s'" not in str(held)
    clf = daskdl.TorchClassifier(loss=loss, epochs=1, verbose=0, num_workers=1).fit(frame[FEATURES], frame["late"])
    clf.save(str(tmp_path))
    with pytest.raises(
        ValueError, match=r"saved with loss=BCEWithLogitsLoss\(\).*Pass it: daskdl.load\(path, loss=...\)"
    ):
        daskdl.load(str(tmp_path))
    assert daskdl.load(str(tmp_path), loss=loss).score(frame[FEATURES], frame["late"]) > 0
    with pytest.raises(TypeError, match="TorchClassifier has no parameters n_trees"):
        daskdl.load(str(tmp_path), loss=loss, n_trees=3)


def test_another_module_is_refused_in_words(fitted: Any, tmp_path: Path) -> None:
    fitted.save(str(tmp_path))
    with pytest.raises(ValueError, match="module is not the one that was saved: (.|\n)*Missing key"):
        daskdl.load(str(tmp_path), module=nn.Sequential(nn.Linear(2, 1)))


def test_damaged_folders_are_told_in_words(fitted: Any, tmp_path: Path) -> None:
    fitted.save(str(tmp_path))
    (model,) = tmp_path.glob("model-*")
    model.unlink()
    with pytest.raises(ValueError, match="holds an estimator.json but not its model"):
        daskdl.load(str(tmp_path), module=Tied())
    (tmp_path / "estimator.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        daskdl.load(str(tmp_path), module=Tied())


def test_extra_state_of_a_module_is_kept() -> None:
    class Counts(nn.Linear):
        n = 0

        def get_extra_state(self) -> dict[str, Any]:
            return {"n": self.n, "pair": (1, 2)}

        def set_extra_state(self, state: dict[str, Any]) -> None:
            self.n, self.pair = state["n"], state["pair"]

    trained, other = Counts(2, 1), Counts(2, 1)
    trained.n = 7
    put_weights(other, *weights_of(trained))
    assert (other.n, other.pair) == (7, (1, 2))
