"""The training that chaos is done to, as its ranks run it, and what they do to themselves."""

from __future__ import annotations

import hashlib
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import torch

import daskdl

from .plan import Fault, Plan

INSIDE = {"kill": signal.SIGKILL, "commit": signal.SIGKILL, "silence": signal.SIGSTOP, "pause": signal.SIGSTOP}


class Net(torch.nn.Module):
    """With what makes bits differ easily: dropout, and layers with running statistics."""

    def __init__(self, n_inputs: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(n_inputs, 32),
            torch.nn.BatchNorm1d(32),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.2),
            torch.nn.Linear(32, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).squeeze(1)


class Marks:
    """Files that say what has happened, so that it does not happen again, and when it did."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def leave(self, name: str, text: str = "") -> bool:
        """Leave a mark with the time; False if it is there already."""
        try:
            with open(self.folder / name, "x") as file:
                file.write(f"{time.time()} {text}")
        except FileExistsError:
            return False
        return True

    def times(self, prefix: str) -> list[float]:
        return sorted(float(path.read_text().split()[0]) for path in self.folder.glob(f"{prefix}*"))


class Bomb:
    """Kept after the model: dies when a commit has been copied in part."""

    def __init__(self, context: daskdl.Context, strikes: Strikes) -> None:
        self.context, self.strikes = context, strikes

    def state_dict(self) -> dict[str, Any]:
        self.strikes.at("commit", self.context.step, self.context.rank)
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Strikes:
    """The faults that ranks do to themselves, each once."""

    def __init__(self, plan: Plan, marks: Marks) -> None:
        self.faults = [(n, fault) for n, fault in enumerate(plan.faults) if fault.how in INSIDE]
        self.marks = marks

    def at(self, place: str, step: int, rank: int) -> None:
        for n, fault in self.faults:
            if (
                ("commit" if fault.how == "commit" else "step") == place
                and rank in fault.ranks
                and self.due(fault, step)
            ):
                self.strike(n, fault, rank)

    def due(self, fault: Fault, step: int) -> bool:
        return step >= fault.step if fault.how == "commit" else step == fault.step

    def strike(self, n: int, fault: Fault, rank: int) -> None:
        if not (self.marks.folder / f"fault-{n}-{rank}").exists():
            time.sleep(0.02 if len(fault.ranks) > 1 else 0.0)  # all come to it, or wait in their collective
            if self.marks.leave(f"fault-{n}-{rank}", str(os.getpid())):
                os.kill(os.getpid(), INSIDE[fault.how])


def loop(context: daskdl.Context, folder: str, plan: Plan) -> str:
    """Train; returns the digest of the weights' bits."""
    marks = Marks(folder)
    strikes = Strikes(plan, marks)
    torch.manual_seed(7)
    net = Net(context.schema.n_numbers)
    model = context.prepare(net)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    context.keep(optimizer=optimizer, bomb=Bomb(context, strikes))
    context._settle_steps = plan.settle_steps  # commits farther apart than those of a short run are
    first = True
    for batch in context.batches:
        strikes.at("step", batch.step, context.rank)
        time.sleep(plan.pause)
        optimizer.zero_grad()
        loss = context.backward(
            batch,
            lambda part: torch.nn.functional.binary_cross_entropy_with_logits(model(part.x), part.y.float()),
        )
        optimizer.step()
        context.report(loss=loss)
        if first and context.rank == 0:
            marks.leave(f"gang-{uuid.uuid4().hex}")
        first = False
    state = net.state_dict().values()
    return hashlib.sha256(b"".join(tensor.cpu().numpy().tobytes() for tensor in state)).hexdigest()
