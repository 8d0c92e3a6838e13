"""Every block of code of the documentation runs as it is printed, page by page, from the names that guides/index makes.

A block that cannot run here says so, and why, behind its language (```` ```python not run: it needs a GPU ````), and is
listed below, so that nobody leaves one out by the way.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch.distributed as dist
import yaml
from distributed import Client
from faulty_store import SECRET, FaultyStore, faulty_store
from pages import DOCS, PAGES, ROOT, Fence, fences, name_of, python

import daskdl
from daskdl import cli

NOT_RUN = {
    "docs/gpu.md": ["it needs a GPU"],
    "docs/guides/deploying.md": [
        "it needs a scheduler or a cluster manager",
        "it needs SLURM",
        "it needs Kubernetes",
        "it needs Kubernetes",
        "it needs Dask Gateway",
        "it needs an account of Coiled",
        "it needs an account of AWS",
        "it needs a scheduler with TLS",
    ],
    "docs/moving/from_horovod.md": ["it is Horovod's"],
    "docs/moving/from_petastorm.md": ["it is Petastorm's"],
    "docs/moving/from_ray.md": ["it is Ray's"],
    "docs/moving/from_spark.md": ["it is Spark's", "it is Spark's"],
    "docs/moving/from_torchrun.md": ["it is plain PyTorch's"],
}
NAMES = DOCS / "guides" / "index.md"
SCHEDULER = "tcp://scheduler:8786"  # stands on the pages for one that runs
WITH_CODE = [path for path in PAGES if path != NAMES and any(not block.not_run for block in python(path))]
LANGUAGES = {"python", "console", "text", "yaml", ""}


def test_what_is_not_run_is_known() -> None:
    found = {name_of(path): [block.not_run for block in python(path) if block.not_run] for path in PAGES}
    assert {name: reasons for name, reasons in found.items() if reasons} == NOT_RUN


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_other_blocks_are_well_formed(path: Path) -> None:
    blocks = fences(path)
    assert {block.language for block in blocks} <= LANGUAGES
    for block in blocks:
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.code), dict)
        if block.language == "console":
            check_commands(block.code)


def check_commands(code: str) -> None:
    """Our own commands have the subcommands and options that are printed, and files that are named are there."""
    for line in code.splitlines():
        assert line.startswith("$ "), f"a console block has lines of output: {line!r}"
        words = [word for word in shlex.split(line[2:], comments=True) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
        if words[0] == "daskdl":
            cli.parser().parse_args(words[1:])
        if words[0] == "python" and words[1] != "-m":
            assert (ROOT / words[1]).exists()
    for target in re.findall(r"^\$ make ([a-z]+)", code, re.M):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.fixture(scope="module")
def store() -> Iterator[FaultyStore]:
    with faulty_store() as server:
        yield server


@pytest.fixture(scope="module")
def environment(store: FaultyStore) -> dict[str, str]:
    """A bucket called ``bucket``, as somebody who uses S3 has it, and the rank of a script under torchrun."""
    return {
        "AWS_ENDPOINT_URL": store.upstream if "://" in store.upstream else f"http://{store.upstream}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        **{"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"},
    }


@pytest.fixture(scope="module")
def four(environment: dict[str, str]) -> Iterator[Client]:
    """Four workers, as some pages want."""
    client = daskdl.connect("cpu", n_workers=4, memory_limit="2GiB", dashboard_address="127.0.0.1:0", env=environment)
    yield client
    client.shutdown()


@pytest.fixture(scope="module")
def desk(four: Client, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The working directory of a reader whose ``connect()`` joins a cluster that runs; the client that it gives."""
    with pytest.MonkeyPatch.context() as patch, Client(four.scheduler.address) as client:
        patch.chdir(tmp_path_factory.mktemp("desk"))
        patch.setenv("DASKDL_ADDRESS", four.scheduler.address)
        for name, value in environment.items():
            patch.setenv(name, value)
        with client.as_current():
            yield client


@pytest.fixture(scope="module")
def names(desk: Client) -> dict[str, Any]:
    """What every page begins with."""
    names = run_blocks(NAMES, {})
    fsspec.filesystem("s3").put("flights", "bucket/flights", recursive=True)
    return names


@pytest.mark.cluster
@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", WITH_CODE, ids=name_of)
def test_the_code_of_a_page_runs(path: Path, names: dict[str, Any], desk: Client) -> None:
    desk.wait_for_workers(4)
    try:
        with desk.as_current():
            after = run_blocks(path, names)
    finally:
        if dist.is_initialized():  # by a page that is a script of its own
            dist.destroy_process_group()
    if path.name == "tour.md":
        assert "worker_lost" in set(after["result"].run.events.event)
        assert Path("late-flights").is_dir()


def run_blocks(path: Path, names: dict[str, Any]) -> dict[str, Any]:
    """Run the blocks of a page one after the other, as cells of a notebook; return the names that it leaves."""
    names = {**names, "__name__": path.stem}
    for block in python(path):
        if not block.not_run:
            run_cell(path, block, names)
    return names


def run_cell(path: Path, block: Fence, names: dict[str, Any]) -> None:
    """Run a block and show its last expression, at the lines of the page, so that a traceback says where it is."""
    tree = ast.parse("\n" * (block.line - 1) + block.code.replace(SCHEDULER, os.environ["DASKDL_ADDRESS"]))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(path), "exec"), names)
    if isinstance(last, ast.Expr):
        repr(eval(compile(ast.Expression(last.value), str(path), "eval"), names))
