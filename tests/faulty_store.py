"""An object store that fails by plan: a proxy before a real S3 server, on this machine."""

from __future__ import annotations

import http.client
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import numpy as np

SECRET = "do-not-tell-1f9a"
HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "date", "server"}


@dataclass(frozen=True)
class Fault:
    """What happens to a request: seconds it waits, the status it is answered, whether its body ends in the middle."""

    seconds: float = 0.0
    status: int | None = None
    cut: bool = False


FINE = Fault()
Plan = Callable[[str, str], Fault]  # of method and path


def sometimes(seed: int, **rates: float) -> Plan:
    """Fail at random with the given rates of ``s500``, ``s503`` and ``cut``; the same for the same seed."""
    rng, lock = np.random.default_rng(seed), threading.Lock()
    faults = {"s500": Fault(status=500), "s503": Fault(status=503), "cut": Fault(cut=True)}

    def plan(method: str, path: str) -> Fault:
        with lock:
            value = rng.random()
        for name, rate in rates.items():
            value -= rate
            if value < 0:
                return faults[name]
        return FINE

    return plan


class FaultyStore(ThreadingHTTPServer):
    """Passes requests on to ``upstream`` unless ``plan`` says otherwise, and remembers them.

    Attributes
    ----------
    plan : callable
        Change it at any time.
    asked : list of (str, str)
        Method and path of all requests.
    most_at_once : int
        Requests that were under way at the same time.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.lock = threading.Lock()
        self.reset()

    @property
    def options(self) -> dict[str, Any]:
        """``storage_options`` for it."""
        return {"endpoint_url": f"http://127.0.0.1:{self.server_port}", "key": "tester", "secret": SECRET}

    def reset(self, plan: Plan = lambda method, path: FINE) -> None:
        """Forget what was asked, and fail by another plan from now on."""
        self.plan = plan
        self.asked: list[tuple[str, str]] = []
        self.faults = self.under_way = self.most_at_once = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients close connections when they please."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyStore

    def do_GET(self) -> None:
        store, body = self.server, self._body()
        fault = store.plan(self.command, self.path)
        with store.lock:
            store.asked.append((self.command, self.path))
            store.faults += fault != FINE
            store.under_way += 1
            store.most_at_once = max(store.most_at_once, store.under_way)
        try:
            time.sleep(fault.seconds)
            self._answer(fault, body)
        finally:
            with store.lock:
                store.under_way -= 1

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, fault: Fault, body: bytes) -> None:
        if fault.status is not None:
            self.send_response(fault.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP | {"content-length"}}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        data = answer.read()
        self.send_response(answer.status)
        given = {k: v for k, v in answer.getheaders() if k.lower() not in HOP_BY_HOP}
        for name, value in (given if self.command == "HEAD" else {**given, "Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if fault.cut and self.command == "GET" and data:
            data, self.close_connection = data[: len(data) // 2], True
        self.wfile.write(data)
        upstream.close()


@contextmanager
def faulty_store() -> Iterator[FaultyStore]:
    """Start an S3 server with a bucket called ``bucket``, and the proxy before it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    store = FaultyStore(f"http://{host}:{port}")
    thread = threading.Thread(target=store.serve_forever, name="faulty-store", daemon=True)
    thread.start()
    made = http.client.HTTPConnection(store.upstream)
    made.request("PUT", "/bucket")
    assert made.getresponse().status == 200
    try:
        yield store
    finally:
        store.shutdown()
        store.server_close()
        moto.stop()
