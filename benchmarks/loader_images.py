"""JPEG files of 224 x 224 to batches of 64 in uint8: 2,000 images in a folder and in Parquet. Images per second.

Every contestant goes over all images twice, shuffled, and the second pass is timed. The reference is a DataLoader with
two worker processes that decode with Pillow, as daskdl does. See ``loading.contest`` for the other figures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from harness import DATA, PEERS, answer, child_or_measure, measure
from loading import contest

IMAGES, CLASSES, SIDE, BATCH = 2_000, 10, 224, 64
SHAPE = (3, SIDE, SIDE)
EXPECTED = (IMAGES, sum(i % CLASSES for i in range(IMAGES)))


@cache
def images() -> Path:
    """Folder of the images, written once: ``folder/<class>/<i>.jpg``, and the same bytes in ``parquet``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from daskdl.data.schema.codecs import encode_images

    root = DATA / f"images-{IMAGES}"
    if root.exists():
        return root
    part = root.with_suffix(".part")
    (part / "parquet").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for first in range(0, IMAGES, IMAGES // 4):
        labels = np.arange(first, first + IMAGES // 4) % CLASSES
        column = encode_images([photograph(rng) for _ in labels], "jpeg")
        table = pa.table({"image": column, "y": labels})
        pq.write_table(table, part / "parquet" / f"part-{first:04d}.parquet", row_group_size=250, compression="none")
        for i, (label, data) in enumerate(zip(labels, column.to_pylist(), strict=True), start=first):
            (part / "folder" / str(label)).mkdir(parents=True, exist_ok=True)
            (part / "folder" / str(label) / f"{i}.jpg").write_bytes(data)
    part.rename(root)
    return root


def photograph(rng: np.random.Generator) -> Any:
    """Smooth fields of two sizes and some noise: as large a JPEG file as a photograph, 15 to 40 KB."""
    from PIL import Image

    found = rng.normal(0, rng.uniform(4, 12), (SIDE, SIDE, 1)).repeat(3, axis=2)
    for cells, strength in ((5, 60), (28, 20)):
        small = np.clip(128 + strength * rng.normal(size=(cells, cells, 3)), 0, 255).astype(np.uint8)
        found += np.asarray(Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=float) - 128
    return np.clip(found + 128, 0, 255).astype(np.uint8)


def checked(batches: Iterator[Any], image: Any, label: Any) -> Iterator[Any]:
    """Labels of batches, after a look at their pixels."""
    for batch in batches:
        pixels, labels = batch[image], batch[label]
        assert tuple(pixels.shape) == (len(labels), *SHAPE) and str(pixels.dtype).endswith("uint8")
        yield labels


# -- daskdl -------------------------------------------------------------------------------------------------------


def daskdl_parquet() -> None:
    """Read the bytes from Parquet."""
    from daskdl.data.sources.parquet import ParquetSource

    _daskdl(ParquetSource(str(images() / "parquet")), "y", np.arange(CLASSES))


def daskdl_folder() -> None:
    """Read the files of the folder."""
    from daskdl.data.sources.images import ImageFolderSource

    _daskdl(ImageFolderSource(str(images() / "folder")), "label", np.array([str(i) for i in range(CLASSES)]))


def _daskdl(source: Any, label: str, classes: Any) -> None:
    from daskdl.data.loader import batches as batches_of
    from daskdl.data.schema import Schema
    from daskdl.data.schema.target import Target

    schema = Schema.learn(source.head(1)[["image"]])

    def prepare() -> Any:
        # three epochs: the timed one begins with what was read ahead, and reads ahead for the next
        made = batches_of(source, label, batch_size=BATCH, epochs=3, schema=schema, target=Target(classes))
        batches = iter(made)
        return lambda: checked(islice(batches, made.steps_per_epoch), "image", "y")

    contest(prepare, lambda: EXPECTED)


# -- others -------------------------------------------------------------------------------------------------------


def torch_dataloader() -> None:
    """Decode with Pillow in two worker processes."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    files = sorted((images() / "folder").glob("*/*.jpg"))

    class Files(Dataset[Any]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, i: int) -> Any:
            with Image.open(files[i]) as image:
                pixels = np.asarray(image.convert("RGB"))
            return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), int(files[i].parent.name)

    def prepare() -> Any:
        loader = DataLoader(Files(), batch_size=BATCH, shuffle=True, num_workers=2, persistent_workers=True)
        return lambda: checked(iter(loader), 0, 1)

    contest(prepare, lambda: EXPECTED, family=True)


def mosaicml_streaming() -> None:
    """Use MosaicML Streaming: its own format on the local disk, read by a DataLoader with two workers."""
    try:
        from streaming import MDSWriter, StreamingDataset
    except (ImportError, RuntimeError):  # or not for these versions of torch and torchvision
        return answer()
    import torch
    from torch.utils.data import DataLoader

    folder = DATA / f"images-{IMAGES}" / "streaming"
    if not folder.exists():
        with MDSWriter(out=str(folder), columns={"image": "jpeg", "y": "int"}) as writer:
            for file in sorted(folder.parent.glob("folder/*/*.jpg")):
                writer.write({"image": _opened(file), "y": int(file.parent.name)})

    class Decoded(StreamingDataset):
        def __getitem__(self, i: int) -> Any:
            row = super().__getitem__(i)
            return torch.from_numpy(np.asarray(row["image"]).transpose(2, 0, 1).copy()), row["y"]

    def prepare() -> Any:
        data = Decoded(local=str(folder), shuffle=True, batch_size=BATCH)
        loader = DataLoader(data, batch_size=BATCH, num_workers=2, persistent_workers=True)
        return lambda: checked(iter(loader), 0, 1)

    contest(prepare, lambda: EXPECTED, family=True)


def _opened(file: Path) -> Any:
    """A JPEG file as its writer wants it, which then copies the bytes."""
    from PIL import Image

    return Image.open(file)


CHILDREN = {
    "daskdl_parquet": daskdl_parquet,
    "daskdl_folder": daskdl_folder,
    "torch_dataloader": torch_dataloader,
    "mosaicml_streaming": mosaicml_streaming,
}

if __name__ == "__main__":
    options = child_or_measure(__file__, CHILDREN)
    if options is not None:
        images()
        python = {who: str(PEERS) if who == "mosaicml_streaming" else sys.executable for who in CHILDREN}
        measure(
            "loader_images",
            "images/s",
            {who: [python[who], __file__, "--child", who] for who in CHILDREN},
            reference="torch_dataloader",
            better="higher",
            runs=options.runs,
            doc="JPEG images per second, 224 x 224, in batches of 64",
            ours="daskdl_parquet",
        )
