"""A boosting that is ready to launch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from daskdl.data.encoders import TableEncoder
from daskdl.data.pieces import Pieces
from daskdl.data.rows import Rows
from daskdl.data.schema import Schema
from daskdl.data.schema.target import Target
from daskdl.errors import DataError
from daskdl.execution import spmd
from daskdl.preflight.facts import facts_of_rows
from daskdl.training.boost_matrix import BoostConfig
from daskdl.training.commit import Commit, forget_commit
from daskdl.training.gangs import Gangs
from daskdl.training.job import NumWorkers, ranks_for, rules_of
from daskdl.training.resuming import checkpoints_of

if TYPE_CHECKING:
    from distributed import Client

    from daskdl.run import Run


def ranks_wanted(num_workers: NumWorkers, alone: str | None) -> NumWorkers:
    """How many ranks to ask for, where XGBoost does something on one rank only.

    Raises
    ------
    ValueError
        More were asked for.
    """
    if alone is None:
        return num_workers
    if spmd.span_of(num_workers)[0] > 1:
        raise ValueError(
            f"num_workers={num_workers}, and {alone}: XGBoost does it on one rank only. Use num_workers=1."
        )
    return 1


class BoostJob:
    """Rows on their way to the ranks, nothing running yet.

    Parameters
    ----------
    config : BoostConfig
    schema, target
        How rows are encoded.
    parts : sequence of Rows
        To train on, then each set to validate on.
    client : distributed.Client or None
    num_workers : int, (int, int) or None
    checkpoints : Checkpoints or str, optional
    seed : int
    alone : str or None
        Why there is one rank only.
    """

    def __init__(
        self,
        config: BoostConfig,
        schema: Schema,
        target: Target,
        parts: Sequence[Rows],
        client: Client | None,
        num_workers: NumWorkers,
        checkpoints: Any,
        seed: int,
        alone: str | None = None,
    ) -> None:
        rows = parts[0]
        self.client, self.seed, self.n_rows, self.config = client, seed, rows.n_rows, config
        self.notes = (*rows.notes, *([f"one rank: {alone}"] if alone else []))
        self.total_steps, self.num_workers = config.rounds, ranks_wanted(num_workers, alone)
        self.checkpoints = rules_of(checkpoints)
        self.most = 1 if alone else max(1, sum(n > 0 for n in rows.counts))
        workers = ranks_for(client, self.num_workers)
        if (fewest := spmd.span_of(self.num_workers)[0]) > self.most:
            raise DataError(
                f"num_workers={num_workers} ranks need a partition with rows each, and the data has {self.most}. "
                f"Repartition it: df.repartition(npartitions={2 * fewest})."
            )
        self.workers = workers[: self.most]
        self.facts = facts_of_rows(rows, self.workers)
        self._digests = rows.source.fingerprint if rows.source is not None else [look.digest for look in rows.looks]
        encode = [TableEncoder(schema, target, part.label_name, part.extras) for part in parts]
        self._pieces = [Pieces(part, encoder, self.workers) for part, encoder in zip(parts, encode, strict=True)]

    @property
    def world_size(self) -> int:
        """Number of ranks at the beginning."""
        return max(1, len(self.workers))

    @property
    def fingerprint(self) -> str:
        """Of the rows."""
        return hashlib.sha256(repr(self._digests).encode()).hexdigest()

    def run(self, run: Run, commit: Commit | None = None) -> dict[str, Any]:
        """Boost on all ranks, from a commit if one is given; return what rank 0 does."""
        from daskdl.training.boost import boost_rank

        folder, rules = checkpoints_of(run, self.checkpoints, self.workers)
        generation = 0
        for pieces in self._pieces:
            pieces.say = partial(run.event, "waiting")
        try:
            if self.client is None:
                answer = boost_rank(self.config, run.id, rules, run.receive, 0, commit, *self._readers([])[0])
            else:
                gangs = Gangs(self.client, run, self.workers, self.num_workers, self.most, folder)
                answer = gangs(boost_rank, (self.config, run.id, rules, None), self._readers, commit)
                generation = gangs.generation
        finally:
            forget_commit(run.id)  # of a rank in this process
            for pieces in self._pieces:
                pieces.close()
        run.wait_for_messages(answer.n_messages, generation)
        found: dict[str, Any] = answer.value
        return found

    def _readers(self, workers: list[str]) -> list[tuple[Any, ...]]:
        return list(zip(*(pieces.readers(workers) for pieces in self._pieces), strict=True))
