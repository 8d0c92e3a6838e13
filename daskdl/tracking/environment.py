"""What a run ran on: versions and platform, never variables, addresses or user names."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("dask", "distributed", "pandas", "pyarrow", "torch", "xgboost", "xgboost-cpu", "cudf-cu13")


def describe_environment() -> dict[str, str]:
    """Return the versions that matter for a result; reads package metadata only, imports none of them."""
    import daskdl

    found = {"python": platform.python_version(), "platform": platform.platform(), "daskdl": daskdl.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
