"""Rows from which XGBoost learns given bins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost

from daskdl.training.bins import rows_with_cuts, same_cuts
from daskdl.training.boost import cuts_of


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_found_for_any_bins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, max_bin = int(rng.choice([1, 2, 50, 3000])), int(rng.choice([2, 16, 256]))
    frame = pd.DataFrame(
        {
            "normal": rng.normal(size=n),
            "holes": np.where(rng.random(n) < 0.5, np.nan, rng.normal(size=n)),
            "few": rng.choice([-1e30, -2.5, 0, 1e-20, 3e30], n),
            "constant": rng.normal() * 10.0 ** rng.integers(-8, 8),
            "none": np.nan,
            "below": -np.abs(rng.normal(size=n)) * 1e6 - 5,
            "above": np.exp(5 * rng.normal(size=n)),
            "years": rng.integers(1990, 2020, n),
            "counts": -rng.integers(0, 500, n),
            "big": 1e8 + rng.integers(0, 9, n),
        },
        dtype="float32",
    ).assign(city=pd.Categorical(rng.choice(list("xyz"), n)))
    options: dict[str, Any] = {"max_bin": max_bin, "enable_categorical": True}
    matrix = xgboost.QuantileDMatrix(frame, **options)
    cuts = cuts_of(matrix)
    rows = rows_with_cuts(cuts, matrix.feature_types or [])
    again = xgboost.QuantileDMatrix(
        rows, feature_types=matrix.feature_types, feature_names=matrix.feature_names, **options
    )
    found = cuts_of(again)
    assert same_cuts(cuts, found)
    highest = cuts[0][1:] - 1
    assert np.allclose(found[1][highest], cuts[1][highest], rtol=1e-6, atol=2e-5), "also those above all values"
