"""Ten times more ranks than cores: slow, and right."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pandas as pd
import pytest

import daskdl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(170)]


def test_twenty_ranks_one_of_which_is_killed() -> None:
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(4_000, 4)), columns=list("abcd"))
    y = (X.a > 0).astype(int)
    client = daskdl.connect("cpu", n_workers=20, memory_limit="1GiB", dashboard_address="127.0.0.1:0")
    with client.as_current():
        classifier = daskdl.TorchClassifier(epochs=4, batch_size=100, num_workers=20, reproducible=20, verbose=0)

        def kill() -> None:
            while not hasattr(classifier, "run_") or classifier.run_.record.step < 30:
                time.sleep(0.05)
            os.kill(client.run(os.getpid, workers=[sorted(client.nthreads())[7]]).popitem()[1], signal.SIGKILL)

        threading.Thread(target=kill).start()
        classifier.fit(X, y)
        run = classifier.run_
        lost = run.events.query("event == 'worker_lost'")
        assert len(lost) == 1 and "with 19 of 20 ranks" in lost.text.iloc[0], (
            f"somebody else was given up: {lost.text.tolist()}"
        )
        assert run.audit().as_planned.all() and run.audit()["max"].eq(1).all()
        alone = daskdl.TorchClassifier(epochs=4, batch_size=100, num_workers=1, reproducible=20, verbose=0).fit(X, y)
        expected = alone.model_.state_dict()
        assert all((tensor == expected[name]).all() for name, tensor in classifier.model_.state_dict().items())
    client.shutdown()
