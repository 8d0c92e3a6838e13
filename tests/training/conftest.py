"""A cluster of three, for trainings whose workers are killed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from distributed import Client

import daskdl


@pytest.fixture(scope="module")
def three() -> Iterator[Client]:
    """Three workers of one thread, as processes, the current client of a file of tests."""
    client = daskdl.connect("cpu", n_workers=3, memory_limit="2GiB", dashboard_address="127.0.0.1:0")
    with client.as_current():
        yield client
    client.shutdown()
