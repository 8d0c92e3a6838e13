"""Pictures, lists, texts and datasets are what Pillow and pandas make of them, whatever they are read through."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import Client
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pictures import KINDS, expected, picture, written
from PIL import Image

import daskdl
from daskdl.data.rows import learn, read_rows
from daskdl.data.schema import Schema
from daskdl.data.sources.base import Source
from daskdl.data.sources.parquet import ParquetSource
from daskdl.data.staging.place import Place
from daskdl.data.staging.stage import write_part
from daskdl.errors import DataError

NAMES = ["a", "Ä b", "[x] #1", "deep/er", "%41", "c=1"]


def finished(source: Source, **kinds: Any) -> dict[str, np.ndarray]:
    """All rows of a source as tensors."""
    schema = Schema.from_stats(read_rows(source, None, classes=True, client=None, kinds=kinds).stats, kinds=kinds)
    blocks = [schema.encode(c) for g, n in enumerate(source.counts) for c in source.read(g, 0, int(n))]
    parts = [schema.finish(block) for block in blocks]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Opened:
    """A dataset of files that Pillow opens."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Any:
        return Image.open(self.files[i])


def sources_of(files: dict[str, bytes], root: Path) -> dict[str, Source]:
    """The same pictures as files in a folder, as bytes in a frame, and as what a dataset of Pillow's gives."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    frame = pd.DataFrame({"image": list(files.values())})
    return {
        "folder": daskdl.ImageFolderSource(str(root), group_rows=2),
        "frame": daskdl.MemorySource(frame, group_rows=2),
        "dataset": daskdl.DatasetSource(Opened([root / name for name in files]), names=["image"], group_rows=2),
    }


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(NAMES), st.booleans()), min_size=1, max_size=4),
    st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=25)
@example([(("I;16", "PNG"), "a", False)], 0)
def test_a_picture_has_the_pixels_that_pillow_gives_it(made: list[Any], seed: int) -> None:
    files = {}
    for i, ((mode, format), folder, upper) in enumerate(made):
        ending = {"JPEG": "jpg", "TIFF": "tif"}.get(format, format.lower())
        name = f"{folder}/{i}.{ending.upper() if upper else ending}"
        files[name] = written(picture(mode, seed + i), format)
    files = dict(sorted(files.items()))
    pixels = [expected(data) for data in files.values()]
    channels = max(len(each) for each in pixels)
    wanted = np.stack([np.broadcast_to(each, (channels, *each.shape[1:])) for each in pixels])
    with tempfile.TemporaryDirectory() as folder:
        for what, source in sources_of(files, Path(folder)).items():
            assert np.array_equal(finished(source)["image"], wanted), what


@given(st.sampled_from(KINDS), st.integers(0, 10_000), st.sampled_from(["cut", "changed", "empty", "none"]))
@settings(deadline=None, max_examples=25)
def test_a_picture_is_right_or_named(kind: tuple[str, str], at: int, how: str) -> None:
    """One damaged picture of three gives the pixels that Pillow gives it, or an error with its path."""
    good = written(picture(kind[0], size=(9, 9)), kind[1])
    at %= len(good)
    changed = good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :]
    bad = {"cut": good[:at], "changed": changed, "empty": b"", "none": b"no image at all"}[how]
    files = {"a/1.png": good, "b/2.png": bad, "b/3.png": good}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, data in files.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(data)
        source = daskdl.ImageFolderSource(str(root))
        said = ""
        try:
            list(daskdl.batches(source, "label", batch_size=3, rank=0, world_size=1))
        except DataError as error:
            said = str(error)
        assert "b/2.png" in said or "images of different sizes" in said or (not said and expected(bad) is not None)


# -- every kind of column, whatever it is read through ------------------------------------------------------------

FLOATS = st.floats(-1e6, 1e6, width=32) | st.just(float("nan"))
COLUMNS: dict[str, Any] = {
    "lists": st.lists(st.integers(-5, 5), max_size=3),
    "lists or none": st.none() | st.lists(st.integers(-5, 5), max_size=3),
    "lists with missing": st.lists(FLOATS | st.none(), max_size=3),
    "lists of booleans": st.lists(st.booleans(), max_size=3),
    "lists of pairs": st.lists(st.tuples(FLOATS, FLOATS).map(list), min_size=1, max_size=3),
    "empty lists": st.just([]),
    "arrays": st.integers(0, 9).map(lambda i: np.full((2, 3), i, np.float32)),
    "arrays of any height": st.integers(1, 3).map(lambda i: np.full((i, 2), i, np.int16)),
    "vectors": st.integers(0, 9).map(lambda i: np.arange(i, i + 3)),
    "bytes": st.integers(0, 3).map(lambda i: written(picture("RGB", i), "PNG")),
    "texts": st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    "numbers": FLOATS,
}


def outcome(make: Any) -> Any:
    """Tensors as lists, or that they are refused."""
    try:
        return {name: np.nan_to_num(rows).tolist() for name, rows in make().items()}
    except DataError:
        return "refused"


@given(st.data(), st.sampled_from(sorted(COLUMNS)))
@settings(deadline=None, max_examples=60)
def test_a_column_is_the_same_from_memory_from_the_cache_and_lazily(data: Any, what: str) -> None:
    values = data.draw(st.lists(COLUMNS[what], min_size=2, max_size=6))
    frame = pd.DataFrame({"c": pd.Series(values, dtype=object if what != "numbers" else None)})
    kinds = {"c": daskdl.Text()} if what == "texts" else {}

    def of(rows: Any) -> Any:
        schema = Schema.learn(rows, kinds=kinds)
        return schema.finish(schema.encode(rows))

    direct = outcome(lambda: of(frame))
    assert outcome(lambda: of(daskdl.MemorySource(frame).to_dask().compute(scheduler="sync"))) == direct
    with tempfile.TemporaryDirectory() as folder:
        cut = len(values) // 2
        for i, part in enumerate((frame[:cut], frame[cut:])):
            write_part(part, Place(folder, {}), folder, 10, f"{i}.parquet")
        if direct != "refused" and "empty" not in what:
            staged = [ParquetSource(f"{folder}/{i}.parquet").head(99) for i in (0, 1)]
            schema = Schema.learn(frame, kinds=kinds)
            whole = outcome(lambda: schema.finish(schema.encode(frame)))
            assert outcome(lambda: schema.finish(schema.encode(pd.concat(staged, ignore_index=True)))) == whole


# -- predict, score and check of any source, on the cluster -------------------------------------------------------


def _net(schema: Any, n_outputs: int) -> Any:
    import torch
    from torch import nn

    class Net(nn.Module):
        """Reads means of whatever it gets."""

        def __init__(self) -> None:
            super().__init__()
            self.out = nn.LazyLinear(n_outputs)
            with torch.no_grad():
                self.forward(*(torch.from_numpy(x) for x in schema.example(2).values()))

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return self.out(torch.stack([x.float().flatten(1).mean(1) for x in inputs if x.ndim > 1], 1))

    return Net()


def _rows(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    image = [written(picture("RGB", i), "PNG") for i in range(n)]
    lists = [rng.normal(size=rng.integers(1, 4)).tolist() for _ in range(n)]
    arrays = [rng.normal(size=(2, 2)) for _ in range(n)]
    columns = {"image": image, "lists": lists, "arrays": arrays, "t": range(n), "x": rng.normal(size=n)}
    return pd.DataFrame({**columns, "y": rng.permutation([0, 1] * (n // 2))})


CHANGES = {
    "memory": lambda source: source,
    "map": lambda source: source.map(lambda rows: rows.assign(x=rows.x + 1)),
    "filter": lambda source: source.filter(lambda rows: rows.x > -1),
}


@pytest.mark.cluster
@pytest.mark.parametrize("how", CHANGES)
def test_predict_score_and_check_are_those_of_the_same_rows_in_a_frame(client: Client, how: str) -> None:
    source = CHANGES[how](daskdl.MemorySource(_rows(), group_rows=20))
    frame = pd.concat([source.to_dask().get_partition(i).compute() for i in range(3)])
    model = daskdl.TorchClassifier(_net, epochs=1, verbose=0).fit(source, "y")
    X = frame.drop(columns="y")
    assert np.allclose(model.predict_proba(source).compute(), model.predict_proba(X), atol=1e-6)
    assert model.score(source, "y") == model.score(X, frame.y)
    assert daskdl.check(source, "y", client=client).ok


@pytest.mark.cluster
def test_windows_are_predicted_and_scored(client: Client) -> None:
    rows = daskdl.MemorySource(_rows()[["t", "x", "arrays", "y"]], group_rows=30)
    windows = daskdl.TimeWindows(rows, 4, by="t", last=["y"])
    model = daskdl.TorchClassifier(_net, epochs=1, verbose=0).fit(windows, "y")
    frame = windows.to_dask().compute()
    assert model.score(windows, "y") == model.score(frame.drop(columns="y"), frame.y)


def test_one_reading_of_labels(tmp_path: Path) -> None:
    """The class of an image is its folder; what else the path tells is no feature."""
    for name, i in itertools.product(("cat", "dog"), range(3)):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{i}.png").write_bytes(written(picture("L", i), "PNG"))
    rows = read_rows(daskdl.ImageFolderSource(str(tmp_path)), "label", classes=True, client=None)
    schema, target = learn(rows, "label", classes=True, missing="impute")
    assert schema.names == ["image"] and target.classes is not None and target.classes.tolist() == ["cat", "dog"]


def test_where_a_line_comes_from_is_no_feature(tmp_path: Path) -> None:
    (tmp_path / "late.txt").write_text("a b\nc\n")
    source = daskdl.TextSource(str(tmp_path), file=True)
    rows = read_rows(source.map(lambda rows: rows.assign(n=1)), None, classes=True, client=None)
    assert list(rows.stats) == ["text", "n"] and "file" in source.to_dask().columns
