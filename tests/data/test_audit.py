"""The digest of an audit: it knows every row's place, and not who used it or when."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdl.data.audit import MASK, hashes, total


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 200), st.integers(0, 2**40), st.data())
def test_a_digest_changes_when_two_rows_change_places_and_not_with_who_adds_up(
    n: int, first: int, data: object
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))  # type: ignore[attr-defined]
    places, rows = np.arange(first, first + n), rng.permutation(n)
    a, b = rng.choice(n, 2, replace=False)
    swapped = rows.copy()
    swapped[[a, b]] = rows[[b, a]]
    digest = total(hashes(places, rows))
    assert total(hashes(places, swapped)) != digest
    assert total(hashes(np.roll(places, 1), rows)) != digest
    assert total(hashes(places, np.where(rows == rows[a], rows[b], rows))) != digest, "one twice, one never"
    order, cut = rng.permutation(n), int(rng.integers(n))
    parts = [total(hashes(places[some], rows[some])) for some in (order[:cut], order[cut:])]
    assert sum(parts) & MASK == digest
