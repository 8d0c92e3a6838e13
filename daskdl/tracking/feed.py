"""Messages between this client and the scheduler: one subscription and one outbox per client, shared by its runs."""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from daskdl.tracking.record import TOPIC

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

Message = dict[str, Any]
SECONDS_BETWEEN_SENDS = 0.1
SENDER = f"client-{uuid.uuid4().hex[:8]}"  # stamped on what this process sends: the subscription brings it back


class Receiver(Protocol):
    """Whoever wants the worker messages of one run."""

    def receive(self, message: Message) -> None:
        """Take one message; called on the client's event loop, so it must be quick."""


class Feed:
    """The ``daskdl`` topic as one client sees it. Get it with :func:`feed_of`.

    Receivers are held weakly: a run that nobody holds any more is forgotten.
    """

    def __init__(self, client: Client) -> None:
        self._client = weakref.ref(client)
        self._receivers: weakref.WeakValueDictionary[str, Receiver] = weakref.WeakValueDictionary()
        self._outbox: list[Message] = []
        self._lock = threading.Lock()
        self._sent = threading.Condition(self._lock)
        self._draining = False
        client.subscribe_topic(TOPIC, self._on_event)

    @property
    def client(self) -> Client | None:
        """The client, while it is connected."""
        client = self._client()
        return client if client is not None and client.status == "running" else None

    def add(self, run_id: str, receiver: Receiver) -> None:
        """Give the messages that workers send for ``run_id`` to ``receiver``."""
        self._receivers[run_id] = receiver

    def _on_event(self, event: tuple[float, Any]) -> None:
        message = event[1]
        if not isinstance(message, dict) or message.get("sender") == SENDER:
            return
        receiver = self._receivers.get(message.get("run", ""))
        if receiver is not None:
            receiver.receive(message)

    def send(self, message: Message) -> None:
        """Send a message soon, from any thread, without waiting; metrics of one run are merged on the way."""
        client = self._client()
        if client is None or client.loop is None or client.status != "running":
            return
        with self._lock:
            self._outbox.append({**message, "sender": SENDER})
            start, self._draining = not self._draining, True
        if start:
            client.loop.add_callback(self._drain)

    def flush(self, timeout: float = 2.0) -> bool:
        """Wait until everything is sent; False when that took too long, or cannot be waited for on the event loop."""
        client = self._client()
        if client is not None and client.asynchronous:
            timeout = 0.0
        with self._sent:
            return self._sent.wait_for(lambda: not self._draining, timeout)

    async def _drain(self) -> None:
        """Send rounds of merged messages until the outbox is empty; runs on the client's event loop."""
        while True:
            with self._lock:
                messages, self._outbox = merge(self._outbox), []
                if not messages:
                    self._draining = False
                    self._sent.notify_all()
                    return
            await self._send_all(messages)
            if not any(m["kind"] == "end" for m in messages):  # nobody waits for the others
                await asyncio.sleep(SECONDS_BETWEEN_SENDS)

    async def _send_all(self, messages: list[Message]) -> None:
        client = self._client()
        try:
            for message in messages:
                if client is not None:
                    await client.log_event(TOPIC, message)
        except (OSError, RuntimeError, TypeError) as error:  # the run goes on without a page that shows it
            logger.warning("The dashboard missed messages of run %s: %s", messages[0].get("run"), error)


def merge(messages: list[Message]) -> list[Message]:
    """Join neighbouring metrics messages of the same run into one."""
    merged: list[Message] = []
    for message in messages:
        before = merged[-1] if merged else {}
        if message["kind"] == before.get("kind") == "metrics" and message["run"] == before["run"]:
            merged[-1] = {**message, "points": [*before["points"], *message["points"]]}
        else:
            merged.append(message)
    return merged


_feeds: weakref.WeakKeyDictionary[Client, Feed] = weakref.WeakKeyDictionary()
_feeds_lock = threading.Lock()


def feed_of(client: Client) -> Feed:
    """Return the feed of a client, subscribing at the first call."""
    with _feeds_lock:
        if client not in _feeds:
            _feeds[client] = Feed(client)
        return _feeds[client]
