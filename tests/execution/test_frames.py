"""Dask's profiler and a thread that starts another one do not wait for each other for ever."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
from distributed import Client

from daskdl.execution import frames

PROFILED = """
import gc, sys
collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
asked = sys._current_frames
gc.set_threshold(1)
found = asked()
gc.set_threshold(0)
print(len(collections))
"""


def test_frames_are_asked_for_without_collecting_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    while_asked = []
    python = frames._current_frames

    def asked() -> dict:
        while_asked.append(gc.isenabled())
        return python()

    monkeypatch.setattr(frames, "_current_frames", asked)
    assert frames._frames_without_collecting().keys() == python().keys()
    assert while_asked == [False] and gc.isenabled()
    gc.disable()
    try:
        frames._frames_without_collecting()
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="it does so no longer")
def test_python_would_collect() -> None:
    done = subprocess.run([sys.executable, "-c", PROFILED], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) > 0


@pytest.mark.cluster
def test_workers_are_guarded(client: Client) -> None:
    names = client.run(lambda: sys._current_frames.__name__)
    assert set(names.values()) == {"_frames_without_collecting"} or sys.version_info >= (3, 13)
