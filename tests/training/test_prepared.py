"""What context.prepare gives back, and what it refuses: on one, two and three ranks."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ranks_at_hand import RanksAtHand
from torch import nn

ROWS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
DATA = {"numbers": ROWS, "y": (ROWS[:, 0] > 0).astype(np.float32)}
SIZES = (1, 2, 3)


def mse(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (output.squeeze(1) - y).square().mean()


def train(context: Any, modules: list[nn.Module], call: Callable[..., torch.Tensor], **options: Any) -> list[Any]:
    """Train modules by what ``call(batch)`` gives; return their weights."""
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = options.get("optimizer", torch.optim.Adam)(parameters, lr=0.05)
    for batch in context.batches:
        if (thaw := options.get("thaw")) and batch.step == 2:
            thaw.requires_grad_(True)
        optimizer.zero_grad()
        loss = context.backward(batch, lambda part: mse(call(part), part.y))
        optimizer.step()
        context.report(loss=loss)
    return [p.detach().clone() for p in parameters]


class Coder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width, self.layer, self.spare = 8, nn.Linear(3, 8), nn.Linear(8, 8)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(x))


def two_modules(context: Any) -> list[Any]:
    torch.manual_seed(0)
    encoder, head = context.prepare(nn.Linear(3, 8)), context.prepare(nn.Linear(8, 1))
    weights = train(context, [encoder, head], lambda part: head(torch.tanh(encoder(part.x))))
    assert set(context.state()) == {"model", "model_2"}
    return weights


def a_method_an_attribute_and_a_spare_layer(context: Any) -> list[Any]:
    torch.manual_seed(0)
    coder = Coder()
    assert context.prepare(coder) is coder and context.prepare(coder) is coder
    head = context.prepare(nn.Linear(coder.width, 1))
    with coder.no_sync():
        return train(context, [coder, head], lambda part: head(coder.module.encode(part.x)))


def thawed_later(context: Any) -> list[Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    net[0].requires_grad_(False)
    model = context.prepare(net)
    before = net[0].weight.clone()
    weights = train(context, [model], lambda part: model(part.x), thaw=net[0])
    assert not torch.equal(net[0].weight, before)
    return weights


def sparse_rows(context: Any) -> list[Any]:
    torch.manual_seed(0)
    codes, head = context.prepare(nn.Embedding(1_000, 4, sparse=True)), context.prepare(nn.Linear(4, 1))
    sparse, dense = torch.optim.SparseAdam(codes.parameters(), lr=0.05), torch.optim.Adam(head.parameters(), lr=0.05)
    context.keep(sparse=sparse, dense=dense)
    for batch in context.batches:
        loss = context.backward(batch, lambda part: mse(head(codes((part.x[:, 0] * 100).long() + 500)), part.y))
        for optimizer in (sparse, dense):
            optimizer.step()
            optimizer.zero_grad()
        context.report(loss=loss)
    return [codes.weight.detach(), head.weight.detach()]


def other_numbers(context: Any) -> list[Any]:
    torch.manual_seed(0)
    wide, turned, short = nn.Linear(3, 2).double(), nn.Linear(3, 2).to(torch.complex64), nn.Linear(3, 2).bfloat16()
    for module in (wide, turned, short):
        context.prepare(module)

    def call(part: Any) -> torch.Tensor:
        x = part.x
        values = wide(x.double()).float() + turned(x.to(torch.complex64)).abs() + short(x.bfloat16()).float()
        return values.sum(1, keepdim=True)

    weights = train(context, [wide, turned], call, optimizer=torch.optim.SGD)
    return [torch.view_as_real(w) if w.is_complex() else w for w in weights]


def closures(context: Any) -> list[Any]:
    torch.manual_seed(0)
    model = context.prepare(nn.Linear(3, 1).double())
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe", max_iter=5)
    for batch in context.batches:

        def closure(batch: Any = batch) -> torch.Tensor:
            optimizer.zero_grad()
            loss = mse(model(batch.x.double()), batch.y)
            loss.backward()
            return loss

        context.report(loss=optimizer.step(closure))
    return [p.detach().clone() for p in model.parameters()]


def two_players(context: Any) -> list[Any]:
    torch.manual_seed(0)
    maker, judge = context.prepare(nn.Linear(3, 3)), context.prepare(nn.Linear(3, 1))
    made, judged = torch.optim.Adam(maker.parameters(), 0.05), torch.optim.Adam(judge.parameters(), 0.05)
    for batch in context.batches:
        judged.zero_grad()
        (judge(maker(batch.x).detach()).mean() - judge(batch.x).mean()).backward()
        judged.step()
        made.zero_grad()
        (-judge(maker(batch.x)).mean()).backward()
        made.step()
    return [*maker.parameters(), *judge.parameters()]


def some_ranks_without_a_pass(context: Any) -> list[Any]:
    torch.manual_seed(0)
    model = context.prepare(nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in context.batches:
        optimizer.zero_grad()
        kept = batch.x[:, 1] > 1.0
        if kept.any():
            context_share = len(batch.y)
            ((model(batch.x[kept]).squeeze(1) - batch.y[kept]).square().sum() / context_share).backward()
        optimizer.step()
    return list(model.parameters())


@pytest.mark.parametrize("virtual", [0, 4], ids=["plain", "reproducible"])
@pytest.mark.parametrize(
    "loop", [two_modules, a_method_an_attribute_and_a_spare_layer, thawed_later, sparse_rows, other_numbers]
)
def test_weights_do_not_depend_on_the_number_of_ranks(
    at_hand: RanksAtHand, loop: Callable[[Any], Any], virtual: int
) -> None:
    answers = {n: at_hand(n, loop, DATA, virtual=virtual) for n in SIZES}
    for n in SIZES:
        for rank, weights in enumerate(answers[n]):
            for mine, first, alone in zip(weights, answers[n][0], answers[1][0], strict=True):
                assert torch.equal(mine, first), f"rank {rank} of {n}"
                assert torch.equal(mine, alone) if virtual else torch.allclose(mine, alone, atol=2e-5)


@pytest.mark.parametrize("loop", [closures, two_players, some_ranks_without_a_pass])
def test_other_loops_do_not_depend_on_the_number_of_ranks_either(
    at_hand: RanksAtHand, loop: Callable[[Any], Any]
) -> None:
    alone = at_hand(1, loop, DATA)[0]
    for n in (2, 3):
        for weights in at_hand(n, loop, DATA):
            assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(weights, alone, strict=True))


def test_nothing_is_left_on_a_module_and_copies_are_whole(at_hand: RanksAtHand) -> None:
    def loop(context: Any) -> Any:
        torch.manual_seed(0)
        before = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.SyncBatchNorm(4), nn.Linear(4, 1))
        keys = list(before.state_dict())
        model = context.prepare(before)
        train(context, [model], lambda part: model(part.x), optimizer=torch.optim.SGD)
        twin = copy.deepcopy(model)
        assert twin.module is twin and twin[1].forward.layer is twin[1]
        with torch.no_grad():
            twin[1].weight.zero_()
        x = torch.ones(2, 3)
        saved = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that hooks are not saved
            torch.save(model, saved)
        saved.seek(0)
        again = torch.load(saved, weights_only=False)
        context.close()
        assert list(model.state_dict()) == keys and not {"module", "no_sync"} & set(vars(model))
        assert "forward" not in vars(model[1]) and not model._forward_hooks
        model.eval(), again.eval(), twin.eval()
        assert torch.equal(model(x), again(x)) and not torch.equal(model(x), twin(x))
        return [p.detach() for p in model.parameters()]

    alone = at_hand(1, lambda context: None, DATA)
    assert alone == [None]
    two, three = at_hand(2, loop, DATA), at_hand(3, loop, DATA)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(two[0], three[2], strict=True))


def drifts(context: Any, size: float, name: str = "weight") -> Any:
    torch.manual_seed(0)
    model, other = context.prepare(nn.Linear(3, 1)), context.prepare(nn.Linear(3, 1))
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
    for batch in context.batches:
        optimizer.zero_grad()
        (mse(model(batch.x), batch.y) + mse(other(batch.x), batch.y)).backward()
        optimizer.step()
        if batch.step == 3 and context.rank == 1:
            with torch.no_grad():
                getattr(other, name).mul_(1 + size)
    return [*other.parameters()], [m["text"] for m in context.said if m["kind"] == "event"]


@pytest.mark.parametrize("size", [0.01, float("nan")])
def test_ranks_that_drift_apart_end_the_run_with_the_name_of_a_parameter(at_hand: RanksAtHand, size: float) -> None:
    told = r"different weights after step 4: model_2.weight of rank 1 is .* away from that of rank 0.*condition"
    with pytest.raises(RuntimeError, match=told):
        at_hand(2, drifts, DATA, size)


def test_last_bits_are_put_right_and_said_once(at_hand: RanksAtHand) -> None:
    answers = at_hand(3, drifts, DATA, 1e-6)
    for weights, _ in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights, answers[0][0], strict=True))
    (said,) = answers[0][1]
    assert "last bits" in said and "model_2.weight of rank 1" in said


def test_nan_of_rows_that_a_rank_does_not_have_counts_nothing(at_hand: RanksAtHand) -> None:
    def loop(context: Any) -> list[Any]:
        model = context.prepare(nn.Linear(3, 1))
        nn.init.constant_(model.weight, 0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in context.batches:
            optimizer.zero_grad()
            loss = mse(model(batch.x), batch.y) * (1 if batch.n_rows else float("nan"))
            loss.backward()
            optimizer.step()
            context.report(loss=loss)
        return [p.detach() for p in model.parameters()]

    data = {name: values[:38] for name, values in DATA.items()}  # the last batch has two rows
    answers = at_hand(3, loop, data)
    assert torch.allclose(answers[2][0], at_hand(1, loop, data)[0][0], atol=1e-5)


def test_a_count_of_nothing_gives_no_gradient_and_is_said(at_hand: RanksAtHand) -> None:
    def loop(context: Any) -> Any:
        model = context.prepare(nn.Linear(3, 1))
        before = model.weight.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in context.batches:
            loss = context.mean(model(batch.x).sum() * 0, 0)
            loss.backward()
            optimizer.step()
            context.report(loss=loss)
        assert torch.equal(before, model.weight)
        return [m["text"] for m in context.said if m.get("event") == "warning"]

    for n in (1, 2):
        (said,) = at_hand(n, loop, DATA)[0]
        assert "count of 0" in said


def refused(make: Callable[[Any], Any]) -> Callable[[Any], None]:
    def loop(context: Any) -> None:
        make(context)
        for _ in context.batches:
            raise AssertionError("it began")

    return loop


class Around(nn.parallel.DistributedDataParallel):
    def __init__(self) -> None:
        nn.Module.__init__(self)


def two_of_which_one_is_prepared(context: Any) -> None:
    model, head = context.prepare(nn.Linear(3, 3)), nn.Linear(3, 1)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()])
    context.keep(optimizer=optimizer)


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda c: c.prepare(nn.LazyLinear(2)), ValueError, "weight, bias of LazyLinear get their shape only when"),
        (lambda c: c.prepare(torch.ones(1)), TypeError, "takes a torch.nn.Module, got Tensor. Parameters by"),
        (lambda c: c.prepare(Around()), TypeError, "wrapped in Around.*Leave the wrapper out"),
        (
            two_of_which_one_is_prepared,
            ValueError,
            r"Adam trains parameters of shape \(1, 3\), \(1,\), which are of no",
        ),
    ],
)
@pytest.mark.parametrize("n", [1, 2])
def test_what_cannot_be_right_is_refused_before_the_first_step(
    at_hand: RanksAtHand, n: int, make: Any, error: Any, told: str
) -> None:
    with pytest.raises(error, match=told):
        at_hand(n, refused(make), DATA)


@pytest.mark.parametrize("n", [1, 2])
def test_an_optimizer_of_modules_that_nobody_prepared_is_refused_unless_it_is_of_one_step(
    at_hand: RanksAtHand, n: int
) -> None:
    def loop(context: Any, anew: bool) -> int:
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in context.batches:
            if anew:  # as for an attack on this rank's rows, or the inner loop of meta-learning
                model = nn.Linear(3, 1)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(2):
                mse(model(batch.x), batch.y).backward()
                optimizer.step()
        return context.step

    assert at_hand(n, loop, DATA, True) == [8] * n
    with pytest.raises(ValueError, match=r"SGD trains parameters of shape .* \(nothing was\)"):
        at_hand(n, loop, DATA, False)


def test_ranks_that_prepare_different_modules_are_told(at_hand: RanksAtHand) -> None:
    with pytest.raises(ValueError, match="ranks prepared different modules as 'model': here a Linear with 2"):
        at_hand(2, refused(lambda context: context.prepare(nn.Linear(3, 1 + context.rank))), DATA)


def accumulating(context: Any, ends: int) -> Any:
    torch.manual_seed(context.rank)
    model = context.prepare(nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    context.keep(optimizer=optimizer)
    optimizer.zero_grad()
    for batch in context.batches:
        (mse(model(batch.x), batch.y) / 3).backward()
        if batch.step % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
        if context.step == ends:
            context.stop()
    return [p.detach().clone() for p in model.parameters()], context._commit


@pytest.mark.parametrize("sizes", [(2, 3), (3, 1), (1, 2)])
def test_gradients_that_were_accumulated_are_part_of_a_commit(at_hand: RanksAtHand, sizes: tuple[int, int]) -> None:
    whole, commit = at_hand(1, accumulating, DATA, 0)[0]
    assert set(commit.gradients) == {"model.weight", "model.bias"}  # of steps 6 and 7
    _, commit = at_hand(sizes[0], accumulating, DATA, 5)[0]
    assert commit.step == 5
    resumed, _ = at_hand(sizes[1], accumulating, DATA, 0, commit=commit)[0]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(resumed, whole, strict=True))
