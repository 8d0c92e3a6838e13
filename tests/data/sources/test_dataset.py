from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from data.conformance import check_source, fingerprint_elsewhere, run_elsewhere

from daskdl.data.sources.dataset import DatasetSource
from daskdl.errors import DataError


class Row(NamedTuple):
    text: str
    size: int


class Rows:
    """Returns what a function makes of each index."""

    def __init__(self, make: Any, n: int = 7) -> None:
        self.make, self.n = make, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        return self.make(i)


def image(i: int) -> Any:
    from PIL import Image

    return Image.new("RGB", (4, 3), (i, 0, 0)), f"class {i % 2}"


def tensors(i: int) -> Any:
    import torch

    return torch.full((2, 3), float(i), requires_grad=True), torch.tensor(i)


MADE: dict[str, tuple[Any, list[str]]] = {
    "pair": (lambda i: (np.full((2, 2), i), i), ["x", "y"]),
    "dict": (lambda i: {"words": np.arange(i), "b": b"%d" % i, "none": None}, ["words", "b", "none"]),
    "single": (lambda i: i / 2, ["x"]),
    "triple": (lambda i: (1, 2, i), ["x0", "x1", "x2"]),
    "named tuple": (lambda i: Row(str(i), i), ["text", "size"]),
    "image": (image, ["x", "y"]),
    "tensors": (tensors, ["x", "y"]),
    "scalars": (lambda i: [np.float32(i), np.array(i)], ["x", "y"]),
}


@pytest.mark.parametrize("name", MADE)
def test_a_dataset_is_a_source(name: str) -> None:
    make, names = MADE[name]
    source = DatasetSource(Rows(make), group_rows=3, ragged=["words"])
    check_source(source, processes=name == "pair")
    assert source.names == names and source.counts.tolist() == [3, 3, 1]
    check_source(DatasetSource(Rows(make, n=0)), processes=False)


def test_a_torch_dataset() -> None:
    import torch
    from torch.utils.data import TensorDataset

    def make() -> DatasetSource:
        torch.manual_seed(0)
        return DatasetSource(TensorDataset(torch.rand(9, 2, 2), torch.arange(9)), group_rows=4)

    source = make()
    check_source(source)
    (chunk,) = source.read(2, 0, 1)
    assert chunk["x"].type.shape == [2, 2] and chunk["y"].to_pylist() == [8]
    assert fingerprint_elsewhere(make) == make().fingerprint
    other = TensorDataset(torch.rand(9, 2, 2), torch.arange(9))
    assert DatasetSource(other, group_rows=4).fingerprint != source.fingerprint


def test_names_can_be_given() -> None:
    assert DatasetSource(Rows(lambda i: (i, i)), names=["a", "b"]).names == ["a", "b"]
    with pytest.raises(DataError, match=r"expected 2 different names.*\['a'\]"):
        DatasetSource(Rows(lambda i: (i, i)), names=["a"])


def broken(i: int) -> int:
    return [0, 1, 2][i]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda i: np.ones((i + 1, 2)), r"'x' of row 1 has shape \(2, 2\); expected \(1, 2\)"),
        (lambda i: (1,) * (1 + i // 2), "row 2 of Rows has 2 values; expected 1"),
        (lambda i: i or "zero", r"'x' of rows 0 to 6 is of kinds \['int', 'str'\]"),
        (lambda i: np.ones(i + 1), "say ragged=\\['x'\\]"),
        (broken, "row 3 of Rows cannot be read: IndexError"),
    ],
)
def test_rows_that_do_not_fit_are_named(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(DatasetSource(Rows(make)).read(0, 0, 7))


def test_what_is_no_dataset_is_refused() -> None:
    with pytest.raises(DataError, match="map-style dataset.*generator"):
        DatasetSource(i for i in range(3))
    with pytest.raises(DataError, match="Rows cannot be pickled.*__getitem__"):
        DatasetSource(Rows(threading.Lock()))


def test_torch_is_not_loaded() -> None:
    code = "import sys\nsys.path[:0] = {path!r}\nimport daskdl.data.sources.dataset, daskdl.data.sources.memory\n"
    assert run_elsewhere(code + "print('torch' in sys.modules)") == "False"


class OpensLater:
    """Opens its file at the first read, and seeks in it."""

    def __init__(self, path: str) -> None:
        self.path, self.file = path, None

    def __len__(self) -> int:
        return 256

    def __getitem__(self, i: int) -> int:
        self.file = self.file or open(self.path, "rb")  # type: ignore[assignment]  # noqa: SIM115
        self.file.seek(i)  # type: ignore[attr-defined]
        time.sleep(0)  # another thread may come between
        return int(self.file.read(1)[0])  # type: ignore[attr-defined]


def test_a_dataset_that_opens_its_file_later_is_sent_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(bytes(range(256)))
    source = DatasetSource(OpensLater(str(tmp_path / "rows")), group_rows=16)
    assert source.head(3).x.tolist() == [0, 1, 2]
    check_source(source)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda g: [v for c in source.read(g % 16, 0, 16) for v in c["x"].to_pylist()], range(64)))
    assert found == [list(range(16 * (g % 16), 16 * (g % 16) + 16)) for g in range(64)]


def test_what_cannot_be_sent_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(bytes(256))
    opened = OpensLater(str(tmp_path / "rows"))
    assert opened[0] == 0
    with pytest.raises(DataError, match="attribute make.file is a BufferedReader.*give it as it is before"):
        DatasetSource(Rows(opened))


def test_arrays_in_memory_are_not_copied_to_be_sent() -> None:
    import torch
    from torch.utils.data import TensorDataset

    tensors = TensorDataset(torch.rand(20_000, 8), torch.arange(20_000))
    source = DatasetSource(tensors)
    assert len(source._frozen.data) < 2_000
    assert source._frozen.thaw().tensors[0].data_ptr() == tensors.tensors[0].data_ptr()
    assert (
        DatasetSource(TensorDataset(tensors.tensors[0].clone(), tensors.tensors[1])).fingerprint == source.fingerprint
    )


def test_values_go_by_their_names() -> None:
    rows = [{"a": 1, "b": 2}, {"b": 4, "a": 3}]
    (chunk,) = DatasetSource(Rows(rows.__getitem__, n=2)).read(0, 0, 2)
    assert (chunk["a"].to_pylist(), chunk["b"].to_pylist()) == ([1, 3], [2, 4])
    for odd in ({"a": 1, "c": 2}, (1, 2)):
        with pytest.raises(DataError, match=r"row 1 of Rows (has the names|is a tuple).*expected \['a', 'b'\]"):
            list(DatasetSource(Rows([rows[0], odd].__getitem__, n=2)).read(0, 0, 2))
