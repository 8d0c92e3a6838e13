"""Rows of 20 to 400 token numbers from Parquet to batches of 256, padded to the longest. Rows per second.

Every contestant goes over all 200,000 rows twice and the second pass is timed. Daskdl's order is the exact sample
order. The reference is a DataLoader with two worker processes that shuffle inside a row group, and a collate function
that pads. ``pyarrow`` is a plain scan that pads and does not shuffle. See ``loading.contest`` for the other figures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from harness import DATA, child_or_measure, measure
from loading import contest, labels_of

ROWS, FILES, SHORTEST, LONGEST, BATCH = 200_000, 8, 20, 400, 256


@cache
def folder() -> Path:
    """Parquet folder of token lists, ``tokens``, and a label ``y``, written once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = DATA / f"tokens-{ROWS}"
    if root.exists():
        return root
    part = root.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(FILES):
        lengths = rng.integers(SHORTEST, LONGEST, ROWS // FILES, endpoint=True)
        values = pa.array((rng.zipf(1.3, lengths.sum()) % 32_767 + 1).astype(np.int32))
        tokens = pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), values)
        table = pa.table({"tokens": tokens, "y": rng.integers(0, 2, len(lengths))})
        pq.write_table(table, part / f"part-{i}.parquet", row_group_size=len(table) // 4)
    part.rename(root)
    return root


def daskdl_() -> None:
    """Read in the exact sample order; lists are padded once per batch."""
    from daskdl.data.loader import batches as batches_of
    from daskdl.data.schema import Schema
    from daskdl.data.schema.target import Target
    from daskdl.data.sources.parquet import ParquetSource

    source = ParquetSource(str(folder()))
    schema, target = Schema.learn(source.head(1_000)[["tokens"]]), Target(np.arange(2))

    def prepare() -> Any:
        # three epochs: the timed one begins with what was read ahead, and reads ahead for the next
        made = batches_of(source, "y", batch_size=BATCH, epochs=3, schema=schema, target=target)
        batches = iter(made)
        return lambda: (
            checked(batch["tokens"], batch["tokens_length"], batch["y"])
            for batch in islice(batches, made.steps_per_epoch)
        )

    contest(prepare, lambda: labels_of(folder()))


def checked(tokens: Any, lengths: Any, y: Any) -> Any:
    """Labels of a batch, after a look at its tokens."""
    assert tuple(tokens.shape) == (len(y), int(lengths.max())) and int(tokens[-1, lengths[-1] - 1]) > 0
    return y


def torch_dataloader() -> None:
    """Shuffle inside row groups in two worker processes, and pad in their collate function."""
    import pyarrow.parquet as pq
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    class Rows(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            worker = get_worker_info()
            for path in sorted(folder().glob("*.parquet"))[worker.id :: worker.num_workers]:
                file = pq.ParquetFile(path)
                for g in range(file.num_row_groups):
                    rows = file.read_row_group(g)
                    tokens, y = rows["tokens"].to_numpy(), rows["y"].to_numpy()
                    for i in np.random.default_rng().permutation(len(y)):
                        yield tokens[i], y[i]

    def collate(rows: list[Any]) -> Any:
        tokens = [torch.from_numpy(each.copy()) for each, _ in rows]
        lengths = torch.tensor([len(each) for each in tokens])
        return pad_sequence(tokens, batch_first=True), lengths, torch.tensor(np.array([y for _, y in rows]))

    def prepare() -> Any:
        loader = DataLoader(Rows(), batch_size=BATCH, num_workers=2, collate_fn=collate, persistent_workers=True)
        return lambda: (checked(*batch) for batch in loader)

    contest(prepare, lambda: labels_of(folder()), family=True)


def pyarrow_() -> None:
    """Scan and pad, in the order of the files."""
    import pyarrow.dataset as ds
    import torch

    def begin() -> Iterator[Any]:
        for rows in ds.dataset(folder()).to_batches(batch_size=BATCH):
            values = rows["tokens"].flatten().to_numpy()
            lengths = rows["tokens"].value_lengths().to_numpy()
            tokens = np.zeros((len(rows), lengths.max()), dtype=np.int32)
            tokens[np.arange(lengths.max()) < lengths[:, None]] = values
            y = torch.from_numpy(rows["y"].to_numpy().copy())
            yield checked(torch.from_numpy(tokens), torch.from_numpy(lengths.copy()), y)

    contest(lambda: begin, lambda: labels_of(folder()))


CHILDREN = {"daskdl": daskdl_, "torch_dataloader": torch_dataloader, "pyarrow": pyarrow_}

if __name__ == "__main__":
    options = child_or_measure(__file__, CHILDREN)
    if options is not None:
        folder()
        measure(
            "loader_text",
            "rows/s",
            {who: [sys.executable, __file__, "--child", who] for who in CHILDREN},
            reference="torch_dataloader",
            better="higher",
            runs=options.runs,
            doc="rows per second of 20 to 400 tokens, in padded batches of 256",
        )
