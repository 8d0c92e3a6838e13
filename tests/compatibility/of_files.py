"""Images, texts, lists, datasets of PyTorch, and columns of many categories."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client
from pictures import expected, picture, written
from PIL import Image

import daskdl
from daskdl.data.rows import learn, read_rows
from daskdl.data.schema import Schema
from daskdl.data.sources.base import Source
from daskdl.errors import DataError

from .case import Case

IMAGES, TEXTS, LISTS = "Images", "Lines of text", "Lists and arrays"
DATASETS, MANY = "Datasets of PyTorch", "Large categories"

Check = Callable[[Client], None]


def _folder(*files: tuple[str, bytes]) -> str:
    root = Path(tempfile.mkdtemp())
    for name, data in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


def _tensors(source: Source, **kinds: Any) -> dict[str, Any]:
    schema = Schema.from_stats(read_rows(source, None, classes=True, client=None, kinds=kinds).stats, kinds=kinds)
    return schema.finish(schema.encode(source.head(100)))


def _pixels(*kinds: tuple[str, str]) -> Check:
    def check(client: Client) -> None:
        for mode, format in kinds:
            data = written(picture(mode), format)
            source = daskdl.ImageFolderSource(_folder((f"a/1.{format.lower()}", data), (f"b/2.{format.lower()}", data)))
            assert np.array_equal(_tensors(source)["image"], [expected(data)] * 2)

    return check


def _features(client: Client) -> None:
    png = written(picture("RGB"), "PNG")
    source = daskdl.ImageFolderSource(_folder(*((f"{'ab'[i % 2]}/{i}.png", png) for i in range(4))))
    rows = read_rows(source, "label", classes=True, client=None)
    assert learn(rows, "label", classes=True, missing="impute")[0].names == ["image"]
    assert source.to_dask()["file"].compute().tolist()[:2] == ["a/0.png", "a/2.png"]


def _without_labels(client: Client) -> None:
    source = daskdl.ImageFolderSource(_folder(("1.png", written(picture("L"), "PNG"))))
    assert source.names == ["image", "file"]


def _refused(make: Callable[[], Any], message: str) -> Check:
    def check(client: Client) -> None:
        with pytest.raises((DataError, ValueError), match=message):
            make()

    return check


def _one_broken(data: bytes) -> Callable[[], Any]:
    def make() -> Any:
        png = written(picture("RGB"), "PNG")
        files = [(f"{'ab'[i % 2]}/{i}.png", png) for i in range(6)]
        return _tensors(daskdl.ImageFolderSource(_folder(*files, ("b/bad.png", data))))

    return make


def _broken(client: Client) -> None:
    for data in (b"", b"no image", written(picture("L"), "PNG")[:50]):
        _refused(_one_broken(data), BROKEN)(client)


def _left_out(client: Client) -> None:
    png = written(picture("RGB"), "PNG")
    source = daskdl.ImageFolderSource(_folder(("a/1.png", png), ("b/2.png", png), ("c/3.heic", b"")))
    assert "c/3.heic" in source.notes[0]


def _lines(data: bytes, lines: list[str], name: str = "lines.txt") -> Check:
    def check(client: Client) -> None:
        assert daskdl.TextSource(f"{_folder((name, data))}/{name}").head(99).text.tolist() == lines

    return check


def _column(values: list[Any], rows: list[Any]) -> Check:
    def check(client: Client) -> None:
        frame = pd.DataFrame({"c": pd.Series(values)})
        lazy = daskdl.MemorySource(frame).to_dask().compute(scheduler="sync")
        for one in (frame, lazy):
            schema = Schema.learn(one)
            assert schema.finish(schema.encode(one))["c"].tolist() == rows

    return check


class Rows:
    """A map-style dataset of what a function makes of each index."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return self.make(i)


class OpensLater:
    """A dataset that opens its file when the first row is read."""

    def __init__(self, path: str) -> None:
        self.path, self.file = path, None

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> Any:
        self.file = self.file or open(self.path, "rb")  # type: ignore[assignment]  # noqa: SIM115
        self.file.seek(i)  # type: ignore[attr-defined]
        x = self.file.read(1)[0]  # type: ignore[attr-defined]
        return {"x": x, "y": x % 2}


