"""The table of docs/chaos.md."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from .arena import Outcome
from .plan import KINDS, N_WORKERS, STEPS

HEAD = """# What was done to trainings, and what became of them

`make chaos` trains a small network again and again, {steps} steps each, on one cluster of {workers} local workers, and
does to it what a seed says. After every run it is checked that it ended, that `run.audit()` says every row was used
exactly once in every epoch, that the weights have the same bits as those of the undisturbed run (boosting: all rounds,
and the same loss within 5 %), and that nothing is left over: processes, threads, listening ports, tasks, held workers,
state in workers, files in `/dev/shm` and in the workers' folders. Half of the runs of networks are `reproducible=5` and
go on with fewer workers; the others have `num_workers=(3, 3)` and wait for a worker that is started again, or have one
rank.

Seconds are from a fault to the end of the first step of the next gang, on a busy machine of two cores.

| fault | runs | passed | median s | worst s |
|---|---:|---:|---:|---:|
"""


def table(outcomes: Sequence[Outcome]) -> str:
    """Write what became of the runs, by kind of fault, as Markdown."""
    lines = [_line(kind, [o for o in outcomes if o.plan.kind == kind]) for kind in KINDS]
    return (
        HEAD.format(workers=N_WORKERS, steps=STEPS) + "\n".join([*filter(None, lines), _line("all", outcomes)]) + "\n"
    )


def _line(name: str, outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return ""
    seconds = [second for outcome in outcomes for second in outcome.recovered]
    told = f"{median(seconds):.1f} | {max(seconds):.1f}" if seconds else " | "
    return f"| {name} | {len(outcomes)} | {sum(not o.problems for o in outcomes)} | {told} |"
