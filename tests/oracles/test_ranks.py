"""Any module on one, two and three ranks has the weights of plain torch, in one process, on the same global batches.

In float64, where sums in another order differ by less than ``TOLERANCE``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ranks_at_hand import RanksAtHand, order_of
from torch import nn
from torch.nn import functional as F

TOLERANCE = 1e-9
N_CODES = 6
CLASS_WEIGHTS = torch.tensor([1.0, 4.0, 0.3], dtype=torch.float64)


@dataclass(frozen=True)
class Program:
    """A small training, of whatever a loop may do."""

    n_rows: int
    batch_size: int
    norm: str
    embedding: str
    method: str
    loss: str
    optimizer: str
    through: str
    unused: bool
    branch: bool
    tied: bool
    toggled: tuple[str, int, int] | None
    accumulate: int
    clip: bool
    second_pass: bool
    penalty: bool
    virtual: bool = False


def program() -> st.SearchStrategy[Program]:
    toggle = st.tuples(st.sampled_from(["first", "extra", "head"]), st.integers(0, 3), st.integers(2, 8))
    return st.builds(
        Program,
        n_rows=st.integers(20, 45),
        batch_size=st.integers(4, 17),
        norm=st.sampled_from(["", "batch", "cumulative", "bare", "untracked", "frozen", "instance", "center"]),
        embedding=st.sampled_from(["", "dense", "sparse", "both"]),
        method=st.sampled_from(["forward", "encode", "module"]),
        loss=st.sampled_from(["mean", "weighted", "ignore"]),
        optimizer=st.sampled_from(["sgd", "adamw", "two"]),
        through=st.sampled_from(["backward", "context", "no_sync"]),
        unused=st.booleans(),
        branch=st.booleans(),
        tied=st.booleans(),
        toggled=st.none() | toggle,
        accumulate=st.integers(1, 3),
        clip=st.booleans(),
        second_pass=st.booleans(),
        penalty=st.booleans(),
    ).filter(lambda one: one.n_rows % one.batch_size != 1)  # on which batch norm cannot train


class Center(nn.Module):
    """Takes off the mean of what it saw before, in a buffer that is replaced, not changed."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centered = x - self.mean
        if self.training:
            self.mean = 0.8 * self.mean + 0.2 * x.detach().mean(0)
        return centered


class Instance(nn.InstanceNorm1d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[:, None]).squeeze(1)


NORMS: dict[str, Any] = {
    "": nn.Identity,
    "batch": lambda: nn.BatchNorm1d(5),
    "cumulative": lambda: nn.BatchNorm1d(5, momentum=None),
    "bare": lambda: nn.BatchNorm1d(5, affine=False),
    "untracked": lambda: nn.BatchNorm1d(5, track_running_stats=False),
    "frozen": lambda: nn.BatchNorm1d(5),
    "instance": lambda: Instance(1, track_running_stats=True),
    "center": Center,
}


class Net(nn.Module):
    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.first, self.norm, self.extra = nn.Linear(3, 5), NORMS[program.norm](), nn.Linear(3, 5)
        if program.unused:
            self.spare = nn.Linear(5, 5)
        if program.embedding:
            self.codes = nn.Embedding(N_CODES, 5, sparse=program.embedding != "dense")

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.first(x))
        if self.program.branch:  # few rows, of some ranks only
            few = x[:, 0] > 1.3
            if few.any():
                h = h.index_put((few,), h[few] + self.extra(x[few]))
        if self.program.embedding:
            codes = ((x[:, 1] + 2) * 1.5).long().clamp(0, N_CODES - 1)
            h = h + self.codes(codes)
            if self.program.embedding == "both":  # its gradient is dense where this is used, and sparse elsewhere
                h = h + x[:, 2:].clamp(min=1).sub(1) * self.codes.weight.sum(0) if (x[:, 2] > 1).any() else h
        if self.program.tied:
            h = h + torch.tanh(h) @ self.first.weight @ self.first.weight.T
        return torch.tanh(h)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encode(x)


def make(program: Program) -> tuple[Net, nn.Linear]:
    torch.manual_seed(3)
    net, head = Net(program).double(), nn.Linear(5, 3).double()
    if program.norm == "frozen":
        net.norm.eval()
    if program.toggled and program.toggled[0] != "head":
        getattr(net, program.toggled[0]).requires_grad_(False)
    return net, head


def optimizers(program: Program, net: Net, head: nn.Linear) -> list[torch.optim.Optimizer]:
    sparse = list(net.codes.parameters()) if program.embedding else []
    rest = [p for p in net.parameters() if all(p is not other for other in sparse)]
    made: list[torch.optim.Optimizer] = [torch.optim.SGD(sparse, lr=0.3)] if sparse else []
    if program.optimizer == "adamw":
        return [*made, torch.optim.AdamW([*rest, *head.parameters()], lr=0.05, weight_decay=0.1, eps=1e-3)]
    if program.optimizer == "sgd":
        return [*made, torch.optim.SGD([*rest, *head.parameters()], lr=0.1, momentum=0.9, weight_decay=0.1)]
    return [*made, torch.optim.Adam(rest, lr=0.05, eps=1e-3), torch.optim.SGD(head.parameters(), lr=0.1)]


def toggle(program: Program, net: Net, head: nn.Linear, step: int) -> None:
    if program.toggled:
        name, thaw, freeze = program.toggled
        layer = head if name == "head" else getattr(net, name)
        if step == thaw:
            layer.requires_grad_(True)
        if step == freeze:
            layer.requires_grad_(False)


def hidden(program: Program, net: Any, x: torch.Tensor) -> torch.Tensor:
    called: torch.Tensor = {"forward": net, "encode": net.encode, "module": getattr(net, "module", net).encode}[
        program.method
    ](x)
    return called


