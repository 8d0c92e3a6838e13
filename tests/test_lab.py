"""``daskdl lab`` as a user starts it: reachable with its token only, on localhost only, and gone after Ctrl-C."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import psutil
import pytest
from processes import alive, session_of, wait_until

from daskdl import lab, workspace

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


@contextmanager
def running_lab(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """Yield the process, the address it printed, and the lines before it."""
    command = [sys.executable, "-m", "daskdl.cli", "lab", "--no-browser", "--n-workers", "2", *options]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith("JupyterLab http"):
                break
        else:
            pytest.fail("daskdl lab ended early:\n" + "".join(lines))
        yield process, line.split()[1], lines
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def status(url: str, token: str = "", data: bytes | None = None) -> int:
    headers = {"Authorization": f"token {token}"} if token else {}
    try:
        return int(urlopen(Request(url, data, headers), timeout=10).status)
    except HTTPError as error:
        return error.code


def connections(process: psutil.Process) -> list:
    """What a process has open; nothing if it has ended meanwhile, as short helpers of Jupyter do."""
    try:
        return process.net_connections("tcp")
    except psutil.NoSuchProcess:
        return []


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_serves_with_its_token_on_localhost_and_leaves_nothing(tmp_path: Path, sign: signal.Signals) -> None:
    with running_lab(tmp_path, "--port", "0", "--dashboard-port", "0") as (process, url, _):
        parts = urlsplit(url)
        base, token = f"http://{parts.netloc}", parts.query.removeprefix("token=")
        assert status(url) == 200
        assert status(f"{base}/api/kernels") == 403
        assert status(f"{base}/api/kernels", token, data=b"{}") == 201  # a kernel, that has to go too
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        listening = [c.laddr.ip for p in family for c in connections(p) if c.status == "LISTEN"]
        assert listening and set(listening) == {"127.0.0.1"}
        process.send_signal(sign)
        assert process.wait(timeout=30) == 0
    assert wait_until(lambda: not any(map(alive, family)))
    assert not session_of(process.pid)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_told_and_another_one_used(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with running_lab(tmp_path, "--port", str(port), "--dashboard-port", str(port)) as (_, url, lines):
            assert urlsplit(url).port != port
            assert sum(f"Port {port} is in use" in line for line in lines) == 2


def test_the_dashboard_is_reached_through_jupyterlab_only_when_it_is_here() -> None:
    assert lab.dashboard_url("http://127.0.0.1:8787/status") == "/proxy/8787"
    assert lab.dashboard_url("https://cluster.example/status") == "https://cluster.example"


def test_the_layout_names_every_pane_once() -> None:
    layout = workspace.workspace("/proxy/8787", "notebooks/00_quickstart.ipynb")["data"]

    def widgets(area: dict) -> list[str]:
        return area.get("widgets") or [w for child in area["children"] for w in widgets(child)]

    shown = widgets(layout["layout-restorer:data"]["main"]["dock"])
    assert shown[0] == "notebook:notebooks/00_quickstart.ipynb"
    assert len(shown) == 1 + len(workspace.PANES) == len(set(shown))
    assert all(widget in layout for widget in shown)
