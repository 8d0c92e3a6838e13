"""From Parquet to shuffled batches of 4,096: 4 M x 20 float32 and a label. Rows per second, higher is better.

Every contestant goes over all rows twice and the second pass is timed: files are in the page cache and threads and
processes have started. Daskdl's is the exact sample order, with standardised numbers. The reference is as little as one
can do with pyarrow: one row group at a time becomes a matrix and is shuffled in itself. The ones with ``memory`` in
their name hold all rows in memory. ``mib`` is peak memory above that after imports, ``cpu_s`` processor time of the
timed pass, ``first_batch_s`` the wait for the first batch of the first pass.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from harness import FEATURES, PEERS, answer, child_or_measure, measure, table
from loading import contest, labels_of

BATCH = 4_096
SHUFFLE_BUFFER = 200_000  # rows, of the peers that shuffle in a buffer


@cache
def folder() -> Path:
    """Folder of the rows asked for on the command line."""
    return table(int(sys.argv[sys.argv.index("--rows") + 1]))


def files() -> list[str]:
    return sorted(map(str, folder().glob("*.parquet")))


# -- daskdl -------------------------------------------------------------------------------------------------------


def daskdl_() -> None:
    """Read in the exact sample order, straight from the files."""
    from daskdl.data.loader import batches as batches_of
    from daskdl.data.sources.parquet import ParquetSource

    source, (schema, target) = ParquetSource(str(folder())), learned()

    def prepare() -> Any:
        # three epochs: the timed one begins with what was read ahead, and reads ahead for the next
        made = batches_of(source, "y", batch_size=BATCH, epochs=3, schema=schema, target=target)
        batches = iter(made)
        return lambda: (batch["y"] for batch in islice(batches, made.steps_per_epoch))

    contest(prepare, lambda: labels_of(folder()))


def daskdl_memory() -> None:
    """Read in the exact sample order, from blocks in memory."""
    from daskdl.data.batches import RankBatches
    from daskdl.data.encoders import TensorEncoder, encode_piece
    from daskdl.data.order import SampleOrder
    from daskdl.data.reading import Blocks
    from daskdl.data.sources.parquet import ParquetSource

    source, (schema, target) = ParquetSource(str(folder())), learned()
    encoder = TensorEncoder(schema, target, "y")

    def prepare() -> Any:
        blocks = {g: encode_piece((source, g), encoder, 0) for g in range(len(source.counts))}
        order = SampleOrder(source.counts, BATCH)
        batches = iter(RankBatches(order, Blocks(blocks), rank=0, world_size=1, epochs=3))
        return lambda: (batch.arrays["y"] for batch in islice(batches, order.steps_per_epoch))

    contest(prepare, lambda: labels_of(folder()))


def learned() -> tuple[Any, Any]:
    """Schema and target, from the first row group: this is not what is measured."""
    import numpy as np
    import pyarrow.parquet as pq

    from daskdl.data.schema import Schema
    from daskdl.data.schema.target import Target

    rows = pq.ParquetFile(files()[0]).read_row_group(0)
    return Schema.learn(rows.select(FEATURES)), Target(np.unique(rows["y"].to_numpy()))


# -- what one writes by hand --------------------------------------------------------------------------------------


def row_groups(mine: list[str]) -> Iterator[tuple[Any, Any]]:
    """Batches of row groups, each shuffled in itself, as tensors."""
    import numpy as np
    import pyarrow.parquet as pq
    import torch

    rng = np.random.default_rng()
    for path in mine:
        file = pq.ParquetFile(path)
        for g in range(file.num_row_groups):
            rows = file.read_row_group(g)
            order = rng.permutation(len(rows))
            x = torch.from_numpy(np.column_stack([rows[name].to_numpy() for name in FEATURES]))[order]
            y = torch.from_numpy(rows["y"].to_numpy()[order])
            for first in range(0, len(y), BATCH):
                yield x[first : first + BATCH], y[first : first + BATCH]


def pyarrow_() -> None:
    """Shuffle inside row groups only, in one thread beside those that pyarrow decodes with."""
    import pyarrow.parquet  # noqa: F401
    import torch  # noqa: F401

    contest(lambda: lambda: (y for _, y in row_groups(files())), lambda: labels_of(folder()))


def torch_dataloader() -> None:
    """Do the same in the two worker processes of a DataLoader, half of the files each."""
    import pyarrow.parquet  # noqa: F401
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    class RowGroups(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[Any]:
            worker = get_worker_info()
            return row_groups(files()[worker.id :: worker.num_workers])

    def prepare() -> Any:
        loader = DataLoader(RowGroups(), batch_size=None, num_workers=2, persistent_workers=True)
        return lambda: (y for _, y in loader)

    contest(prepare, lambda: labels_of(folder()), family=True)


def numpy_memory() -> None:
    """Take rows by a permutation of all of them, in memory."""
    import numpy as np
    import pyarrow.parquet as pq

    def prepare() -> Any:
        rows = pq.read_table(folder())
        x, y = np.column_stack([rows[name].to_numpy() for name in FEATURES]), rows["y"].to_numpy()
        return partial(shuffled, x, y)

    contest(prepare, lambda: labels_of(folder()))


def shuffled(x: Any, y: Any) -> Iterator[Any]:
    """Labels of batches of rows, taken from the whole."""
    import numpy as np

    order = np.random.default_rng().permutation(len(y))
    for first in range(0, len(y), BATCH):
        index = order[first : first + BATCH]
        x.take(index, axis=0)
        yield y.take(index)


# -- peers --------------------------------------------------------------------------------------------------------


def ray_data() -> None:
    """Use Ray Data with a local shuffle buffer."""
    import logging

    import ray

    ray.init(num_cpus=2, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    data = ray.data.read_parquet(str(folder()))

    def begin() -> Iterator[Any]:
        batches = data.iter_torch_batches(
            batch_size=BATCH, prefetch_batches=2, local_shuffle_buffer_size=SHUFFLE_BUFFER
        )
        return (batch["y"] for batch in batches)

    contest(lambda: begin, lambda: labels_of(folder()), family=True)


def petastorm() -> None:
    """Use Petastorm's batched reader with two threads and its shuffling queue."""
    try:
        from petastorm import make_batch_reader
        from petastorm.pytorch import BatchedDataLoader
    except (ImportError, AttributeError):  # or not for this version of pyarrow
        return answer()

    def begin() -> Iterator[Any]:
        with make_batch_reader(folder().as_uri(), num_epochs=1, workers_count=2, reader_pool_type="thread") as reader:
            loader = BatchedDataLoader(reader, batch_size=BATCH, shuffling_queue_capacity=SHUFFLE_BUFFER)
            yield from (batch["y"] for batch in loader)

    contest(lambda: begin, lambda: labels_of(folder()))


CHILDREN = {
    "daskdl": daskdl_,
    "pyarrow": pyarrow_,
    "daskdl_memory": daskdl_memory,
    "numpy_memory": numpy_memory,
    "torch_dataloader": torch_dataloader,
    "ray_data": ray_data,
    "petastorm": petastorm,
}

if __name__ == "__main__":
    options = child_or_measure(__file__, CHILDREN)
    if options is not None:
        table(options.rows)
        only = sys.argv[sys.argv.index("--only") + 1].split(",") if "--only" in sys.argv else list(CHILDREN)
        python = {who: str(PEERS) if who in ("ray_data", "petastorm") else sys.executable for who in CHILDREN}
        measure(
            "loader",
            "rows/s",
            {
                who: [python[who], __file__, "--rows", str(options.rows), "--child", who]
                for who in CHILDREN
                if who in only
            },
            reference="pyarrow",
            better="higher",
            runs=options.runs,
            doc="rows per second from Parquet to shuffled batches of 4,096",
        )
