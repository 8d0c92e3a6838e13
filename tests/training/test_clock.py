"""Where the time of a rank goes: in a loop of one's own, by hooks alone."""

from __future__ import annotations

import copy
import time

import pandas as pd
import pytest
import torch
from distributed import Client

import daskdl
from daskdl.tracking.breakdown import PHASES
from daskdl.training.clock import Clock

PAUSE = 0.02


class Slow(torch.nn.Module):
    """Sleeps in its forward pass and, through a hook of autograd, in its backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        time.sleep(PAUSE)
        y = self.layer(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: time.sleep(2 * PAUSE))
        return {"out": [y * 1]}


def test_a_step_falls_into_its_parts() -> None:
    clock, module = Clock(), Slow()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    clock.watch_module(module)
    clock.watch_optimizer(optimizer)
    clock.lap("other")
    clock.take()
    began = time.perf_counter()
    for _ in range(2):
        loss = module(torch.ones(3, 2))["out"][0].sum()
        loss.backward()
        optimizer.step()
        time.sleep(3 * PAUSE)
        clock.lap("other")
        clock.begin("validation")
        with torch.no_grad():
            module(torch.ones(3, 2))
        clock.end()
    seconds = dict(zip(PHASES, clock.take(), strict=True))
    assert sum(seconds.values()) == pytest.approx(time.perf_counter() - began, abs=0.01)
    expected = {"forward": 1, "backward": 2, "other": 3, "validation": 1}
    for phase, pauses in expected.items():
        assert 2 * pauses * PAUSE <= seconds[phase] < 2 * (pauses + 0.9) * PAUSE, phase
    assert clock.take() == [0.0] * len(PHASES)
    clock.close()
    module(torch.ones(3, 2))["out"][0].sum().backward()
    assert clock.take() == [0.0] * len(PHASES), "hooks are left"


def test_several_modules_and_methods_are_told_apart() -> None:
    class Coder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slow = Slow()

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return self.slow(x)["out"][0]

    clock, coder, head = Clock(), Coder(), Slow()
    for module in (coder, head):
        clock.watch_module(module)
    clock.lap("other")
    clock.take()
    head(coder.encode(torch.ones(3, 2)).expand(3, 2))["out"][0].sum().backward()
    clock.lap("other")
    seconds = dict(zip(PHASES, clock.take(), strict=True))
    assert 2 * PAUSE <= seconds["forward"] < 3 * PAUSE and 4 * PAUSE <= seconds["backward"] < 6 * PAUSE
    assert seconds["other"] < PAUSE


def test_a_watched_module_can_be_copied_and_saved(tmp_path: object) -> None:
    clock, module = Clock(), torch.nn.Linear(2, 1)
    clock.watch_module(module)
    copied = copy.deepcopy(module)
    copied(torch.ones(1, 2)).sum().backward()
    torch.save(module, f"{tmp_path}/module.pt")
    assert clock.take() == [0.0] * len(PHASES)


def sleepy(context: daskdl.Context, slow: int) -> torch.nn.Module:
    model = context.prepare(torch.nn.Linear(context.schema.n_numbers, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    context.keep(optimizer=optimizer)
    for batch in context.batches:
        if context.rank == slow:
            time.sleep(PAUSE)
        optimizer.zero_grad()
        loss = context.backward(batch, lambda part: (model(part.x).squeeze(1) - part.y).square().mean())
        optimizer.step()
        context.report(loss=loss)
    return model


@pytest.mark.cluster
@pytest.mark.parametrize("reproducible", [False, True])
def test_the_rank_that_the_others_wait_for_is_named(client: Client, planted: pd.DataFrame, reproducible: bool) -> None:
    data, options = (
        (planted[["a", "b"]], planted.late),
        {"num_workers": 2, "batch_size": 200, "epochs": 4, "verbose": 0},
    )
    run = daskdl.train(sleepy, data, 1, reproducible=reproducible, **options).run
    table = run.breakdown()
    assert "Rank 1 is the straggler" in table.attrs["verdict"] and "own code" in table.attrs["verdict"]
    assert table.loc[1, "other"] > 1_000 * PAUSE and table.loc[0, "all-reduce"] > table.loc[1, "all-reduce"]
    assert run.record.ranks is not None and run.record.ranks.steps == 80
    assert all(n > 50 << 20 for n in run.record.ranks.host)
    assert {"learning_rate", "grad_norm"} <= set(run.metrics) and (run.metrics.learning_rate.dropna() == 0.01).all()
    again = daskdl.load_run(run.id).breakdown()
    pd.testing.assert_frame_equal(again, table)


def test_trees_tell_where_their_time_goes(client: Client, planted: pd.DataFrame) -> None:
    X, y = planted[["a", "b"]], planted.late
    run = daskdl.XGBClassifier(n_estimators=20, num_workers=2, verbose=0).fit(X, y, validation_data=(X, y)).run_
    table = run.breakdown()
    assert {"boost", "validation", "all-reduce"} <= set(table.columns) and (table.boost > 0).all()
    assert run.record.ranks is not None and run.record.ranks.steps == 20
