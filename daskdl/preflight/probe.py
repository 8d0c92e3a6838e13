"""What only a worker knows of itself: versions, cores, GPUs, allocator."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Sequence
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from distributed import Client

from daskdl.execution.rank_env import available_cores
from daskdl.preflight.facts import Worker

PACKAGES = ("dask", "distributed", "numpy", "pandas", "pyarrow", "torch")


def describe_process() -> dict[str, Any]:
    """Describe the calling process, from package metadata and files only; imports nothing large.

    Examples
    --------
    >>> describe_process()["cores"] >= 1
    True
    """
    import daskdl

    found = {"python": platform.python_version(), "daskdl": daskdl.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "versions": found,
        "cores": available_cores(),
        "gpus": _gpus(),
        "trim": os.environ.get("MALLOC_TRIM_THRESHOLD_", ""),
    }


def _gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len(glob("/dev/nvidia[0-9]*"))


def asked(client: Client, workers: Sequence[Worker]) -> tuple[Worker, ...]:
    """Ask all workers at once; one that cannot answer says why."""
    answers = client.run(describe_process, on_error="return")
    return tuple(_with(worker, answers.get(worker.address)) for worker in workers)


def _with(worker: Worker, answer: Any) -> Worker:
    if isinstance(answer, dict):
        return dataclasses.replace(worker, **answer)
    if isinstance(answer, BaseException):
        return dataclasses.replace(worker, error=f"{type(answer).__name__}: {answer}")
    return worker