def parts(program: Program, net: Net, head: nn.Linear, x: torch.Tensor, y: torch.Tensor) -> tuple[Any, Any]:
    """Sum over rows, and the count: of a rank's rows or of all."""
    losses = F.cross_entropy(head(hidden(program, net, x)), y, reduction="none")
    weights = {
        "mean": torch.ones(len(y), dtype=torch.float64),
        "weighted": CLASS_WEIGHTS[y],
        "ignore": (y != 0).double(),
    }[program.loss]
    return (losses * weights).sum(), weights.sum()


def second(net: Net, head: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Another loss, of a part of the modules."""
    return (net.first(x).square().mean(1) + head(torch.ones(5, dtype=x.dtype)).sum() ** 2).mean()


def penalty(net: Net, head: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """The mean of the squared gradients by the inputs."""
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(head(torch.tanh(net.first(x))).sum(), x, create_graph=True)
    return 0.1 * gradient.square().sum(1).mean()


def finish(program: Program, net: Net, head: nn.Linear, made: list[torch.optim.Optimizer], step: int) -> None:
    """What follows the backward passes of a batch."""
    if step % program.accumulate != program.accumulate - 1:
        return
    if program.clip:
        nn.utils.clip_grad_norm_([*net.first.parameters(), *head.parameters()], 0.05)
    for optimizer in made:
        optimizer.step()
    for optimizer in made:
        optimizer.zero_grad()


def state(net: Net, head: nn.Linear) -> dict[str, torch.Tensor]:
    return {f"{name}.{k}": v.clone() for name, m in (("net", net), ("head", head)) for k, v in m.state_dict().items()}


def plain(program: Program, arrays: dict[str, np.ndarray]) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The oracle: torch and the rows of each global batch."""
    net, head = make(program)
    made, losses = optimizers(program, net, head), []
    order = order_of(arrays, program.batch_size)
    x, y = torch.from_numpy(arrays["numbers"]), torch.from_numpy(arrays["y"])
    for step in range(2 * order.steps_per_epoch):
        toggle(program, net, head, step)
        rows = torch.from_numpy(np.asarray(order.rows(*divmod(step, order.steps_per_epoch))))
        total, count = parts(program, net, head, x[rows], y[rows])
        loss = total / count if count else total * 0
        loss.backward()
        losses.append(float(loss))
        if program.second_pass:
            second(net, head, x[rows]).backward()
        if program.penalty:
            penalty(net, head, x[rows]).backward()
        finish(program, net, head, made, step)
    return state(net, head), losses


def loop(context: Any, program: Program) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The same with a context."""
    net, head = make(program)
    net, head = context.prepare(net), context.prepare(head)
    made = optimizers(program, net, head)
    for i, optimizer in enumerate(made):
        context.keep(**{f"optimizer{i}": optimizer})
    for batch in context.batches:
        toggle(program, net, head, batch.step)

        def loss_of(part: Any) -> Any:
            total, count = parts(program, net, head, part.x, part.y)
            return total / count if program.loss == "mean" else (total, count)

        if program.through == "context" or program.virtual:
            loss = context.backward(batch, loss_of)
        else:
            with net.no_sync() if program.through == "no_sync" else torch.enable_grad():
                found = loss_of(batch)
                loss = context.mean(*found) if isinstance(found, tuple) else found
                loss.backward()
        if program.second_pass:
            second(net, head, batch.x).backward()
        if program.penalty:
            penalty(net, head, batch.x).backward()
        finish(program, net, head, made, batch.step)
        context.report(loss=loss)
    points = [point for said in context.said for point in said.get("points", [])]
    return state(net, head), [values["train_loss"] for _, values in points if "train_loss" in values]


def rows_of(program: Program) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(program.n_rows)
    return {"numbers": rng.normal(size=(program.n_rows, 3)), "y": rng.integers(0, 3, program.n_rows)}


def different(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], within: float) -> dict[str, float]:
    gaps = {name: float((one[name].double() - other[name].double()).abs().max()) for name in one if one[name].numel()}
    return {name: gap for name, gap in gaps.items() if not gap <= within}


@settings(
    max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)
@given(program=program())
def test_weights_are_those_of_plain_torch(at_hand: RanksAtHand, program: Program) -> None:
    arrays = rows_of(program)
    expected, losses = plain(program, arrays)
    for world_size in (1, 2, 3):
        answers = at_hand(world_size, loop, arrays, program, batch_size=program.batch_size)
        for rank, (weights, _) in enumerate(answers):
            assert not different(weights, expected, TOLERANCE), f"rank {rank} of {world_size}"
        assert answers[0][1] == pytest.approx(losses, abs=TOLERANCE)


@settings(
    max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)
@given(
    program=program()
    .map(lambda one: replace(one, virtual=True, second_pass=False, penalty=False))
    .filter(lambda one: one.norm in ("", "frozen", "instance", "center"))  # batch norm is of a virtual rank's rows
)
def test_reproducible_weights_are_those_of_plain_torch_and_have_the_same_bits(
    at_hand: RanksAtHand, program: Program
) -> None:
    arrays = rows_of(program)
    expected, losses = plain(program, arrays)
    answers = [at_hand(n, loop, arrays, program, batch_size=program.batch_size, virtual=4) for n in (1, 2, 3)]
    first, reported = answers[0][0]
    assert not different(first, expected, TOLERANCE)
    assert reported == pytest.approx(losses, abs=TOLERANCE)
    for found in answers:
        assert all(not different(weights, first, 0.0) for weights, _ in found)
        assert found[0][1] == pytest.approx(losses, abs=TOLERANCE)
