"""What is done to a training: a pure function of a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

N_WORKERS = 3
N_ROWS, BATCH_SIZE, EPOCHS = 2_400, 60, 3
STEPS = N_ROWS // BATCH_SIZE * EPOCHS
ROUNDS = 120  # of boosting


@dataclass(frozen=True)
class Fault:
    """One thing that is done to the workers of a run.

    Attributes
    ----------
    how : str
        From inside of a rank: ``kill`` in a step, ``commit`` once the model is copied, ``silence`` (SIGSTOP), ``pause``
        (SIGSTOP, and SIGCONT after ``seconds``). From outside: ``kill_after`` seconds from the start of the run,
        ``kill_at`` a step that was heard of, ``kill_again`` seconds after a loss was noticed, ``damage`` the newest
        checkpoint and kill everybody, ``stop`` or ``interrupt`` at a step; to the worker that has a nanny of its own,
        at a step: ``nanny`` kills that (and the worker, if there is a rank), ``cut`` cuts the link to it.
    ranks : tuple of int
    step : int
    seconds : float
    """

    how: str
    ranks: tuple[int, ...] = (0,)
    step: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A training and its faults.

    Attributes
    ----------
    kind : str
        Of its faults, for the table.
    setup : {"virtual", "fixed", "alone", "boost"}
        ``virtual``: ``reproducible=5``, any number of ranks. ``fixed``: always as many ranks as workers. ``alone``: one
        rank.
    data : {"pandas", "dask", "source"}
    settle_steps : int
        Steps from one commit to the next.
    pause : float
        Seconds that every step takes longer.
    stays_down : int or None
        Rank of the first gang whose nanny does not start it again.
    full_disk : bool
        Whether checkpoints go to a disk that is nearly full.
    beside : bool
        Whether a second run is started on the same cluster.
    far : int or None
        Whether there is a fourth worker, with a nanny of its own: as the first rank (0) or the last (1).
    """

    seed: int
    kind: str
    setup: str = "fixed"
    data: str = "pandas"
    settle_steps: int = 1
    pause: float = 0.0
    faults: tuple[Fault, ...] = ()
    stays_down: int | None = None
    full_disk: bool = False
    beside: bool = False
    far: int | None = None

    @property
    def resumed(self) -> bool:
        """Whether the run is stopped, to be resumed."""
        return any(fault.how in ("stop", "interrupt") for fault in self.faults)


def draw(seed: int, kind: str | None = None, without: tuple[str, ...] = ()) -> Plan:
    """Draw the plan of a seed; kinds take turns unless one is given."""
    kinds = [name for name in KINDS if name not in without]
    kind = kind or kinds[seed % len(kinds)]
    rng = Random(f"{kind} {seed}")
    common: dict[str, Any] = {
        "setup": rng.choice(["virtual", "fixed"]),
        "data": rng.choice(["pandas", "dask", "source"]),
        "settle_steps": rng.choice([1, 3, 7, 20]),
        "pause": rng.choice([0.0, 0.0, 0.003]),
    }
    return Plan(seed, kind, **(common | KINDS[kind](rng)))


def _rank(rng: Random) -> tuple[int, ...]:
    return (rng.randrange(N_WORKERS),)


def _step(rng: Random) -> int:
    return rng.randrange(STEPS)


def _of(*faults: Fault, **more: Any) -> dict[str, Any]:
    return {"faults": faults, **more}


def _several(rng: Random) -> dict[str, Any]:
    ranks = tuple(sorted(rng.sample(range(N_WORKERS), rng.choice([2, 2, 3]))))
    return _of(Fault("kill", ranks, _step(rng)))


def _same(rng: Random) -> dict[str, Any]:
    ranks, steps = _rank(rng), sorted(rng.sample(range(STEPS), rng.choice([2, 3])))
    return _of(*(Fault("kill", ranks, step) for step in steps), setup="fixed")


