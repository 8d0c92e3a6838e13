"""Batches of one rank in one call, for your own training script, with or without a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.utils.data import IterableDataset, get_worker_info

from daskdl.data.batches import READ_THREADS, RankBatches, Transform
from daskdl.data.encoders import TensorEncoder
from daskdl.data.mixing import Mixture, mixture
from daskdl.data.order import SampleOrder
from daskdl.data.reading import Encoded
from daskdl.data.rows import learn, read_rows
from daskdl.data.schema import Missing, Schema
from daskdl.data.schema.target import Target
from daskdl.data.sources.base import Source

Batch = dict[str, torch.Tensor]


class Batches(IterableDataset[Batch]):
    """The batches of one rank as dicts of tensors; its place is a step and what order it is of, so it resumes anywhere.

    Make it with ``daskdl.batches``. It reads ahead in threads by itself: iterate over it as it is, or give it to a
    ``DataLoader(..., batch_size=None)`` without workers.

    Attributes
    ----------
    schema : Schema
    target : Target or None
    order : SampleOrder or Mixture
    rank, world_size : int
    """

    def __init__(self, batches: RankBatches, schema: Schema, target: Target | None, pin_memory: bool) -> None:
        self.schema, self.target, self._batches, self._pin = schema, target, batches, pin_memory
        self.order = batches.order
        self.rank, self.world_size = batches.rank, batches.world_size

    def __iter__(self) -> Iterator[Batch]:
        if get_worker_info() is not None:
            raise RuntimeError(
                "these batches read ahead in threads of their own, and a DataLoader with workers would make every "
                "batch once in each of them. Use DataLoader(batches, batch_size=None, num_workers=0), or no DataLoader."
            )
        for batch in self._batches:
            tensors = {name: torch.from_numpy(array) for name, array in batch.arrays.items()}
            yield {name: tensor.pin_memory() for name, tensor in tensors.items()} if self._pin else tensors

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the same for every rank."""
        return self.order.steps_per_epoch

    def state_dict(self) -> dict[str, int | str]:
        """Return the place: the global step of the next batch, and the seed and order it belongs to."""
        return self._batches.state_dict()

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Go to a place, of any number of ranks; one of another seed, dataset or batch size is refused."""
        self._batches.load_state_dict(state)


def batches(
    data: Source | Sequence[Source],
    y: str | None = None,
    *,
    batch_size: int,
    epochs: int = 1,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    ratios: Sequence[float] | None = None,
    schema: Schema | None = None,
    target: Target | None = None,
    classes: bool = True,
    missing: Missing = "impute",
    batch_transform: Transform | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    threads: int = READ_THREADS,
    pin_memory: bool = False,
) -> Batches:
    """Make the batches of one rank from a source, as a ``torch.utils.data.IterableDataset``. No cluster is needed.

    Under ``torchrun`` rank and world size come from the environment. All ranks together see every row once per epoch,
    and batch ``s`` is the same set of rows for any number of them.

    Parameters
    ----------
    data : Source or list of Source
        Several are mixed by ``ratios``.
    y : str, optional
        Name of the label column.
    batch_size : int
        Rows per global batch, over all ranks together.
    epochs, seed : int
    shuffle, drop_last : bool
        See ``SampleOrder``.
    ratios : sequence of float, optional
        Shares of the sources in every batch.
    schema : Schema, optional
    target : Target, optional
        Without them the rows are read once to learn both, in every rank: learn once and pass them where that matters.
    classes : bool
        Whether the label is a class (or a number to regress on).
    missing : {"impute", "indicator", "refuse"}
    batch_transform : callable, optional
        ``batch_transform(arrays, keys)`` on every batch, in the background; see ``RankBatches``.
    rank, world_size : int, optional
        By default ``RANK`` and ``WORLD_SIZE`` of the environment, or 0 of 1.
    threads : int
        That read and decode.
    pin_memory : bool
        For asynchronous copies to a GPU.

    Returns
    -------
    Batches
        Lazy; nothing is read for the batches before the iteration begins. Each is a dict: ``numbers`` float32 of shape
        (n_rows, n_numbers), ``codes`` int32 if there are categories, other columns under their names, and ``y``.

    Raises
    ------
    DataError
        The data cannot be learned from or read.

    Examples
    --------
    >>> import pandas as pd
    >>> from daskdl.data.sources.memory import MemorySource
    >>> source = MemorySource(pd.DataFrame({"x": range(10), "late": [0, 1] * 5}))
    >>> for batch in batches(source, "late", batch_size=4):
    ...     print(batch["numbers"].shape, batch["y"].dtype)
    torch.Size([4, 1]) torch.int64
    torch.Size([4, 1]) torch.int64
    torch.Size([2, 1]) torch.int64
    """
    sources = [data] if isinstance(data, Source) else list(data) if isinstance(data, (list, tuple)) else []
    if not all(isinstance(source, Source) for source in sources) or not sources:
        raise TypeError(f"data must be a Source, such as daskdl.ParquetSource(path), got {type(data).__name__}")
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    order = _order(sources, ratios, batch_size, seed, shuffle, drop_last)
    if schema is None or (target is None and y is not None):
        schema, target = _learned(sources, y, classes, missing, schema)
    encode = TensorEncoder(schema, target, y)
    rank = int(os.environ.get("RANK", 0)) if rank is None else rank
    world_size = int(os.environ.get("WORLD_SIZE", 1)) if world_size is None else world_size
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
    made = RankBatches(
        order,
        [Encoded(source, encode) for source in sources],
        rank,
        world_size,
        epochs,
        finish=schema.finish,
        transform=batch_transform,
        threads=threads,
    )
    return Batches(made, schema, target, pin_memory)


def _learned(
    sources: list[Source], y: str | None, classes: bool, missing: Missing, schema: Schema | None
) -> tuple[Schema, Target | None]:
    """Learn from the first source; the others must have its columns."""
    rows = read_rows(sources[0], y, classes=classes, client=None)
    if y is None:
        return Schema.from_stats(rows.stats, missing), None
    found, target = learn(rows, y, classes=classes, missing=missing)
    return schema or found, target


def _order(
    sources: list[Source], ratios: Sequence[float] | None, batch_size: int, seed: int, shuffle: bool, drop_last: bool
) -> SampleOrder | Mixture:
    if len(sources) == 1 and ratios is not None:
        raise ValueError(f"ratios={list(ratios)} say how several sources are mixed, and there is one source")
    if len(sources) == 1:
        layout = sources[0].layout(batch_size) if shuffle else {}
        return SampleOrder(sources[0].counts, batch_size, seed, shuffle, drop_last, **layout)
    if not shuffle:
        raise ValueError("several sources are mixed in a shuffled order; shuffle=False has no meaning for them")
    shares = [source.n_rows for source in sources] if ratios is None else ratios
    layouts = [source.layout for source in sources]
    return mixture([source.counts for source in sources], shares, batch_size, seed, layouts=layouts)
