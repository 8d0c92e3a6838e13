"""``python -m tests.chaos.run``: disturb trainings by seed, and say how many passed."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from .arena import Arena, Outcome
from .plan import KINDS, draw
from .table import table


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; 1 if something failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description=__doc__)
    parser.add_argument("--runs", type=int, default=300, help="how many, with the seeds from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, nargs="*", default=[], help="these seeds instead; says what happened")
    parser.add_argument("--kind", choices=KINDS, help="this kind of fault, whatever the seed")
    parser.add_argument("--without", choices=KINDS, nargs="*", default=[], help="not these kinds")
    parser.add_argument("--logs", action="store_true", help="show what Dask says")
    parser.add_argument("--table", type=Path, help="file to write the table to")
    args = parser.parse_args(argv)
    if not args.logs:
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
    seeds = args.seed or range(args.first, args.first + args.runs)
    outcomes: list[Outcome] = []
    with Arena() as arena:
        for seed in seeds:
            plan = draw(seed, args.kind, tuple(args.without))
            outcomes.append(arena.play(plan))
            print(outcomes[-1].line, flush=True)
            if args.table:
                args.table.write_text(table(outcomes))
            if args.seed or outcomes[-1].problems:
                told(outcomes[-1], print)
    failed = sum(bool(outcome.problems) for outcome in outcomes)
    print(f"{len(outcomes) - failed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


def told(outcome: Outcome, say: Callable[[str], object]) -> None:
    """Say what was planned, what the run said and what is wrong."""
    say(f"  {outcome.plan}")
    for line in (*outcome.events, *outcome.problems):
        say("    " + line.replace("\n", "\n    "))
    say(f"  again: python -m tests.chaos.run --kind {outcome.plan.kind!r} --seed {outcome.plan.seed}")


if __name__ == "__main__":
    sys.exit(main())
