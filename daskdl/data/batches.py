"""The batches of one rank in the sample order, read and prepared in the background."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from daskdl.data.arrays import Array, Block
from daskdl.data.audit import Hashes as Keys
from daskdl.data.audit import total
from daskdl.data.mixing import Mixture
from daskdl.data.order import SampleOrder
from daskdl.data.reading import USE, Plan, Reader, Windows
from daskdl.errors import DataError

Order = SampleOrder | Mixture
Finish = Callable[[Block, Executor], Block]
Transform = Callable[[dict[str, Array], Keys], Block]

READ_THREADS = 2
READY_BATCHES = 2  # prepared and waiting for the loop


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch.

    Attributes
    ----------
    arrays : dict of str to array of shape (n_rows, ...)
        The fields of the blocks, for this rank's rows.
    epoch, step : int
        Epoch, and step counted from the start of training.
    n_rows, n_global : int
        Rows of this rank and of the whole batch.
    digest : int
        What this rank's rows and their places in the epoch add to the audit.
    """

    arrays: dict[str, Array]
    epoch: int
    step: int
    n_rows: int
    n_global: int
    digest: int


class RankBatches:
    """Iterable over the batches of one rank; its place is a step and what order it is of, so it resumes anywhere.

    While the loop works on a batch, threads read and prepare the next ones. They end with the iteration.

    Parameters
    ----------
    order : SampleOrder or Mixture
    readers : Reader or sequence of Reader
        One for each dataset of the order.
    rank, world_size : int
    epochs : int
    start : int
        Global step to begin at.
    finish : callable, optional
        Called with the arrays of each batch and the pool of threads that read, in the background, such as
        ``schema.finish``.
    transform : callable, optional
        Called with what ``finish`` gave and a key per row, ``transform(arrays, keys)``; returns arrays of as many
        rows. Keys are uint64 of shape (n_rows,), another in every epoch and the same for any number of ranks: random
        changes made from them are too.
    threads : int
        That read.

    Examples
    --------
    >>> import numpy as np
    >>> from daskdl.data.reading import Blocks
    >>> order = SampleOrder([3, 3], batch_size=4, seed=0)
    >>> blocks = Blocks({g: {"row": np.arange(3) + 3 * g} for g in (0, 1)})
    >>> [batch.n_rows for batch in RankBatches(order, blocks, rank=0, world_size=2, epochs=1)]
    [2, 1]
    """

    def __init__(
        self,
        order: Order,
        readers: Reader | Sequence[Reader],
        rank: int,
        world_size: int,
        epochs: int,
        start: int = 0,
        *,
        finish: Finish | None = None,
        transform: Transform | None = None,
        threads: int = READ_THREADS,
    ) -> None:
        self.order, self.epochs = order, epochs
        self.readers = list(readers) if isinstance(readers, Sequence) else [readers]
        self.rank, self.world_size = rank, world_size
        self.next_step = start
        self.finish, self.transform, self.threads = finish, transform, threads

    @property
    def total_steps(self) -> int:
        """Global batches of all epochs."""
        return self.epochs * self.order.steps_per_epoch

    def __len__(self) -> int:
        return self.total_steps - self.next_step

    def state_dict(self) -> dict[str, int | str]:
        """Return the place in the order: the global step of the next batch, and the seed and order it belongs to."""
        return {"step": self.next_step, "seed": self.order.seed, "order": self.order.fingerprint}

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Go to a place; refuses one that belongs to another seed or order, where rows would repeat or be left out.

        The order knows its dataset by the rows of its groups. A place without ``"order"`` is trusted.
        """
        if state["seed"] != self.order.seed:
            raise ValueError(
                f"this place belongs to seed {state['seed']}, the batches have seed {self.order.seed}: rows would be "
                "used twice or never. Make the batches with the seed of the run that is continued."
            )
        known = state.get("order", self.order.fingerprint)
        if known != self.order.fingerprint:
            raise ValueError(
                f"this place belongs to the order of {known}, the batches have that of {self.order.fingerprint}: rows "
                "would be used twice or never. Make the batches with the data, the batch_size and the options of the "
                "run that is continued, or begin anew."
            )
        self.next_step = int(state["step"])

    def __iter__(self) -> Iterator[Batch]:
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(READY_BATCHES)
        closed = threading.Event()
        thread = threading.Thread(target=self._prepare, args=(ready, closed), name="daskdl-batches", daemon=True)
        thread.start()
        try:
            while (batch := ready.get()) is not None:
                if isinstance(batch, BaseException):
                    raise batch
                self.next_step = batch.step + 1
                yield batch
        finally:
            closed.set()
            with suppress(queue.Empty):
                while True:
                    ready.get_nowait()
            thread.join()

    def _prepare(self, ready: queue.Queue[Batch | BaseException | None], closed: threading.Event) -> None:
        """Fill the queue until all batches are made or nobody wants them any more; runs in a thread."""
        try:
            with ThreadPoolExecutor(self.threads, "daskdl-read") as pool:
                windows = Windows(self.order.parts, self.readers, pool, self.threads + 1)
                try:
                    for batch in self._batches(windows):
                        _put(ready, batch, closed)
                        if closed.is_set():
                            break
                finally:
                    pool.shutdown(wait=True, cancel_futures=True)
                    windows.close()
            _put(ready, None, closed)
        except BaseException as error:
            _put(ready, error, closed)

    def _batches(self, windows: Windows) -> Iterator[Batch]:
        steps = iter(range(self.next_step, self.total_steps))
        plans: deque[Plan] = deque()
        empty: Block | None = None
        while True:
            while (not plans or windows.wants_plans) and (step := next(steps, None)) is not None:
                plans.append(windows.plan(step, self.order.slices(step, self.rank, self.world_size)))
                windows.load()
            if not plans:
                return
            plan = plans.popleft()
            if not plan.pieces and empty is None:  # resumed at a short last batch that has no row for this rank
                empty = self._no_rows()
            arrays = windows.read(plan) if plan.pieces else dict(empty or {})
            empty = {name: array[:0] for name, array in arrays.items()}
            yield self._batch(plan, arrays, windows)

    def _no_rows(self) -> Block:
        """Fields of a batch without rows, from a row that this rank reads at another step, if it ever reads one."""
        mine = (self.order.slices(step, self.rank, self.world_size) for step in range(self.order.steps_per_epoch))
        dataset, epoch, lane, offset, _ = next(filter(None, mine), self.order.slices(0))[0]
        group, first, _ = self.order.parts[dataset].window(lane, epoch, offset).segments[0].tolist()
        block = next(iter(self.readers[dataset].read(group, first, first + 1, epoch)))
        return {name: array[:0] for name, array in block.items()} | {USE: np.empty(0, dtype=np.uint64)}

    def _batch(self, plan: Plan, arrays: dict[str, Array], windows: Windows) -> Batch:
        epoch, step_in_epoch = divmod(plan.step, self.order.steps_per_epoch)
        n_global = self.order.batch_rows(step_in_epoch)
        keys: Keys = arrays.pop(USE)  # type: ignore[assignment]
        try:
            finished = dict(self.finish(arrays, windows.pool)) if self.finish else arrays
        except DataError as error:
            raise error.named(partial(windows.where_row, plan)) from error
        if self.transform:
            finished = transformed(self.transform, finished, keys)
        return Batch(finished, epoch, plan.step, len(keys), n_global, total(keys))


def transformed(transform: Transform, arrays: dict[str, Array], keys: Keys) -> dict[str, Array]:
    """Apply the user's change to a batch.

    Raises
    ------
    ValueError
        What comes back is no batch of these rows.
    """
    names = sorted(arrays)
    found = transform(arrays, keys)
    sizes = {name: len(array) for name, array in found.items()} if isinstance(found, Mapping) else None
    if sizes is None or not set(names) <= sizes.keys() or set(sizes.values()) - {len(keys)}:
        raise ValueError(
            f"a batch_transform must keep the fields and rows of a batch, which model and loss read: it got "
            f"{len(keys)} rows of {names} and returned {type(found).__name__ if sizes is None else sizes}. Return what "
            "it was given, with your change: {**arrays, 'numbers': ...}."
        )
    return dict(found)


def check_transform(transform: Transform | None, example: Mapping[str, Array]) -> None:
    """Try the user's change on two made-up finished rows; what it refuses of these, real rows will tell.

    Raises
    ------
    TypeError, ValueError
        It is no function, or what it returns is no batch.
    """
    if transform is None:
        return
    if not callable(transform):
        raise TypeError(f"batch_transform must be a function of (arrays, keys), got {type(transform).__name__}")

    def forgiving(arrays: dict[str, Array], keys: Keys) -> Block:
        try:
            return transform(arrays, keys)
        except Exception:
            return arrays

    transformed(forgiving, dict(example), np.zeros(2, dtype=np.uint64))


def _put(
    ready: queue.Queue[Batch | BaseException | None], item: Batch | BaseException | None, closed: threading.Event
) -> None:
    """Put an item, unless nobody takes it any more."""
    while not closed.is_set():
        with suppress(queue.Full):
            return ready.put(item, timeout=0.1)
