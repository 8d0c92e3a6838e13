"""Into how many lanes an order cuts its rows, and how long their windows are: they follow from the dataset alone."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

MAX_LANES = 64
MANY_ROWS = 2**34  # from here on lanes are added, so that thousands of ranks have lanes of their own
ROWS_PER_LANE = 2**26  # in such a dataset
WINDOW_ROWS = 32_768
MIN_WINDOW_ROWS = 256
HELD_BYTES = 144 << 20  # by the lanes of a source that is read from files
FEWEST_LANES, FEWEST_ROWS = 4, 16  # lanes, and rows of a window, that memory does not take away
SPREAD_LANES = 16  # in groups that are larger than their windows


def choose_lanes(batch_size: int, n_rows: int = 0) -> int:
    """Lanes for a batch size: 64 or the largest power of two that divides it, but never fewer than 16.

    A dataset of more than ``MANY_ROWS`` rows has a lane for every ``ROWS_PER_LANE``.
    """
    most = MAX_LANES if n_rows <= MANY_ROWS else 1 << (n_rows // ROWS_PER_LANE - 1).bit_length()
    return max(math.gcd(batch_size, most), most // 4)


def layout(
    counts: npt.NDArray[np.int64], batch_size: int, row_bytes: float, open_bytes: float, random_access: bool = False
) -> tuple[int, int]:
    """Lanes and rows per window for rows that are read from where they lie, such as files.

    They depend on the dataset alone. All lanes together, read by one rank, hold about ``HELD_BYTES``: a window each,
    and the group it is reading. Groups that are read from the front have no more than one lane where a window holds
    what that lane has. Where it does not, several lanes begin at different places of a group, which is read once for
    each of them: else a large group that is sorted by its label would give batches of one class.

    Parameters
    ----------
    counts : array of shape (n_groups,)
    batch_size : int
    row_bytes, open_bytes, random_access
        As of a ``Source``.
    """
    n_rows, filled = int(np.sum(counts)), max(1, int(np.count_nonzero(counts)))
    lanes = choose_lanes(batch_size, n_rows)
    if random_access:
        while lanes > FEWEST_LANES and HELD_BYTES / lanes < FEWEST_ROWS * row_bytes:
            lanes //= 2
        return lanes, int(min(max(HELD_BYTES / lanes / row_bytes, 1), WINDOW_ROWS))
    fits = HELD_BYTES / (open_bytes + row_bytes * WINDOW_ROWS / 2)
    if n_rows <= MANY_ROWS:
        lanes = _halved(lanes, max(FEWEST_LANES, fits))
        one_each = _halved(lanes, filled)
        whole = n_rows <= one_each * _window_rows(one_each, row_bytes, open_bytes)
        lanes = one_each if whole else _halved(lanes, max(filled, SPREAD_LANES))
    return lanes, _window_rows(lanes, row_bytes, open_bytes)


def _halved(lanes: int, most: float) -> int:
    while lanes > most:
        lanes //= 2
    return max(1, lanes)


def _window_rows(lanes: int, row_bytes: float, open_bytes: float) -> int:
    """Rows of a window of each of so many lanes."""
    window = (HELD_BYTES / lanes - open_bytes) / row_bytes
    most = 2 * WINDOW_ROWS if lanes > FEWEST_LANES else 32 * WINDOW_ROWS
    return int(min(max(window, MIN_WINDOW_ROWS), most))
