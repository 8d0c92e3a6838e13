"""Writing checkpoints while the training goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from daskdl.training.checkpoints import CheckpointFolder, Checkpoints, Metrics
from daskdl.training.commit import Commit


class CheckpointWriter:
    """Writes commits in the background of rank 0: one thread, while there is something to write.

    Parameters
    ----------
    folder : CheckpointFolder
    rules : Checkpoints
    said : callable
        ``said(kind, text, step)``, from that thread: ``"commit"`` for each one written, ``"warning"`` for trouble.
    step : int
        Where the run begins or goes on: nothing is due before ``every_steps`` more.
    """

    def __init__(
        self, folder: CheckpointFolder, rules: Checkpoints, said: Callable[[str, str, int], None], step: int = 0
    ) -> None:
        self._folder, self._rules, self._said = folder, rules, said
        self._lock = threading.Lock()
        self._waiting: tuple[Commit, Metrics] | None = None
        self._thread: threading.Thread | None = None
        self._step, self._time = step, time.monotonic()
        self._written: tuple[int, Metrics] | None = None

    def offer(self, commit: Commit, metrics: Metrics) -> None:
        """Have a commit written if it is due. Returns at once; the state must not be changed afterwards."""
        if self._rules.every_steps is None:
            due = time.monotonic() - self._time >= self._rules.every_seconds
        else:
            due = commit.step - self._step >= self._rules.every_steps
        if due or self._waiting is not None:
            self._put(commit, metrics)

    def finish(self, commit: Commit | None = None, metrics: Metrics | None = None, timeout: float = 60.0) -> None:
        """Write the last commit, if given, and wait until all is on disk, ``timeout`` seconds at most; 0 asks only."""
        if commit is not None and (commit.step, metrics or {}) != self._written:
            self._put(commit, metrics or {})
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        if timeout and thread is not None and thread.is_alive():
            text = f"the last checkpoint is still being written to {self._folder.url} after {timeout:g} s"
            self._said("warning", f"{text}; it is lost if its process ends before. Is the storage slow?", self._step)
        if metrics and self._rules.best is not None and self._rules.best not in metrics:
            text = f"no checkpoint is the best: no {self._rules.best!r} was reported, but {', '.join(sorted(metrics))}"
            self._said("warning", f"{text}. The newest {self._rules.keep} are kept.", self._step)

    def _put(self, commit: Commit, metrics: Metrics) -> None:
        self._step, self._time = commit.step, time.monotonic()
        with self._lock:
            self._waiting = commit, dict(metrics)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="daskdl-checkpoints", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                job, self._waiting = self._waiting, None
                if job is None:
                    self._thread = None
                    return
            self._write(*job)
            del job  # or its state would be held while the next one is written

    def _write(self, commit: Commit, metrics: Metrics) -> None:
        url, began = self._folder.url, time.monotonic()
        try:
            saved = self._folder.write(commit, metrics)
        except Exception as error:  # storages raise errors of any class
            text = f"checkpoint of step {commit.step} was not written to {url}: {type(error).__name__}: {error}"
            self._said("warning", f"{text}. Training goes on, and the next one is tried as usual.", commit.step)
            return
        self._written, seconds = (commit.step, metrics), time.monotonic() - began
        self._said("commit", f"written to {url}/{saved.name}, {saved.n_bytes:,} bytes in {seconds:.1f} s", commit.step)
        try:
            self._folder.retain(self._rules.keep, self._rules.best)
        except Exception as error:
            self._said(
                "warning", f"old checkpoints stay in {url} and take room: {type(error).__name__}: {error}", commit.step
            )
