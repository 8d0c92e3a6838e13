"""What a training loop gets in its rank: its batches, the gradients of all ranks, a place to report to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from daskdl.data.batches import RankBatches
from daskdl.data.schema import Schema
from daskdl.data.schema.target import Target
from daskdl.data.virtual import VirtualOrder
from daskdl.errors import LossDiverged
from daskdl.execution import spmd
from daskdl.execution.progress import begin_progress, end_progress
from daskdl.execution.ranks import told_to_stop
from daskdl.execution.rendezvous import control_group
from daskdl.execution.words import REGROUP, STOP
from daskdl.training.agreement import Agreement
from daskdl.training.checkpoint_writer import CheckpointWriter
from daskdl.training.checkpoints import CheckpointFolder, Checkpoints
from daskdl.training.clock import Clock
from daskdl.training.commit import Commit, put_commit
from daskdl.training.gradients import Gradients, check_module
from daskdl.training.mean import Loss, count_of, scaled
from daskdl.training.replicas import Replicas
from daskdl.training.report import Report, Send
from daskdl.training.tensors import TensorBatch, on_device, seed_torch, to_cpu
from daskdl.training.virtual import VirtualRanks

COMMIT_SECONDS = 0.25  # between two commits, or
COMMIT_SHARE = 0.02  # of the time for commits, if one takes longer
CLOSE_SECONDS = 600.0  # for the last checkpoint to be written
SEND_SECONDS = 0.2  # at least between two messages of rank 0


class Regrouping(BaseException):
    """Ends the loop in all ranks at one step, after a commit, because the gang is to be of other workers."""


class Context:
    """A training loop's view of its rank. ``daskdl.train`` makes it.

    Attributes
    ----------
    rank, world_size : int
    device : torch.device
        The rank's GPU if it has one.
    schema : Schema
        How the columns became numbers; ``schema.n_numbers`` and ``schema.cardinalities`` size a network.
    target : Target
        Its ``n_classes`` is 0 for a regression.
    step : int
        Steps done, from the start of training.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        batches: Sequence[RankBatches],
        schema: Schema,
        target: Target,
        run: str,
        generation: int,
        send: Send,
        commit: Commit | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.schema, self.target, self.run = schema, target, run
        self.stopped_by: str | None = None
        self._batches = batches[0]
        self._clock = Clock(self.device)
        order = self._batches.order
        virtual = isinstance(order, VirtualOrder)
        self._gradients = Gradients(world_size, self._clock, by_hooks=not virtual)
        about: tuple[Any, ...] = (rank, world_size, self._seed, self._gradients)
        self._replicas = Replicas(rank, self._gradients, partial(self.event, "warning"))
        self._virtual = VirtualRanks(order, *about) if isinstance(order, VirtualOrder) else None
        self._validation = batches[1] if len(batches) > 1 else None
        self._kept: dict[str, Any] = {}
        self._commit = commit or Commit()
        self._resume = dict(self._commit.state)
        about = (rank, world_size, self.device, order.steps_per_epoch, self._commit.uses, self._clock)
        self.report_to = Report(run, generation, send, *about)
        self._writer: CheckpointWriter | None = None
        if checkpoints is not None and checkpoints.path and rank == 0:
            folder = CheckpointFolder(checkpoints.path, checkpoints.storage_options)
            self._writer = CheckpointWriter(folder, checkpoints, self._said, self._commit.step)
        self.step = self._batches.next_step = self._commit.step
        self._agreement = Agreement(run, world_size, self.step)
        self._settle_steps = (checkpoints and checkpoints.every_steps) or self.total_steps
        self._settled_at = self._sent_at = 0.0  # seconds of the agreement
        self._stopped = False
        self._counts: list[torch.Tensor] = []  # that losses were divided by
        self._gave_none = False

    # -- model ------------------------------------------------------------------------------------------------

    def prepare(self, module: nn.Module) -> nn.Module:
        """Move a module to this rank's device and make its gradients those of the whole global batch.

        It is the very module that is returned, with rank 0's weights: call any method of it, prepare as many as you
        train, freeze and unfreeze as you like. Write the loss as the mean over the batch you got, or see :meth:`mean`:
        daskdl weights the gradients by rows, so ranks with one row more or less count right. With
        ``reproducible=True`` use :meth:`backward`.

        Parameters
        ----------
        module : Module
            The first one is kept as ``"model"``, the others as ``"model_2"`` and so on.

        Raises
        ------
        TypeError
            It is no module, or one that adds up gradients over ranks by itself.
        ValueError
            It has parameters that get their shape only when it is called, or ranks gave different modules.
        """
        prepared = self._gradients.modules
        if any(module is other for other in prepared.values()):
            return module
        check_module(module)
        module = module.to(self.device)
        name = f"model_{len(prepared) + 1}" if prepared else "model"
        self.keep(**{name: module})
        self._gradients.add(name, module)
        self._clock.watch_module(module)
        return module

    def backward(self, batch: TensorBatch, loss_of: Callable[[TensorBatch], Loss]) -> torch.Tensor:
        """Compute the gradients of a step: what ``loss_of(batch).backward()`` does, and reproducible if that is asked.

        Parameters
        ----------
        batch : TensorBatch
        loss_of : callable
            ``loss_of(part)`` is the mean loss over the rows of a part of the batch, or of all of it; or a pair, a sum
            and the count that it is to be divided by, both over all ranks.

        Returns
        -------
        tensor of shape ()
            The loss of this rank's rows, without gradient, for :meth:`report`.

        Examples
        --------
        >>> loss = context.backward(batch, lambda part: mse(model(part.x), part.y))  # doctest: +SKIP
        """
        if self._virtual is not None:
            return self._virtual.backward(batch, loss_of)
        loss = loss_of(batch)
        mean = self.mean(*loss) if isinstance(loss, tuple) else loss
        self._clock.lap("forward")
        mean.backward()
        return mean.detach()

    def mean(self, total: torch.Tensor, count: float | torch.Tensor) -> torch.Tensor:
        """Make a loss of this rank's sum and what the sum of all ranks is to be divided by.

        For losses that are no plain means over rows: with class weights, means over tokens, labels to be ignored. Its
        gradient is the sum of all totals divided by the sum of all counts, and so is what :meth:`report` makes of it.
        Where all counts are 0, so is the loss. Every rank must call it.

        Parameters
        ----------
        total : tensor of shape ()
            Sum over this rank's rows.
        count : float or tensor of shape ()
            What belongs to it: the sum of the weights, the number of tokens.

        Examples
        --------
        >>> losses = cross_entropy(model(batch.x), batch.y, reduction="none") * weights[batch.y]  # doctest: +SKIP
        >>> loss = context.mean(losses.sum(), weights[batch.y].sum())  # doctest: +SKIP
        """
        if self._virtual is not None:
            raise RuntimeError(
                "context.mean adds up over ranks at once, and with reproducible=True that is done once all virtual "
                "ranks are through. Return the pair instead: context.backward(batch, lambda part: (total, count))."
            )
        counts = count_of(count, total.device) if self._gradients.share else count_of(0, total.device)
        counts = self.sum(counts.clone().reshape(1))[0]
        self._counts.append(counts)
        return scaled(total, counts, self._gradients.share)

    def keep(self, **stateful: Any) -> None:
        """Name objects with a ``state_dict``, such as ``optimizer=optimizer``, that belong to the state of the run.

        They are committed now and then. When the loop is called again, because a worker has died or joined or the run
        is resumed, what it keeps is given the committed state at once.
        """
        for name, thing in stateful.items():
            if self._gradients.modules.get(name, thing) is not thing:
                raise ValueError(f"keep({name}=...) names a module that was prepared; give what you keep another name")
            if name in self._resume:
                # a copy: optimizers go on with the very tensors, and the commit may be needed again
                thing.load_state_dict(to_cpu(self._resume.pop(name)))
            if isinstance(thing, torch.optim.Optimizer):
                self._clock.watch_optimizer(thing)
        self._kept.update(stateful)

    @property
    def kept(self) -> dict[str, Any]:
        """What belongs to the state of the run, by name: ``model``, what was given to ``keep``."""
        return dict(self._kept)

    # -- data -------------------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        """Global batches of the whole training."""
        return self._batches.total_steps

    @property
    def order(self) -> Any:
        """The ``SampleOrder`` of the batches: ``steps_per_epoch``, ``batch_rows(step)``."""
        return self._batches.order

    @property
    def batches(self) -> Iterator[TensorBatch]:
        """This rank's batches, epoch after epoch; every rank gets the same number of them.

        Torch's random state is set anew for every batch from the seed, the step and the rank, so that a step that is
        done again draws the same numbers.
        """
        progress, clock, began = begin_progress(self.run), self._clock, self.step
        for thing in self._kept.values():
            if isinstance(thing, torch.optim.Optimizer):
                self._gradients.check(thing, kept=True)
        self._gradients.load(self._commit.gradients)
        clock.lap("other")
        clock.take()  # what was before the first step is no part of one
        for batch, tensors in on_device(self._batches, self.device, self._batches.order.steps_per_epoch, clock):
            if spmd.stopping():
                raise RuntimeError(f"stopped at step {batch.step}: another rank of the gang failed, or the client did")
            progress.next(batch.step)
            self._agreement.ask(batch.step)
            seed_torch(self._seed(batch.step, self.rank), self.device)
            self._gradients.begin_step(batch.step, batch.n_rows / batch.n_global)
            self.step = batch.step + 1
            yield tensors
            clock.lap("other")
            self._gradients.end_step() if self._virtual is None else self._virtual.check(batch.step)
            self.report_to.close_step(batch)
            word = self._agreement.answer(batch.step)
            clock.lap("all-reduce")
            due = self._agreement.seconds - self._settled_at > max(COMMIT_SECONDS, self._agreement.cost / COMMIT_SHARE)
            due |= batch.step == began or self.step & (self.step - 1) == 0  # what goes wrong does so at the beginning
            if due or len(self.report_to) >= self._settle_steps or word is not None:
                self._settle(batch.epoch + 1, hurry=word is not None)
                clock.lap("commit")
            if word == REGROUP and self.step < self.total_steps:
                raise Regrouping
            if word == STOP:
                self.stopped_by = word
            if self._stopped or word == STOP:
                break
        self._settle(None)
        end_progress(self.run)

    def _seed(self, step: int, part: int) -> int:
        """Seed of torch's random state for one part of one step."""
        return ((self._batches.order.seed * 1_000_003 + step) * 1_000_003 + part) & (1 << 63) - 1

    @property
    def has_validation(self) -> bool:
        """Whether there are validation rows."""
        return self._validation is not None

    @property
    def validation_order(self) -> Any:
        """The ``SampleOrder`` of the validation rows."""
        if self._validation is None:
            raise ValueError("there are no validation rows: fit was called without validation_data")
        return self._validation.order

    @property
    def validation_batches(self) -> Iterator[TensorBatch]:
        """This rank's part of the validation rows, once; ranks may get different numbers of rows, not of batches."""
        if self._validation is None:
            raise ValueError("there are no validation rows: fit was called without validation_data")
        self._validation.next_step = 0
        self._clock.begin("validation")
        try:
            steps = self._validation.order.steps_per_epoch
            for _, tensors in on_device(self._validation, self.device, steps, self._clock):
                yield tensors
        finally:
            self._clock.end()

    def stop(self) -> None:
        """End the batches after this step. Every rank must call it at the same step."""
        self._stopped = True

    # -- talk -------------------------------------------------------------------------------------------------

    def report(self, **values: float | torch.Tensor) -> None:
        """Report values of this step, means over this rank's rows; what is recorded is the mean over all ranks.

        ``loss`` is recorded as ``train_loss``, and a loss that is not finite ends the run with ``LossDiverged``. Every
        rank must report the same names.
        """
        self.report_to.add(values)

    def log(self, **values: float) -> None:
        """Record values that are the same on every rank, such as a validation loss."""
        self.report_to.point(self.step, values)

    def event(self, kind: str, text: str) -> None:
        """Record that something happened, such as an early stop; rank 0's word counts."""
        self.report_to.message("event", event=kind, text=text, step=self.step)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all ranks, in place. Every rank must call it."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    # -- state ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """``state_dict`` of everything kept, copied to the CPU."""
        return {name: to_cpu(thing.state_dict()) for name, thing in self._kept.items()}

    def close(self, failed: bool = False) -> None:
        """Write the last commit to the checkpoints; wait until it is there, unless others wait for this one to fail."""
        self._clock.close()
        self._gradients.close()
        if self._writer is not None:
            commit = self._commit if self._commit.step else None
            self._writer.finish(commit, self.report_to.latest, 0.0 if failed else CLOSE_SECONDS)

    def _said(self, kind: str, text: str, step: int) -> None:
        self.report_to.message("event", event=kind, text=text, step=step)

    def _settle(self, epoch: float | None, hurry: bool = False) -> None:
        """Add up what the ranks reported, and commit; every rank gets here at the same step."""
        n_steps, now, began = len(self.report_to), self._agreement.seconds, time.perf_counter()
        self._settled_at = now
        if n_steps:
            self._note_signals()
            self._note_counts()
        bad = self.report_to.add_up()
        if hurry or epoch is None or bad is not None or now - self._sent_at > SEND_SECONDS:
            self._sent_at = now
            self.report_to.send_all(epoch)
        if bad is not None:
            raise self._diverged(*bad)
        if n_steps:
            self._make_commit()
        self._agreement.spent = time.perf_counter() - began

    def _note_signals(self) -> None:
        """Report the learning rate, and the norm of the gradients if the loop has left them."""
        rates = [t.param_groups[0]["lr"] for t in self._kept.values() if isinstance(t, torch.optim.Optimizer)]
        if rates:
            self.log(learning_rate=float(rates[0]))
        if (norm := self._gradients.norm()) is not None:
            self.log(grad_norm=norm)

    def _note_counts(self) -> None:
        """Say once if losses had nothing to be divided by."""
        counts, self._counts = self._counts, []
        if counts and not self._gave_none and float(torch.stack(counts).min()) == 0:
            self._gave_none = True
            text = "a batch had a count of 0 in its loss, over all ranks, so its loss and gradients are 0: all its "
            self.event("warning", text + "labels are ignored, or all its weights 0")

    def _make_commit(self) -> None:
        """Keep a copy of the state of this step, if the model is finite."""
        if self._replicas.agree(self.step):
            state, gradients = self.state(), to_cpu(self._gradients.state())
            if told_to_stop():  # on a GPU what was sent in the copied buffers may have been cut off
                raise RuntimeError(f"stopped at step {self.step}: another rank of the gang failed or was lost")
            self._commit = Commit(self.step, state, dict(self.report_to.uses), gradients)
            put_commit(self.run, self._commit)
            if self._writer is not None:
                self._writer.offer(self._commit, self.report_to.latest)

    def _diverged(self, step: int, loss: float) -> LossDiverged:
        """Make the error of a loss that is not finite. All ranks know; rank 0 tells."""
        if self.rank != 0:
            dist.barrier(control_group())  # fails when rank 0 has told
        good_step, state = self._commit.step, self._commit.state.get("model", {})
        return LossDiverged(
            f"the training loss became {loss} at step {step}. The last good weights are those after step {good_step}; "
            "they are kept in this error as .state and by an estimator as model_. A lower learning rate, clipped "
            "gradients or a look at the largest feature values usually help.",
            step,
            good_step,
            state,
        )
