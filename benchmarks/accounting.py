"""What it costs to know where a step's time goes: seconds of a step with the clock of ``run.breakdown()`` on, and off.

One training on two ranks, the model and data of ``ddp.py``, in blocks of steps: clock on, off (no hooks, no laps),
off, on, and so on, so that what drifts in the machine meets both alike. A block is worth its median step, two
neighbours give one ratio, and the value is the median of all ratios. ``--batch`` makes steps smaller: the cost is the
same for each.
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


def loop(context: Any) -> list[tuple[bool, float]]:
    """For each whole block of rank 0: whether the clock was on, and the seconds of its median step."""
    import torch

    model = context.prepare(network())
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    context.keep(optimizer=optimizer)
    bce, clock = torch.nn.functional.binary_cross_entropy_with_logits, context._clock
    blocks: list[tuple[bool, float]] = []
    seconds: list[float] = []
    on, began = True, time.perf_counter()
    for batch in context.batches:
        loss = context.backward(batch, lambda part: bce(model(part.x).squeeze(1), part.y.float()))
        optimizer.step()
        optimizer.zero_grad()
        context.report(loss=loss)
        now = time.perf_counter()
        seconds.append(now - began)
        began = now
        if len(seconds) == BLOCK:
            blocks.append((on, statistics.median(seconds)))
            seconds.clear()
            wanted = len(blocks) % 4 in (0, 3)
            if on and not wanted:
                clock.close()
                clock.lap = lambda phase: None
            elif wanted and not on:
                del clock.lap
                clock.watch_module(model)
                clock.watch_optimizer(optimizer)
            on = wanted
    return blocks


def main() -> None:
    """Train, and print the medians; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--batch", type=int, default=8_192)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()

    import daskdl

    client = daskdl.connect("cpu", n_workers=RANKS, dashboard_address="127.0.0.1:0", runs=tempfile.mkdtemp())
    source = daskdl.ParquetSource(str(table(options.rows)))
    ratios = []
    for run in range(1, options.runs + 1):
        blocks = daskdl.train(loop, (source, "y"), num_workers=RANKS, batch_size=options.batch, verbose=0).value
        pairs = [dict(pair) for pair in zip(blocks[::2], blocks[1::2], strict=False)]
        here = [pair[True] / pair[False] for pair in pairs]
        ratios += here
        off = 1e3 * statistics.median(pair[False] for pair in pairs)
        print(f"# run {run}: {len(here)} pairs of {BLOCK} steps, {off:.2f} ms each, {_percent(here)} with the clock on")
    client.shutdown()
    ratio, (low, _, high) = statistics.median(ratios), statistics.quantiles(ratios, n=4)
    print(f"accounting: a step takes {_percent(ratios)} with the clock on (batches of {options.batch:,} rows; half of")
    print(f"the {len(ratios)} pairs lie between {100 * (low - 1):+.1f} and {100 * (high - 1):+.1f} %)")
    told = {"name": "accounting", "unit": "ratio", "better": "lower", "daskdl": ratio, "reference": "off", "peers": {}}
    print(json.dumps({**told, "ratio": round(ratio, 4)}))


def _percent(ratios: list[float]) -> str:
    return f"{100 * (statistics.median(ratios) - 1):+.2f} %"


if __name__ == "__main__":
    main()
