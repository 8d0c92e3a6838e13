"""Run a training loop of one's own on a gang of workers, fed in the sample order."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from distributed import Client

from daskdl.clients import current_client
from daskdl.data.batches import Transform
from daskdl.data.joining import label_names
from daskdl.data.rows import learn, read_rows
from daskdl.data.schema import Kinds, Missing, Schema
from daskdl.data.schema.target import Target
from daskdl.data.sources.base import Source
from daskdl.errors import CannotTravel
from daskdl.execution.interrupts import noted_interrupts
from daskdl.run import Run
from daskdl.tracking.record import ENDED
from daskdl.training.begin import begin
from daskdl.training.checkpoints import Checkpoints
from daskdl.training.following import attach, in_background
from daskdl.training.job import Job, NumWorkers, check_sizes, rules_of, started, weight_column
from daskdl.training.private import private_folder, read_private, write_private
from daskdl.training.resuming import Resumed, remember_call, workers_for
from daskdl.travel import pack


@dataclass(frozen=True)
class _Parts:
    """What a training leaves besides its run; ``problem`` is why there is no value."""

    value: Any
    state: dict[str, Any]
    schema: Schema
    target: Target
    problem: str | None = None


class Result:
    """What ``train`` returns. Of a run in the background, to ask for more than ``run`` waits for its end.

    Attributes
    ----------
    run : Run
    """

    def __init__(self, run: Run, parts: _Parts | None = None) -> None:
        self.run, self._parts = run, parts

    @property
    def value(self) -> Any:
        """What the loop returned on rank 0, modules on the CPU.

        Raises
        ------
        CannotTravel
            It could not be brought here; ``state`` has what was learned all the same.
        """
        if (problem := self._all().problem) is not None:
            raise CannotTravel(f"{problem} result.state has the weights, and all else that was given to context.keep.")
        return self._all().value

    @property
    def state(self) -> dict[str, Any]:
        """``state_dict`` of the model and of everything given to ``Context.keep``, on the CPU."""
        return self._all().state

    @property
    def schema(self) -> Schema:
        """How columns became numbers."""
        return self._all().schema

    @property
    def target(self) -> Target:
        """How the label became a number."""
        return self._all().target

    def _all(self) -> _Parts:
        if self._parts is None:
            self.run.wait(verbose=0)
            self._parts = _read_parts(self.run)
        return self._parts

    def __repr__(self) -> str:
        return f"<Result of {self.run!r}>"


def train(
    loop: Callable[..., Any],
    data: Any,
    *args: Any,
    num_workers: NumWorkers = None,
    batch_size: int = 1024,
    epochs: int = 1,
    seed: int = 0,
    classes: bool = True,
    missing: Missing = "impute",
    sampling: str | None = None,
    kinds: Kinds | None = None,
    batch_transform: Transform | None = None,
    reproducible: bool | int = False,
    checkpoints: Checkpoints | str | None = None,
    name: str | None = None,
    verbose: int = 1,
    background: bool = False,
    client: Client | None = None,
) -> Result:
    """Run your own PyTorch training loop data-parallel on Dask workers.

    Rows of a frame are read into worker memory, those of a source are read from its files while training. They are
    encoded by a ``Schema`` and given out in the sample order: every global batch is the same set of rows for any number
    of workers.

    Parameters
    ----------
    loop : callable
        Called as ``loop(context, *args)`` in every rank. See ``Context``.
    data : tuple, frame or Source
        ``(X, y)``: a frame and a Series, or a frame or a source such as ``daskdl.ParquetSource`` and the name of its
        label column; of numbers (``classes=False``) also a frame of several, or a list of names. Or ``X`` alone: then
        there are no labels, and ``batch.y`` is empty.
    *args
        Passed on to the loop.
    num_workers : int or (int, int), optional
        Ranks; all workers by default. When workers are lost, training goes on with as few as one, and takes in those
        that join until there are as many again. A pair sets the fewest and the most: below the fewest it waits.
    batch_size : int
        Rows per global batch, over all ranks together.
    epochs : int
    seed : int
        Decides the order of the rows and the random state of every rank.
    classes : bool
        Whether the label is a class (or a number to regress on).
    missing : {"impute", "indicator", "refuse"}
    sampling : str, optional
        ``"balanced"``: rows are used so that all classes come up alike. The name of a column: in proportion to its
        values; it is no feature. By default every row is used once per epoch.
    kinds : dict, optional
        How columns are read where it is not to be found out; see ``Schema.learn``.
    batch_transform : callable, optional
        ``batch_transform(arrays, keys)`` on every training batch, in the background of the ranks; see ``RankBatches``.
    reproducible : bool or int
        Weights with the same bits at any number of workers, and whatever is lost on the way: every batch is cut into
        8 virtual ranks (or as many as given), which are added up in a fixed order. It costs speed; see the guide.
    checkpoints : Checkpoints or str, optional
        Where and how often the state is written, besides what the workers hold in memory; a string is the path. By
        default once a minute and at the end, into the folder of the run.
    name : str, optional
        Of the run.
    verbose : int
        0 shows nothing.
    background : bool
        Train in a process of its own, which the end of this notebook does not end, and return when the run has begun:
        ``result.run`` follows it, as ``daskdl.attach(result.run.id)`` does from any notebook. ``result.value`` and the
        rest wait for the end; ``daskdl.load_result(result.run.id)`` gives the same result in any notebook of yours.
    client : distributed.Client, optional
        The current one by default. Without any, frames in memory are trained on in this process.

    Returns
    -------
    Result

    Raises
    ------
    DataError, NotEnoughWorkers, TypeError, ValueError
        Before anything is launched.
    RankFailed, LossDiverged
        While training.

    Examples
    --------
    >>> def loop(context):
    ...     model = context.prepare(torch.nn.Linear(context.schema.n_numbers, 1))
    ...     optimizer = torch.optim.Adam(model.parameters())
    ...     for batch in context.batches:
    ...         loss = bce(model(batch.x).squeeze(1), batch.y.float())
    ...         optimizer.zero_grad()
    ...         loss.backward()
    ...         optimizer.step()
    ...         context.report(loss=loss)
    >>> result = daskdl.train(loop, (df[features], df["late"]), num_workers=2, epochs=3)  # doctest: +SKIP
    """
    if not callable(loop):
        raise TypeError(f"loop must be a function that takes a Context, got {type(loop).__name__}")
    for what, given in {"loop": loop, "what it is called with": args, "batch_transform": batch_transform}.items():
        if what == "loop" or not background:
            pack(given, what)  # refuses what cannot be sent, before anything is computed
    if isinstance(data, Source) or hasattr(data, "columns"):
        data = (data, None)
    if not isinstance(data, tuple) or len(data) != 2:
        raise TypeError(
            f"data must be (X, y), or X alone, a frame or a source without labels; got {type(data).__name__}. For "
            "example (df[features], df['label'])."
        )
    options = {
        "num_workers": num_workers,
        "batch_size": batch_size,
        "epochs": epochs,
        "seed": seed,
        "classes": classes,
        "missing": missing,
        "sampling": sampling,
        "kinds": kinds,
        "batch_transform": batch_transform,
        "reproducible": reproducible,
        "checkpoints": rules_of(checkpoints),
        "name": name or str(getattr(loop, "__name__", "loop")),
        "verbose": verbose,
    }
    if background:
        check_sizes(epochs, batch_size)
        return Result(in_background(current_client(client), num_workers, _train, None, loop, data, args, options))
    return _train(None, loop, data, args, options, client)


@noted_interrupts()
def _train(
    resumed: Resumed | None,
    loop: Callable[..., Any],
    data: tuple[Any, Any],
    args: tuple[Any, ...],
    options: dict[str, Any],
    client: Client | None = None,
) -> Result:
    """Do what ``train`` was asked to, from the beginning or from where it was left."""
    client, ask = begin(client, options["checkpoints"], *data), options.get
    classes, kinds, sampling = options["classes"], ask("kinds"), ask("sampling")
    weight = weight_column(sampling)
    rows = read_rows(*data, classes=classes, client=client, weight=weight, kinds=kinds, several=not classes)
    missing = options["missing"]
    if data[1] is None:
        schema, target = Schema.from_stats(rows.stats, missing, kinds), Target(None)
    else:
        schema, target = learn(rows, label_names(data[1]), classes=classes, missing=missing, kinds=kinds)
    num_workers = workers_for(resumed, options["num_workers"])
    sizes = (options["batch_size"], options["epochs"], options["seed"], num_workers)
    more = {"sampling": sampling, "transform": ask("batch_transform"), "checkpoints": options["checkpoints"]}
    more["reproducible"] = options["reproducible"]
    job = Job(rows, schema, target, *sizes, client, **more)
    params = {name: options[name] for name in ("batch_size", "epochs", "missing", "num_workers", "reproducible")}
    with started(options["name"], "train", params, job, options["verbose"], resumed) as run:
        remember_call(run, job.checkpoints, job.fingerprint, _train, loop, data, args, options)
        answer = job.run(loop, args, run, resumed.commit if resumed else None)
        parts = _Parts(answer.value, answer.state, schema, target, answer.problem)
        if run.awaited:
            _write_parts(run, parts)
    return Result(run, parts)


def load_result(run_id: str, root: str | os.PathLike[str] | None = None) -> Result:
    """Read what ``train(..., background=True)`` has returned, from any notebook of the same user.

    It lies in ``~/.local/state/daskdl/results``, where only that user can read and write: a loop may return anything,
    so to read it is to run it. The newest 4 GiB are kept.

    Parameters
    ----------
    run_id : str
    root : str or path, optional
        Where the run is kept; by default where runs are kept now.

    Returns
    -------
    Result
        At once; what is not there before the end of the run is waited for when it is asked for.

    Raises
    ------
    ValueError
        There is no such run, or it has ended and left no result.
    PermissionError
        Others could have written the result; it is not even read.

    Examples
    --------
    >>> daskdl.load_result("20261121-093012-brave-finch").value  # doctest: +SKIP
    """
    run = attach(run_id, root)
    return Result(run, _read_parts(run) if run.state in ENDED else None)


def _write_parts(run: Run, parts: _Parts) -> None:
    """Keep what a run in the background leaves, before it ends: who waits for its end finds it."""
    try:
        packed = pack(parts, "what the loop returned", "to other processes")
    except CannotTravel as error:
        run.event("warning", f"{error} The state it kept is there.")
        packed = pack(replace(parts, value=None, problem=str(error)))
    write_private("results", run.id, packed)


def _read_parts(run: Run) -> _Parts:
    """Read what a run that has ended has left; raises ``ValueError`` if there is nothing."""
    try:
        parts: _Parts = read_private("results", run.id).open(home=True)
    except FileNotFoundError:
        why = f": {run.error}" if run.error else ""
        raise ValueError(
            f"run {run.id} has {run.state}{why}, and left no result. daskdl.train(..., background=True) leaves one in "
            f"{private_folder('results')}; the newest are kept. If there are checkpoints, daskdl.resume goes on from "
            "the last one."
        ) from None
    return parts
