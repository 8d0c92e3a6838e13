"""The process of a run that was started with ``background=True``: ``python -m daskdl.background``."""

from __future__ import annotations

import json
import os
import pickle
import sys
from contextlib import suppress

from daskdl.cluster import connect
from daskdl.tracking.folder import Folder, set_root
from daskdl.tracking.recording import reserve
from daskdl.tracking.writer import writer
from daskdl.training.following import SESSION_FILE

FLUSH_SECONDS = 60.0


def main() -> None:
    """Train; what to do comes on standard input, from the process that started this one."""
    asked, job = pickle.load(sys.stdin.buffer)
    sys.path[:] = [*sys.path, *(path for path in asked["paths"] if path not in sys.path)]
    options = {} if asked["address"] else {"n_workers": asked["n_workers"], "dashboard_address": "127.0.0.1:0"}
    client = connect(asked["address"] or "cpu", security=asked["security"], **options)
    set_root(asked["root"])
    reserve(asked["run"])
    folder = Folder(f"{asked['root']}/{asked['run']}")
    session = {"address": client.scheduler.address, "dashboard": client.dashboard_link, "pid": os.getpid()}
    folder.write(SESSION_FILE, json.dumps(session).encode())
    try:
        function, args = job.open()
        function(*args)
    finally:
        writer.flush(FLUSH_SECONDS)  # who finds no session looks for the run where runs are kept
        with suppress(OSError):
            folder.remove(SESSION_FILE)
        client.close()


if __name__ == "__main__":
    main()
