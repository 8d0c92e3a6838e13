"""Workers that leave while a gang is on them."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from distributed import Client

from daskdl.workers import workers_of

_watched: WeakKeyDictionary[Client, set[Losses]] = WeakKeyDictionary()
_watching = threading.Lock()


def _tell(watchers: set[Losses], event: tuple[float, Any]) -> None:
    for watcher in list(watchers):
        watcher.on_event(event[1])


class Losses:
    """Notices workers that leave the cluster, as the scheduler tells it (not by a time-out), while a block runs.

    Attributes
    ----------
    lost : list of str
        Addresses of the watched workers that left, in that order.
    news : threading.Event
        Set whenever one leaves.
    """

    def __init__(self, client: Client, addresses: list[str]) -> None:
        self.client, self.addresses = client, set(addresses)
        self.lost: list[str] = []
        self.news = threading.Event()

    def __enter__(self) -> Losses:
        with _watching:  # a client has one handler per topic: gangs that run at once share it
            watchers = _watched.setdefault(self.client, set())
            if not watchers:
                self.client.subscribe_topic("all", partial(_tell, watchers))
            watchers.add(self)
        for address in self.addresses - set(workers_of(self.client)):
            self._add(address)  # left before we listened
        return self

    def __exit__(self, *exc: object) -> None:
        with _watching:
            watchers = _watched[self.client]
            watchers.discard(self)
            if not watchers and self.client.status == "running":
                self.client.unsubscribe_topic("all")

    def wait(self, seconds: float) -> None:
        """Wait until one has left, for so many seconds at most."""
        deadline = time.monotonic() + seconds
        while not self.lost and time.monotonic() < deadline:
            time.sleep(0.02)

    def on_event(self, message: Any) -> None:
        """Take an event of the scheduler's topic "all"; called on the client's event loop."""
        if isinstance(message, dict) and message.get("action") == "remove-worker":
            self._add(message.get("worker", ""))

    def _add(self, address: str) -> None:
        if address in self.addresses and address not in self.lost:
            self.lost.append(address)
            self.news.set()
