"""Arrays and images into Parquet and back, exactly, and what the schema makes of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from daskdl.data.schema import Schema
from daskdl.data.schema.codecs import (
    decode_image,
    encode_images,
    image_shape,
    read_arrays,
    read_images,
    to_array_column,
)
from daskdl.errors import DataError

DTYPES = ["uint8", "float32", "int64"]
SHAPES = [(5,), (2, 3), (2, 3, 4), (2, 1, 3, 2)]


def through_a_file(column: pa.Array, folder: Path, **options: Any) -> pa.ChunkedArray:
    pq.write_table(pa.table({"x": column}), folder / "x.parquet", **options)
    return pq.read_table(folder / "x.parquet")["x"]


def make(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, *shape)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_arrays_of_one_shape_come_back_as_they_were(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    arrays = make(dtype, shape)
    column = through_a_file(to_array_column(arrays), tmp_path, row_group_size=3)
    assert column.type == pa.fixed_shape_tensor(pa.from_numpy_dtype(dtype), shape)
    found = read_arrays(column)
    assert isinstance(found, np.ndarray) and found.dtype == dtype
    assert np.array_equal(found, arrays)
    encoded = Schema.learn(pa.table({"x": column})).encode(pa.table({"x": column}))["x"]
    assert encoded.dtype == dtype
    assert np.array_equal(encoded, arrays)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_arrays_of_varying_shape_come_back_as_they_were(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    arrays = [None, *make(dtype, shape), make(dtype, (shape[0] + 1, *shape[1:]))[0]]
    column = through_a_file(to_array_column(arrays), tmp_path, row_group_size=3)
    found = read_arrays(column)
    assert found[0] is None
    assert all(a.dtype == dtype and np.array_equal(a, b) for a, b in zip(found[1:], arrays[1:], strict=True))
    table = pa.table({"x": column})
    schema = Schema.learn(table)
    assert schema["x"].kind == "ragged"
    batch = schema.finish(schema.encode(table))
    assert batch["x"].shape == (9, shape[0] + 1, *shape[1:])
    assert batch["x_length"].tolist() == [0, *[shape[0]] * 7, shape[0] + 1]
    assert np.array_equal(batch["x"][-1], arrays[-1])


def test_missing_arrays_of_one_shape(tmp_path: Path) -> None:
    arrays = [np.ones((2, 2)), None, np.zeros((2, 2))]
    found = read_arrays(through_a_file(to_array_column(arrays), tmp_path))
    assert found[1] is None and np.array_equal(found[0], arrays[0]) and np.array_equal(found[2], arrays[2])


def test_arrays_are_views_where_they_can_be() -> None:
    arrays = make("float32", (2, 3))
    column = to_array_column(arrays)
    assert np.shares_memory(arrays, read_arrays(column))
    assert np.shares_memory(arrays, read_arrays(column[2:5]))
    assert np.array_equal(read_arrays(column[2:5]), arrays[2:5])


@given(st.lists(hnp.arrays(np.int16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=4)), min_size=1, max_size=6))
def test_any_arrays_come_back(arrays: list[np.ndarray]) -> None:
    found = read_arrays(to_array_column(arrays))
    assert all(np.array_equal(a, b) for a, b in zip(found, arrays, strict=True))


def test_no_rows_keep_their_shape() -> None:
    column = to_array_column(np.empty((0, 2, 3), np.uint8))
    assert column.type.shape == [2, 3] and len(column) == 0


def test_lists_are_read_as_arrays_too() -> None:
    assert read_arrays(pa.array([[1, 2], [3, 4]])).tolist() == [[1, 2], [3, 4]]
    assert [row.tolist() for row in read_arrays(pd.Series([[1, 2], [3]]))] == [[1, 2], [3]]


@pytest.mark.parametrize(
    "arrays, message",
    [
        (np.zeros(3), "at least one axis per row, got float64 of shape \\(3,\\)"),
        (np.array([["a"]]), "takes arrays of integers or floats .* got <U1"),
        ([np.zeros(2), np.zeros((2, 2))], "must have one dtype and as many dimensions"),
        ([np.zeros(2), np.zeros(2, np.int8)], "must have one dtype and as many dimensions"),
        ([None], "to_array_column got no array"),
    ],
)
def test_arrays_that_make_no_column_are_named(arrays: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_array_column(arrays)


def test_a_column_without_arrays_is_named() -> None:
    with pytest.raises(DataError, match="read_arrays takes a column of arrays .* string is no type of lists"):
        read_arrays(pa.array(["a"]))


# -- images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3)])
def test_png_is_exact(shape: tuple[int, ...], tmp_path: Path) -> None:
    images = make("uint8", shape)
    column = through_a_file(encode_images(images), tmp_path)
    assert np.array_equal(np.stack(read_images(column)), images)
    table = pa.table({"photo": column})
    schema = Schema.learn(table)
    found = schema.finish(schema.encode(table))["photo"]
    channels_first = images[:, None] if len(shape) == 2 else images.transpose(0, 3, 1, 2)
    assert found.dtype == np.uint8 and np.array_equal(found, channels_first)


def test_jpeg_is_close_and_smaller(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :48]
    images = np.stack([np.stack([x * 4, y * 3, x + y], axis=-1).astype(np.uint8)] * 2)
    column = through_a_file(encode_images(images, "jpeg", quality=95), tmp_path)
    assert sum(len(data) for data in column.to_pylist()) < images.nbytes / 4
    found = np.stack(read_images(column))
    assert np.abs(found.astype(int) - images).mean() < 3


def test_images_are_resized_and_made_grey_or_coloured() -> None:
    grey, colour = np.full((1, 8, 6), 90, np.uint8), np.full((1, 40, 30, 3), 90, np.uint8)
    for images in (grey, colour):
        for format in ("png", "jpeg"):
            data = encode_images(images, format)[0].as_py()
            for channels in (1, 3):
                found = decode_image(data, 4, 3, channels)
                assert found.shape == (channels, 4, 3)
                assert np.abs(found.astype(int) - 90).max() <= 2
    assert image_shape(encode_images(grey)[0].as_py()) == (1, 8, 6)
    assert image_shape(encode_images(colour, "jpeg")[0].as_py()) == (3, 40, 30)


def test_missing_images_stay_missing_and_a_pool_gives_the_same() -> None:
    images = [np.zeros((2, 2, 1), np.uint8), None, np.ones((3, 3), np.uint8)]
    with ThreadPoolExecutor(2) as pool:
        column = encode_images(images, pool=pool)
        found = read_images(column, pool)
    assert column == encode_images(images)
    assert [None if image is None else image.shape for image in found] == [(2, 2), None, (3, 3)]


def test_images_that_are_none_are_named() -> None:
    for wrong in (np.zeros((1, 2, 2)), np.zeros((1, 3, 4, 5), np.uint8), np.zeros((1, 4), np.uint8)):
        with pytest.raises(DataError, match="an image must be uint8 of shape"):
            encode_images(wrong)
    with pytest.raises(ValueError, match="format must be 'png' or 'jpeg', got 'gif'"):
        encode_images(np.zeros((1, 2, 2), np.uint8), "gif")
    with pytest.raises(DataError, match="2 bytes that begin with b'BM' are none of PNG, JPEG"):
        read_images(pa.array([b"BM"]))
