"""Torch's random state, which all threads of a process share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_drawing = threading.RLock()


@contextmanager
def random_state(seed: int) -> Iterator[None]:
    """Draw from a seed in a block, and leave the random state as it was; other threads wait that would draw, too.

    Examples
    --------
    >>> with random_state(3):
    ...     first = torch.rand(2)
    >>> with random_state(3):
    ...     bool((torch.rand(2) == first).all())
    True
    """
    with _drawing, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
