"""What it costs to know where a step's time goes: seconds of a step with the clock of ``run.breakdown()`` on, and off.

One training on two ranks, the model and data of ``ddp.py``, in blocks of steps that take turns: clock on, clock off (no
hooks, no laps). The value is the median of a step. ``--batch`` makes steps smaller: the cost is the same for each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

from ddp import RANKS, network
from harness import table

BLOCK = 10  # steps


def loop(context: Any) -> tuple[list[float], list[float]]:
    """Seconds of each step of rank 0, with the clock and without."""
    import torch

    model = context.prepare(network())
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    context.keep(optimizer=optimizer)
    bce, clock = torch.nn.functional.binary_cross_entropy_with_logits, context._clock
    seconds: tuple[list[float], list[float]] = ([], [])
    began = time.perf_counter()
    for batch in context.batches:
        loss = context.backward(batch, lambda part: bce(model(part.x).squeeze(1), part.y.float()))
        optimizer.step()
        optimizer.zero_grad()
        context.report(loss=loss)
        on = batch.step // BLOCK % 2 == 0
        now = time.perf_counter()
        seconds[0 if on else 1].append(now - began)
        began = now
        if (batch.step + 1) % BLOCK == 0:
            if on:
                clock.close()
                clock.lap = lambda phase: None
            else:
                del clock.lap
                clock.watch_module(model)
                clock.watch_optimizer(optimizer)
    return seconds


def main() -> None:
    """Train, and print the medians; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--batch", type=int, default=8_192)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()

    import daskdl

    client = daskdl.connect("cpu", n_workers=RANKS, dashboard_address="127.0.0.1:0", runs=tempfile.mkdtemp())
    source = daskdl.ParquetSource(str(table(options.rows)))
    ratios = []
    for _ in range(options.runs):
        on, off = daskdl.train(loop, (source, "y"), num_workers=RANKS, batch_size=options.batch, verbose=0).value
        medians = [1e3 * statistics.median(seconds) for seconds in (on, off)]
        ratios.append(medians[0] / medians[1])
        print(f"# {len(on) + len(off)} steps: {medians[0]:.3f} ms with the clock on, {medians[1]:.3f} ms with it off")
    client.shutdown()
    ratio = statistics.median(ratios)
    print(f"accounting: a step takes {100 * (ratio - 1):+.2f} % with the clock on (batches of {options.batch:,} rows)")
    told = {"name": "accounting", "unit": "ratio", "better": "lower", "daskdl": ratio, "reference": "off", "peers": {}}
    print(json.dumps({**told, "ratio": round(ratio, 4)}))


if __name__ == "__main__":
    main()
