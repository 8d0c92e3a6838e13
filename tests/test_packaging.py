"""pyproject.toml, constraints.txt, environment.yml and binder/ say the same, and what is installed agrees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import daskdl
from daskdl import workspace

ROOT = Path(__file__).parent.parent
CORE = "core"
CONDA_NAMES = {  # conda's name -> PyPI's
    "pytorch": "torch",
    "pytorch-cpu": "torch",
    "cudf": "cudf-cu13",
    "dask-cudf": "dask-cudf-cu13",
    "distributed": "dask",  # an extra of dask on PyPI, a package of its own on conda
}
CONDA_ONLY = {"python", "pip"}
ENVIRONMENTS = {  # file -> the extras it stands for
    "environment.yml": ("cuda", "lab", "demo"),
    "binder/environment.yml": ("cpu", "lab", "demo"),
}


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(*extras: str) -> dict[str, SpecifierSet]:
    """The ranges of the core and of some extras, joined by name; both builds of XGBoost are one."""
    ranges: dict[str, SpecifierSet] = {}
    lists = [project()["dependencies"], *(project()["optional-dependencies"][extra] for extra in extras)]
    for requirement in map(Requirement, [line for lines in lists for line in lines]):
        name = plain(requirement.name)
        ranges[name] = ranges.get(name, SpecifierSet()) & requirement.specifier
    return ranges


def plain(name: str) -> str:
    canonical = canonicalize_name(name)
    return "xgboost" if canonical == "xgboost-cpu" else CONDA_NAMES.get(canonical, canonical)


def conda(file: str) -> dict[str, list[Requirement]]:
    lines: list[Any] = yaml.safe_load((ROOT / file).read_text())["dependencies"]
    pip = next(entry["pip"] for entry in lines if isinstance(entry, dict))
    found: dict[str, list[Requirement]] = {}
    for line in [*(entry for entry in lines if isinstance(entry, str)), *pip]:
        if not line.startswith("--editable"):
            requirement = Requirement(line.replace("=3.11", "==3.11") if line == "python=3.11" else line)
            found.setdefault(plain(requirement.name), []).append(requirement)
    return found


def pinned() -> dict[str, Version]:
    lines = (line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


@pytest.mark.parametrize("file", ENVIRONMENTS)
def test_conda_environments_name_the_same_packages_and_ranges(file: str) -> None:
    wanted, given = requirements(*ENVIRONMENTS[file]), conda(file)
    assert set(given) - CONDA_ONLY == set(wanted)
    for name, ours in wanted.items():
        for requirement in given[name]:
            assert tightest(requirement.specifier) == tightest(ours), (
                f"{file}: {requirement}, pyproject.toml: {name}{ours}"
            )


def tightest(specifiers: SpecifierSet) -> set[str]:
    """Leave out a bound when a tighter one of its kind stands beside it."""
    kinds: dict[str, Any] = {}
    for each in specifiers:
        best = kinds.get(each.operator)
        tighter = min if each.operator.startswith("<") else max
        kinds[each.operator] = each if best is None else tighter(best, each, key=lambda s: Version(s.version))
    return {str(each) for each in kinds.values()}


@pytest.mark.parametrize("file", ENVIRONMENTS)
def test_conda_pythons_are_ours(file: str) -> None:
    ours = SpecifierSet(project()["requires-python"])
    (python,) = conda(file)["python"]
    tested = ["3.10", "3.11", "3.12", "3.13"]
    assert all(version in ours for version in python.specifier.filter(tested))


def test_constraints_lie_in_the_ranges_and_are_public_versions() -> None:
    pins = pinned()
    for name, specifier in requirements("cpu", "lab", "demo", "dev").items():
        version = pins["xgboost-cpu" if name == "xgboost" else name]
        assert version in specifier, f"{name} {version} is not in {specifier}"
    assert all(version.local is None for version in pins.values())


def test_constraints_are_what_is_installed() -> None:
    if any(name.startswith("cudf") for name in installed()):
        pytest.skip("RAPIDS pins the versions of a GPU environment, constraints.txt those of a CPU environment")
    here, pins = installed(), pinned()
    assert {name: here[name] for name in pins.keys() & here.keys() if here[name] != pins[name]} == {}
    direct = requirements("cpu", "lab", "demo", "dev").keys() - {"xgboost"}
    assert direct <= here.keys() and direct <= pins.keys()


@cache
def installed() -> dict[str, Version]:
    found = {canonicalize_name(d.metadata["Name"]): d.version for d in metadata.distributions()}
    return {name: Version(Version(version).public) for name, version in found.items()}


def test_the_version_is_said_once() -> None:
    assert project()["dynamic"] == ["version"]
    assert metadata.version("daskdl") == daskdl.__version__
    assert f"## [{daskdl.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("file", ["binder/postBuild", "binder/start", ".ci/run"])
def test_scripts_can_be_executed(file: str) -> None:
    assert os.access(ROOT / file, os.X_OK)
    assert (ROOT / file).read_text().startswith("#!")


def test_binder_opens_the_layout_of_the_lab() -> None:
    written = json.loads((ROOT / "binder" / "daskdl.jupyterlab-workspace").read_text())
    assert written == workspace.workspace("/proxy/8787", "notebooks/00_quickstart.ipynb")
    assert (ROOT / "notebooks" / "00_quickstart.ipynb").exists()


def test_binder_start_opens_it_below_the_prefix_of_a_hub(tmp_path: Path) -> None:
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    environment |= {"JUPYTERHUB_SERVICE_PREFIX": "/user/x/", "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path)}
    subprocess.run([ROOT / "binder" / "start", "true"], cwd=ROOT, env=environment, check=True, timeout=60)
    (written,) = tmp_path.glob("*.jupyterlab-workspace")
    assert json.loads(written.read_text())["data"]["dask-dashboard-launcher"]["url"] == "/user/x/proxy/8787"


@pytest.mark.cluster
def test_the_panes_are_pages_of_the_dashboard(client: Any) -> None:
    from urllib.request import urlopen

    base = client.dashboard_link.removesuffix("/status")
    listed = json.load(urlopen(f"{base}/individual-plots.json")).values()
    assert {f"/{route}" for route in workspace.PANES} <= set(listed)