def _opens_later(client: Client) -> None:
    source = daskdl.DatasetSource(OpensLater(f"{_folder(('x', bytes(range(40))))}/x"))
    assert source.head(3).x.tolist() == [0, 1, 2]
    model = daskdl.XGBClassifier(n_estimators=3, verbose=0).fit(source, "y")
    assert model.predict(source).compute().shape == (40,)


def _is_open() -> Any:
    dataset = OpensLater(f"{_folder(('x', bytes(40)))}/x")
    dataset[0]
    return daskdl.DatasetSource(dataset)


def _of_dataset(make: Callable[[int], Any], **columns: Any) -> Check:
    def check(client: Client) -> None:
        found = daskdl.DatasetSource(Rows(make)).head(4)
        for name, values in columns.items():
            assert found[name].tolist() == values

    return check


def _pillow(client: Client) -> None:
    source = daskdl.DatasetSource(Rows(lambda i: picture("P", i)), names=["photo"])
    data = [written(picture("P", i).convert("RGB"), "PNG") for i in range(4)]
    assert np.array_equal(_tensors(source)["photo"], [expected(each) for each in data])


def _bfloat16(i: int) -> Any:
    import torch

    return torch.full((2,), i, dtype=torch.bfloat16), i


def _many(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    code = rng.integers(0, n, 3 * n)
    return pd.DataFrame({"id": [f"id{i}" for i in code], "n": code, "y": (code % 2).astype(int)})


def _learns_many(column: str, kinds: dict[str, Any] | None, trees: bool = False) -> Check:
    def check(client: Client) -> None:
        frame = dd.from_pandas(_many(12_000), npartitions=2)
        if trees:
            model: Any = daskdl.XGBClassifier(n_estimators=3, verbose=0)
        else:
            model = daskdl.TorchClassifier(epochs=2, batch_size=512, learning_rate=0.02, kinds=kinds, verbose=0)
        model.fit(frame[[column]], frame.y)
        assert model.schema_[column].buckets >= 256
        assert model.score(frame[[column]], frame.y) > (0.5 if trees else 0.8)
        model.predict(pd.DataFrame({column: _many(12_000)[column][:2]}))

    return check


def _as_said(client: Client) -> None:
    schema = Schema.learn(_many(1_000)[["id"]], kinds={"id": daskdl.Category(top=100, buckets=512)})
    assert schema.cardinalities == [613]


def _said(client: Client) -> None:
    report = daskdl.check(_many(12_000)[["id"]], _many(12_000).y, client=client)
    assert report.ok and "different values" in str(report)


def _identifier(client: Client) -> None:
    frame = pd.DataFrame({"id": [f"id{i}" for i in range(20_000)], "y": [0, 1] * 10_000})
    assert "identifier" in daskdl.check(frame[["id"]], frame.y, client=client).table["check"].tolist()


GREY = [("1", "PNG"), ("L", "JPEG"), ("LA", "PNG")]
COLOUR = [("P", "GIF"), ("RGB", "WEBP"), ("RGB", "BMP"), ("RGBA", "PNG"), ("CMYK", "TIFF")]
BROKEN = r"image b/bad\.png of "

CASES = [
    Case(IMAGES, "folders of images, named by class", "one feature, `image`; `file` says where it is", _features),
    Case(IMAGES, "a folder of images without folders in it", "has no `label`, and can be predicted", _without_labels),
    Case(IMAGES, "grey PNG, JPEG, TIFF, BMP, GIF, PPM, with alpha or without", "uint8 `(1, h, w)`", _pixels(*GREY)),
    Case(IMAGES, "colour, palette, CMYK, WebP, alpha", "uint8 `(3, h, w)`, as Pillow's `convert`", _pixels(*COLOUR)),
    Case(IMAGES, "16 bits", "the higher eight of them", _pixels(("I;16", "PNG"), ("I;16", "TIFF"), ("I;16", "PPM"))),
    Case(
        IMAGES,
        "32-bit integers or floats (TIFF)",
        "refused with its path: scale it, or give it as an array",
        _refused(_one_broken(written(Image.fromarray(np.zeros((5, 7), np.float32)), "TIFF")), BROKEN),
    ),
    Case(
        IMAGES,
        "one empty, cut off or other file among many",
        "refused with its path, before launch",
        _broken,
    ),
    Case(IMAGES, "formats that are not read (HEIC, AVIF, raw)", "left out, and a note of the run says so", _left_out),
    Case(
        TEXTS,
        "UTF-8 with a mark at its beginning, `\\r\\n`, empty lines",
        "a row a line, without these marks",
        _lines(b"\xef\xbb\xbfa\r\n\r\n\xc3\xa9", ["a", "", "é"]),
    ),
    Case(
        TEXTS,
        "gzip, several members",
        "unpacked",
        _lines(gzip.compress(b"a\n") + gzip.compress(b"b"), ["a", "b"], "x.gz"),
    ),
    Case(TEXTS, "NUL in a line", "is kept", _lines(b"a\0b\nc\n", ["a\0b", "c"])),
    Case(
        TEXTS,
        "Latin-1",
        "refused with file and lines: write it in UTF-8",
        _refused(lambda: daskdl.TextSource(_folder(("x.txt", b"ok\n\xe9t\xe9\n"))).head(), "x.txt, lines .*UTF-8"),
    ),
    Case(
        LISTS, "lists of numbers, any length", "padded with zeros", _column([[1], [2, 3], []], [[1, 0], [2, 3], [0, 0]])
    ),
    Case(LISTS, "lists with missing numbers", "zero there", _column([[1.0, None], [2.0]], [[1.0, 0.0], [2.0, 0.0]])),
    Case(LISTS, "lists of booleans", "0 and 1", _column([[True], [False, True]], [[1, 0], [0, 1]])),
    Case(
        LISTS,
        "arrays of one shape",
        "a tensor",
        _column([np.eye(2), np.ones((2, 2))], [np.eye(2).tolist(), [[1, 1]] * 2]),
    ),
    Case(
        LISTS,
        "arrays whose shapes differ along two axes",
        "refused with the row",
        _refused(lambda: _tensors(daskdl.MemorySource(pd.DataFrame({"c": [np.eye(2), np.eye(3)]}))), "row 1 of rows 0"),
    ),
    Case(
        LISTS,
        "lists of strings",
        "refused: as text, or as numbers",
        _refused(
            lambda: _tensors(daskdl.MemorySource(pd.DataFrame({"c": [["a"], ["b"]]}))), "row 0 of .*no lists of numbers"
        ),
    ),
    Case(
        DATASETS,
        "tuples, dicts in any order of keys, scalars, strings",
        "columns of their names",
        _of_dataset(
            lambda i: {"x": i, "s": str(i)} if i % 2 else {"s": str(i), "x": i}, x=[0, 1, 2, 3], s=["0", "1", "2", "3"]
        ),
    ),
    Case(DATASETS, "tensors of any type, also bfloat16", "arrays", _of_dataset(_bfloat16, y=[0, 1, 2, 3])),
    Case(DATASETS, "PIL images of any mode", "images, as from files; `Image(224, 224)` resizes them", _pillow),
    Case(DATASETS, "a dataset that opens its file at the first read", "is sent as it was before", _opens_later),
    Case(
        DATASETS,
        "a dataset with an open file",
        "refused with the attribute: give it before it reads",
        _refused(_is_open, "its attribute file is a BufferedReader"),
    ),
    Case(
        DATASETS,
        "a row that fails",
        "refused with its index",
        _refused(
            lambda: _tensors(daskdl.DatasetSource(Rows(lambda i: 1 // (2 - i)))), "row 2 of Rows cannot be read: Zero"
        ),
    ),
    Case(
        MANY,
        "a text column of more than 10,000 values, a network",
        "10,000 codes, and buckets for the others",
        _learns_many("id", None),
    ),
    Case(MANY, "whole numbers as categories, more than 10,000", "the same", _learns_many("n", {"n": "category"})),
    Case(
        MANY,
        '`kinds={"id": Category(top=100, buckets=512)}`',
        "as many codes as it says",
        _as_said,
    ),
    Case(
        MANY,
        "the same column for XGBoost",
        "a categorical feature with these codes",
        _learns_many("id", None, trees=True),
    ),
    Case(MANY, "any of these in `check`", "a note says how many share a code", _said),
    Case(
        MANY,
        "a text column that differs in nearly every row",
        "a warning of `check` and `fit`: an identifier",
        _identifier,
    ),
]
