"""Runs that go on without the notebook that began them: a process of their own, and how to follow it from anywhere."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from distributed import Client, futures_of

from daskdl.data.frame import is_lazy
from daskdl.errors import CannotTravel
from daskdl.execution import spmd
from daskdl.run import Run, load_run
from daskdl.tracking.folder import Folder, check_writable, is_remote, new_id, resolve_root
from daskdl.tracking.record import RunRecord
from daskdl.travel import pack
from daskdl.workers import workers_of

SESSION_FILE = "session.json"  # in the run's folder: scheduler and process, while they last
LOG_FILE = "log.txt"
START_SECONDS = 60.0  # that a run may take to begin before it is returned all the same


def in_background(
    client: Client | None, num_workers: int | tuple[int, int] | None, function: Callable[..., Any], *args: Any
) -> Run:
    """Have ``function(*args)``, which trains, called in a process of its own; return the run it began.

    It uses the scheduler of ``client`` if that is somewhere else. A cluster that was started in this process would end
    with it, so then the new process starts one of its own, with as many workers.

    Raises
    ------
    NotEnoughWorkers, TypeError, ValueError
        There are not as many workers, or what it is to do cannot be given to another process; none was started.
    RuntimeError
        The process ended before it began the run; the text has the end of its log.
    """
    spmd.span_of(num_workers)
    check_writable(resolve_root())
    if client is not None:
        spmd.choose_workers(client, num_workers)
    elsewhere = client is not None and client.cluster is None
    if not elsewhere and persisted(args):
        raise ValueError(
            "background=True cannot use a persisted frame: it lies in the memory of a cluster that ends with this "
            "notebook. Give the frame before persist(), or a source, or connect to a scheduler of its own."
        )
    try:
        job = pack((function, args), "what it was given", "there")
    except CannotTravel as error:
        raise CannotTravel(
            f"background=True trains in a process of its own, and what it was given cannot be pickled for it: {error}"
        ) from error
    root = resolve_root()
    run_id = new_id(root)
    asked = {
        "root": root,
        "run": run_id,
        "address": client.scheduler.address if client is not None and elsewhere else None,
        "security": client.security if client is not None and elsewhere else None,
        "n_workers": len(workers_of(client)) if client is not None else None,
        "paths": [path for path in sys.path if path],
    }
    log = f"{tempfile.mkdtemp(prefix='daskdl-') if is_remote(root) else f'{root}/{run_id}'}/{LOG_FILE}"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "daskdl.background"],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    assert process.stdin is not None
    with process.stdin as pipe:  # not a file: nobody else can read or change it
        pickle.dump((asked, job), pipe)
    run = None
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if SESSION_FILE in Folder(f"{root}/{run_id}").names():
            run = run or attach(run_id, root)
            if run.state != "waiting":
                return run
        time.sleep(0.05)
    if process.poll():
        with open(log, errors="replace") as said:
            text = said.read()[-2_000:]
        raise RuntimeError(f"the background process did not begin its run. The end of its log, {log}:\n{text}")
    return run or attach(run_id, root)


def persisted(args: Any) -> bool:
    """Whether there is a frame among the arguments, or inside of them, whose rows lie in workers' memory."""
    if isinstance(args, (tuple, list)):
        return any(map(persisted, args))
    if dataclasses.is_dataclass(args) and not isinstance(args, type):  # what fit was called with
        return persisted(list(vars(args).values()))
    return is_lazy(args) and bool(futures_of(args))


def attach(run_id: str, root: str | os.PathLike[str] | None = None) -> Run:
    """Follow a run that was started with ``background=True``, from any notebook.

    Parameters
    ----------
    run_id : str
    root : str or path, optional
        Where the run is kept; by default where runs are kept now.

    Returns
    -------
    Run
        Live while the run lasts: ``run.wait()`` shows it, ``run.stop()`` ends it. A run that has ended is read back.

    Raises
    ------
    ValueError
        There is no such run.

    Examples
    --------
    >>> run = daskdl.attach("20261121-093012-brave-finch")  # doctest: +SKIP
    >>> run.wait()  # doctest: +SKIP
    'finished'
    """
    folder = Folder(f"{resolve_root(root)}/{run_id}")
    try:
        with folder.open(SESSION_FILE) as file:
            session = json.load(file)
    except FileNotFoundError:
        return load_run(run_id, root)
    try:
        client = Client(session["address"], set_as_default=False, timeout=5, name="daskdl-attach")
    except OSError:  # its scheduler is gone
        return load_run(run_id, root)
    run = Run(RunRecord(run_id), folder.url)
    run.follow(client, None)  # before the record is asked for, or a message could be missed
    run.follow(client, client.run_on_scheduler(_record, run_id))
    return run


def _record(run_id: str, dask_scheduler: Any) -> RunRecord | None:
    plugin = dask_scheduler.plugins.get("daskdl")
    return plugin.records.get(run_id) if plugin is not None else None
