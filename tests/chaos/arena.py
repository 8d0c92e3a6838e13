"""One cluster on which training after training is disturbed, and what is looked at after each."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import Client

import daskdl
from daskdl.errors import NotEnoughWorkers
from daskdl.run import Run
from daskdl.tracking.folder import set_root

from .leftovers import Leftovers
from .loop import Marks, loop
from .network import link
from .outside import far_worker, hand_on, not_started_again, small_disk
from .plan import BATCH_SIZE, EPOCHS, N_ROWS, N_WORKERS, ROUNDS, Plan

MOST_SECONDS = 45.0  # of a training
GIVE_UP_SECONDS = 20.0  # between two tries to end one that takes longer
LOSS_TOLERANCE = 0.05  # of boosting, as a share


@dataclass
class Outcome:
    """What became of a plan.

    Attributes
    ----------
    problems : list of str
        What should not be; none if it passed.
    seconds : float
        Of the training and, if it was stopped, its resumption.
    recovered : list of float
        Seconds from each fault to the next step, where there was one.
    done : int
        Faults that were done: some come too late, or to a rank that is not there.
    """

    plan: Plan
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    recovered: list[float] = field(default_factory=list)
    done: int = 0
    events: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """One line of the log."""
        word = "failed" if self.problems else "passed"
        slowest = f", next step after {max(self.recovered):.1f} s" if self.recovered else ""
        about = f"{self.plan.setup}, {self.plan.data}"
        return f"seed {self.plan.seed:>5} {word} {self.seconds:5.1f} s  {self.plan.kind} ({about}){slowest}"


class Arena:
    """Plays plans on a cluster of three local workers."""

    def __init__(self) -> None:
        self.root = tempfile.mkdtemp(prefix="chaos-")
        options: dict[str, Any] = {
            "memory_limit": "1GiB",
            "dashboard_address": "127.0.0.1:0",
            "local_directory": self.root,
        }
        self._stack = contextlib.ExitStack()
        self.link = self._stack.enter_context(link())
        if self.link is not None:
            options["host"] = self.link.here
        self._options = options
        self.client: Client = daskdl.connect("cpu", n_workers=N_WORKERS, **options)
        self._wholes: dict[tuple[str, str], Any] = {}
        rng = np.random.default_rng(0)
        self.X = pd.DataFrame(rng.normal(size=(N_ROWS, 6)).astype("float32"), columns=list("abcdef"))
        self.y = (self.X.a + self.X.b + rng.normal(0, 0.3, N_ROWS) > 0).astype(int).rename("y")

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.shutdown()
        self._stack.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def play(self, plan: Plan) -> Outcome:
        """Run a plan's training with its faults, and look whether all is as it should be."""
        outcome = Outcome(plan)
        folder = tempfile.mkdtemp(dir=self.root)
        marks = Marks(folder)
        set_root(f"{self.root}/runs")
        with self.client.as_current(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._wait_for_workers()
            whole = self._whole(plan)
            self._wait_for_workers()
            leftovers = Leftovers(self.client)
            began = time.monotonic()
            try:
                with in_time(MOST_SECONDS):
                    self._check(plan, self._disturbed(plan, marks, outcome), whole, outcome)
            except BaseException as error:
                ours = plan.resumed or time.monotonic() - began > MOST_SECONDS
                if isinstance(error, KeyboardInterrupt) and not ours:
                    raise
                outcome.problems.append("".join(traceback.format_exception(error)).strip())
            outcome.seconds = time.monotonic() - began
            try:
                self._wait_for_workers()
                outcome.problems += leftovers.found()
            except TimeoutError as error:
                nannies = self.client.cluster.workers.values()
                states = [f"{n.status} {n.process and n.process.status} {n.worker_address} {n.pid}" for n in nannies]
                outcome.problems.append(f"a worker did not come back: {error}; nannies: {states}")
        if outcome.problems:
            self._renew()
        for struck in marks.times("fault-"):
            outcome.done += 1
            outcome.recovered += [after - struck for after in marks.times("gang-") if after > struck][:1]
        shutil.rmtree(folder, ignore_errors=True)
        return outcome

    def _renew(self) -> None:
        """Go on with another cluster, so that what is wrong with one run is not held against the next."""
        self.client.shutdown()
        self.client = daskdl.connect("cpu", n_workers=N_WORKERS, **self._options)

    def _wait_for_workers(self) -> None:
        self.client.wait_for_workers(N_WORKERS, timeout=20)

    # -- trainings --------------------------------------------------------------------------------------------

    def _whole(self, plan: Plan) -> Any:
        """What the undisturbed training gives."""
        key = plan.setup, plan.data
        if key not in self._wholes:
            calm = replace(plan, faults=(), settle_steps=1, pause=0.0, far=None)
            self._wholes[key] = self._train(calm, tempfile.mkdtemp(dir=self.root), "calm")[1]
        return self._wholes[key]

    def _disturbed(self, plan: Plan, marks: Marks, outcome: Outcome) -> tuple[Run, Any]:
        """Train with the faults, to the end, resuming if it was stopped."""
        with contextlib.ExitStack() as stack:
            disk = stack.enter_context(small_disk()) if plan.full_disk else None
            far = stack.enter_context(far_worker(self.client, plan, str(marks.folder), self.link))
            hand = stack.enter_context(hand_on(self.client, plan, marks, far))
            stack.enter_context(not_started_again(self.client, plan.stays_down))
            if plan.beside:
                stack.enter_context(self._beside(plan, outcome))
            folder = str(marks.folder)
            try:
                found = self._train(plan, folder, "chaos", disk)
            except KeyboardInterrupt:
                if not marks.times("asked-") or hand.run is None:
                    raise
                found = hand.run, None
            finally:
                if hand.run is not None:
                    outcome.events = said(hand.run)
            hand.close()
            outcome.events = said(found[0])
            if found[0].state == "stopped":
                result = daskdl.resume(found[0].id)
                outcome.events += said(result.run)
                found = result.run, result.value
        return found

    def _train(self, plan: Plan, folder: str, name: str, disk: str | None = None) -> tuple[Run, Any]:
        if plan.setup == "boost":
            options: dict[str, Any] = {"n_estimators": ROUNDS, "num_workers": N_WORKERS, "verbose": 0, "name": name}
            booster = daskdl.XGBClassifier(**options).fit(*self._data(plan.data))
            return booster.run_, (booster.model_.num_boosted_rounds(), booster.run_.metrics.train_loss.iloc[-1])
        rules = daskdl.Checkpoints(path=disk, every_steps=plan.settle_steps, every_seconds=1.0)
        options = {"batch_size": BATCH_SIZE, "epochs": EPOCHS, "verbose": 0, "checkpoints": rules, "name": name}
        n_workers = N_WORKERS + (plan.far is not None)
        options["num_workers"] = {"virtual": n_workers, "alone": 1}.get(plan.setup, (n_workers, n_workers))
        options["reproducible"] = 5 if plan.setup == "virtual" else False
        result = daskdl.train(loop, self._data(plan.data), folder, plan, client=self.client, **options)
        return result.run, result.value

    def _data(self, kind: str) -> tuple[Any, Any]:
        frame = self.X.assign(y=self.y)
        if kind == "pandas":
            return self.X, self.y
        return (dd.from_pandas(frame, npartitions=7) if kind == "dask" else _source(frame)), "y"

    @contextlib.contextmanager
    def _beside(self, plan: Plan, outcome: Outcome) -> Iterator[None]:
        """Another training on the same workers, which has to wait."""
        calm = replace(plan, faults=(), beside=False)
        whole, folder = self._whole(calm), tempfile.mkdtemp(dir=self.root)

        def train() -> None:
            time.sleep(0.3)
            try:
                found = None
                while found is None:
                    self._wait_for_workers()
                    with contextlib.suppress(NotEnoughWorkers):  # one was lost just then, and it is said at once
                        found = self._train(calm, folder, "beside")
                self._check(calm, found, whole, outcome)
            except Exception as error:
                told = "".join(traceback.format_exception(error)).strip()
                outcome.problems.append(f"the run beside it: {told}")

        thread = threading.Thread(target=train, name="chaos-beside")
        thread.start()
        try:
            yield
        finally:
            thread.join(MOST_SECONDS)
            if thread.is_alive():
                outcome.problems.append("the run beside it did not end")

    # -- what is looked at ------------------------------------------------------------------------------------

    def _check(self, plan: Plan, found: tuple[Run, Any], whole: Any, outcome: Outcome) -> None:
        run, value = found
        if run.state != "finished":
            outcome.problems.append(f"the run has {run.state}: {run.error}")
        if plan.setup == "boost":
            if value[0] != whole[0] or abs(value[1] - whole[1]) > LOSS_TOLERANCE * whole[1]:
                outcome.problems.append(f"rounds and loss are {value}, undisturbed {whole}")
            return
        audit = run.audit()
        exact = audit.as_planned.all() and audit["min"].eq(1).all() and audit["max"].eq(1).all()
        if not exact or len(audit) != EPOCHS:
            outcome.problems.append(f"rows were not used exactly once:\n{audit}")
        if value != whole:
            outcome.problems.append(f"weights differ from those of the undisturbed run: {value} {whole}")


def said(run: Run) -> list[str]:
    """What a run told, without what goes well or badly at every commit."""
    events = [event for event in list(run.record.events) if event["event"] not in ("commit", "check")]
    told = [f"{event['event']} at {event['step']}: {event['text']}" for event in events]
    return [line for line in told if "was not written" not in line]


def _source(frame: pd.DataFrame) -> Any:
    return daskdl.MemorySource(frame, group_rows=500)


@contextlib.contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer, and again, and end the process at last; stacks are printed."""
    over = threading.Event()

    def watch() -> None:
        for wait in (seconds, GIVE_UP_SECONDS, GIVE_UP_SECONDS):
            if over.wait(wait):
                return
            faulthandler.dump_traceback(sys.__stderr__ or 2)
            os.kill(os.getpid(), signal.SIGINT)
        if not over.wait(GIVE_UP_SECONDS):
            os._exit(1)

    watcher = threading.Thread(target=watch, name="watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