def _recovery(rng: Random) -> dict[str, Any]:
    first = Fault("kill", _rank(rng), _step(rng))
    again = [Fault("kill_again", _rank(rng), i, rng.choice([0.0, rng.uniform(0.0, 0.5)])) for i in range(2)]
    return _of(first, *again[: rng.choice([1, 2])])


def _alone(rng: Random) -> dict[str, Any]:
    first, then = sorted(rng.sample(range(STEPS), 2))
    again = rng.choice([(), (Fault("kill", (0,), then),), (Fault("kill_at", _rank(rng), first // 2),)])
    return _of(Fault("kill", (0,), first), *again, setup="alone", pause=rng.choice([0.003, 0.01]))


def _disk(rng: Random) -> dict[str, Any]:
    return _of(Fault("kill", _rank(rng), _step(rng)), full_disk=True, settle_steps=1)


def _everybody(how: str) -> Callable[[Random], dict[str, Any]]:
    def plan(rng: Random) -> dict[str, Any]:
        step = rng.randrange(STEPS // 4, 3 * STEPS // 4)
        return _of(Fault(how, tuple(range(N_WORKERS)), step), settle_steps=rng.choice([1, 3]), pause=0.005)

    return plan


def _stopped(how: str) -> Callable[[Random], dict[str, Any]]:
    def plan(rng: Random) -> dict[str, Any]:
        kill = (Fault("kill", _rank(rng), _step(rng)),) if rng.random() < 0.5 else ()
        return _of(Fault(how, (), rng.randrange(1, 2 * STEPS // 3)), *kill, pause=0.005)

    return plan


def _down(rng: Random) -> dict[str, Any]:
    ranks = _rank(rng)
    return _of(Fault("kill", ranks, _step(rng)), setup="virtual", stays_down=ranks[0])


def _boost(rng: Random) -> dict[str, Any]:
    ranks = tuple(sorted(rng.sample(range(N_WORKERS), rng.choice([1, 1, 2]))))
    data = rng.choice(["dask", "source"])  # a frame in memory has fewer pieces than ranks
    return _of(Fault("kill_at", ranks, rng.randrange(ROUNDS // 2)), setup="boost", data=data)


def _far(how: str) -> Callable[[Random], dict[str, Any]]:
    def plan(rng: Random) -> dict[str, Any]:
        ranks = rng.choice([(), (0,)]) if how == "nanny" else ()
        return _of(Fault(how, ranks, rng.randrange(STEPS // 2)), setup="virtual", pause=0.005, far=rng.randrange(2))

    return plan


def _silence(rng: Random) -> dict[str, Any]:
    return _of(Fault("silence", _rank(rng), _step(rng)))


KINDS: dict[str, Callable[[Random], dict[str, Any]]] = {
    "kill in a step": lambda rng: _of(Fault("kill", _rank(rng), _step(rng))),
    "kill at any time": lambda rng: _of(Fault("kill_after", _rank(rng), 0, rng.uniform(0.0, 1.2))),
    "kill several at once": _several,
    "kill the same rank again": _same,
    "kill a rank that is alone": _alone,
    "kill during a commit": lambda rng: _of(Fault("commit", _rank(rng), _step(rng))),
    "kill during recovery": _recovery,
    "kill in the first step": lambda rng: _of(Fault("kill", _rank(rng), 0)),
    "kill in the last step": lambda rng: _of(Fault("kill", _rank(rng), STEPS - 1)),
    "kill, and it stays down": _down,
    "kill a nanny": _far("nanny"),
    "cut the link to a worker": _far("cut"),
    "stop a process (SIGSTOP)": _silence,
    "halt a process for a moment": lambda rng: _of(Fault("pause", _rank(rng), _step(rng), rng.uniform(0.05, 0.7))),
    "fill the disk, and kill": _disk,
    "damage the newest checkpoint, and kill all": _everybody("damage"),
    "kill all": _everybody("kill_at"),
    "stop, and resume": _stopped("stop"),
    "interrupt, and resume": _stopped("interrupt"),
    "a second run beside it, and kill": lambda rng: _of(Fault("kill", _rank(rng), _step(rng)), beside=True),
    "kill while XGBoost trains": _boost,
}
