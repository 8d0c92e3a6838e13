"""Every kind of column: pandas and Arrow give the same tensors, statistics of parts merge, edges hold."""

from __future__ import annotations

import datetime
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdl.data.arrays import Ragged
from daskdl.data.schema import Schema, describe
from daskdl.data.schema.codecs import encode_images, to_array_column
from daskdl.data.schema.kinds import Array, Image, Text, column_kind, kind_name
from daskdl.data.schema.lists import lists
from daskdl.data.schema.stats import ColumnStats
from daskdl.data.schema.text import HashingTokenizer, as_tokenizer
from daskdl.data.schema.values import days, numbers, plain
from daskdl.errors import DataError

PIXELS = np.arange(3 * 4 * 2, dtype=np.uint8).reshape(3, 4, 2)
PNGS = encode_images(PIXELS).to_pylist()
MOMENT = datetime.datetime(2024, 2, 29, 18, 30, 0, 1)

floats = st.floats(-1e6, 1e6, width=32)
times = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2200, 1, 1))
rows = {  # kind -> (how Arrow holds a value, values)
    "number": (pa.float64(), floats),
    "number, whole": (pa.int64(), st.integers(-(2**40), 2**40)),
    "number, float32": (pa.float32(), floats),
    "number, bool": (pa.bool_(), st.booleans()),
    "number, duration": (pa.duration("us"), st.timedeltas(datetime.timedelta(-999), datetime.timedelta(999))),
    "category": (pa.string(), st.sampled_from(["Oslo", "Rome", "Å", ""])),
    "category, dictionary": (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["Oslo", "Rome", "Å"])),
    "time": (pa.timestamp("us"), times),
    "time, milliseconds": (pa.timestamp("ms"), times.map(lambda t: t.replace(microsecond=0))),
    "time, zone": (pa.timestamp("us", "America/New_York"), times.map(lambda t: t.replace(tzinfo=datetime.UTC))),
    "time, date": (pa.date32(), times.map(datetime.datetime.date)),
    "array": (pa.list_(pa.float32()), st.lists(floats, min_size=3, max_size=3)),
    "array, fixed": (pa.list_(pa.int16(), 2), st.lists(st.integers(-9, 9), min_size=2, max_size=2)),
    "array, nested": (
        pa.list_(pa.list_(pa.float64())),
        st.lists(st.lists(floats, min_size=2, max_size=2), min_size=2, max_size=2),
    ),
    "ragged": (pa.list_(pa.int64()), st.lists(st.integers(-9, 9), max_size=4)),
    "ragged, large": (pa.large_list(pa.float32()), st.lists(floats, max_size=4)),
    "image": (pa.binary(), st.sampled_from(PNGS)),
    "text": (pa.string(), st.sampled_from(["Two roads", "two, roads!", " ", "", "Ærlig talt 3"])),
}


@st.composite
def tables(draw: Any, kind: str, missing: bool = True) -> pa.Table:
    type_, values = rows[kind]
    column = draw(st.lists(values | st.none() if missing else values, min_size=2, max_size=12))
    seen = draw(st.lists(values, min_size=2, max_size=2))  # so that there is something to learn from
    return pa.table({"c": pa.array(seen + column, type_)})


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Ragged):
        return same(a.values, b.values) and same(a.offsets, b.offsets)
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and (list(a) == list(b) if a.dtype == object else bool((a == b).all()))
    )


def kinds_of(kind: str) -> dict[str, Any]:
    name = kind.partition(",")[0]
    return {"c": name} if name in ("ragged", "text") else {}


@pytest.mark.parametrize("kind", rows)
@pytest.mark.parametrize("missing", ["impute", "indicator"])
@settings(max_examples=25)
@given(data=st.data())
def test_pandas_and_arrow_give_the_same_bits(kind: str, missing: Any, data: st.DataObject) -> None:
    table = data.draw(tables(kind))
    schema = Schema.learn(table, missing, kinds_of(kind))
    assert schema.columns[0].kind == kind.partition(",")[0]
    wanted = schema.encode(table)
    halves = pa.concat_tables([table[:1], table[1:]])
    forms = (
        table.to_batches()[0],
        halves,
        table.to_pandas(),
        table.to_pandas(types_mapper=pd.ArrowDtype),
        *([] if kind == "number, float32" else [table.to_pandas().astype(object)]),  # objects forget their precision
    )
    for form in forms:
        found = schema.encode(form)
        assert found.keys() == wanted.keys()
        assert all(same(found[name], wanted[name]) for name in wanted)
        assert all(np.isfinite(x).all() for x in found.values() if isinstance(x, np.ndarray) and x.dtype.kind == "f")
    again = Schema.from_dict(json.loads(json.dumps(schema.to_dict())))
    assert again == schema
    assert all(same(again.encode(table)[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("kind", rows)
@settings(max_examples=25)
@given(data=st.data())
def test_statistics_of_any_split_are_those_of_the_whole(kind: str, data: st.DataObject) -> None:
    column = data.draw(tables(kind))["c"]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(column)), max_size=3)))
    wanted = describe(column, kind=kinds_of(kind).get("c"), name="c")
    merged = ColumnStats("array", 0)
    for first, stop in zip([0, *cuts], [*cuts, len(column)], strict=True):
        merged = merged.merge(describe(column[first:stop], kind=kinds_of(kind).get("c"), name="c"))
    scale = max(1.0, abs(wanted.mean), wanted.m2)
    assert merged.mean == pytest.approx(wanted.mean, rel=1e-9, abs=1e-9 * scale)
    assert merged.m2 == pytest.approx(wanted.m2, rel=1e-7, abs=1e-9 * scale)
    for name in ("kind", "n", "n_missing", "n_infinite", "low", "high", "values", "shape", "dtype"):
        assert getattr(merged, name) == getattr(wanted, name), name


@pytest.mark.parametrize("kind", rows)
@settings(max_examples=25)
@given(data=st.data())
def test_no_rows_have_the_fields_of_some(kind: str, data: st.DataObject) -> None:
    table = data.draw(tables(kind, missing=False))
    schema = Schema.learn(table, kinds=kinds_of(kind))
    some = schema.encode(table)
    for none in (
        table[:0],
        table.to_batches()[0][:0],
        table.to_pandas()[:0],
        pa.table({"c": pa.chunked_array([], table["c"].type)}),
    ):
        block = schema.encode(none)
        assert block.keys() == some.keys()
        for name, x in block.items():
            assert len(x) == 0
            assert getattr(x, "values", x).dtype == getattr(some[name], "values", some[name]).dtype
        finished = schema.finish(block)
        assert all(len(x) == 0 for x in finished.values())
        assert list(finished) == list(schema.example(1))


@pytest.mark.parametrize("kind", rows)
@settings(max_examples=25)
@given(data=st.data())
def test_an_example_looks_like_a_batch(kind: str, data: st.DataObject) -> None:
    table = data.draw(tables(kind))
    schema = Schema.learn(table, kinds=kinds_of(kind))
    block = {**schema.encode(table), "y": np.zeros(len(table))}
    batch = schema.finish(block)
    example = schema.example(len(table))
    assert list(batch) == [*example, "y"]
    assert batch["y"] is block["y"]
    assert schema.needs_finish == (kind.partition(",")[0] in ("ragged", "image", "text"))
    for name, x in example.items():
        assert batch[name].dtype == x.dtype
        assert batch[name].shape[2:] == x.shape[2:]
        assert len(batch[name]) == len(x)
    twice = schema.finish(batch)
    assert all(twice[name] is batch[name] for name in batch)


# -- dates --------------------------------------------------------------------------------------------------------


def test_a_date_is_elapsed_days_and_the_angles_of_day_week_and_year() -> None:
    frame = pd.DataFrame({"when": pd.to_datetime(["2024-01-01 00:00", "2024-01-03 00:00", "2024-01-02 12:00"])})
    schema = Schema.learn(frame)
    assert schema.n_numbers == 7
    x = schema.numbers(frame)
    assert x[:, 0].mean() == pytest.approx(0, abs=1e-6)
    assert x[0, 1:] == pytest.approx([0, 1, 0, 1, 0, 1], abs=1e-6)  # midnight, a Monday, the first of January
    assert x[2, 1:3] == pytest.approx([0, -1], abs=1e-6)
    week, year = 2 * np.pi * 1.5 / 7, 2 * np.pi * 1.5 / 366
    assert x[2, 3:] == pytest.approx([np.sin(week), np.cos(week), np.sin(year), np.cos(year)], abs=1e-6)


def test_a_missing_date_is_the_mean_day_at_no_time_and_can_be_marked() -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0, None], "when": pd.to_datetime(["2024-01-01", None, "2024-01-03"])})
    x = Schema.learn(frame, "indicator").numbers(frame)
    assert x.shape == (3, 1 + 7 + 2)
    assert not x[1, 1:8].any()
    assert x[:, 8:].tolist() == [[0, 0], [0, 1], [1, 0]]
    with pytest.raises(DataError, match="Input contains NaN: 2 missing values"):
        Schema.learn(frame.dropna(), "refuse").encode(frame)


@given(times)
def test_dates_do_not_depend_on_their_unit(moment: datetime.datetime) -> None:
    moment = moment.replace(microsecond=0)
    found = [days(np.array([moment], dtype=f"M8[{unit}]")) for unit in ("s", "ms", "us", "ns")]
    assert len({(day[0], rest[0]) for day, rest, _ in found}) == 1


def test_a_zone_shows_the_clock_on_the_wall() -> None:
    column = pd.Series(pd.to_datetime(["2024-06-01 16:00"])).dt.tz_localize("UTC").dt.tz_convert("America/New_York")
    for form in (column, pa.array(column)):
        assert days(plain(form))[1].tolist() == [0.5]


def test_durations_are_seconds_and_dates_may_be() -> None:
    assert numbers(plain(pd.Series(pd.to_timedelta(["1.5s", None])))).tolist()[0] == 1.5
    assert numbers(pa.array([90], pa.duration("s"))).tolist() == [90]
    frame = pd.DataFrame({"when": pd.to_datetime(["1970-01-02", "1970-01-03"])})
    assert Schema.learn(frame, kinds={"when": "number"}).columns[0].mean == 1.5 * 86_400
    text = pd.DataFrame({"when": ["2024-01-01", "2024-01-03T06:00", None]})
    assert Schema.learn(text, kinds={"when": "time"}).n_numbers == 7


# -- numbers and categories ---------------------------------------------------------------------------------------


def test_blocks_with_and_without_missing_values_agree() -> None:
    n = 10_000  # more than one block
    x = np.random.default_rng(0).normal(5, 2, n).astype(np.float32)
    frame = pd.DataFrame({"x": x, "z": x.astype(np.float64)})
    schema = Schema.learn(frame)
    whole = schema.numbers(frame)
    assert whole.flags.c_contiguous
    frame.loc[[3, 9_999], "x"] = np.nan
    holes = schema.numbers(frame)
    assert (holes[[3, 9_999], 0] == 0).all()
    keep = np.delete(np.arange(n), [3, 9_999])
    assert (holes[keep] == whole[keep]).all() and (holes[:, 1] == whole[:, 1]).all()
    assert np.abs(whole[:, 0] - whole[:, 1]).max() < 1e-6


def test_numbers_float32_cannot_hold_do_not_become_infinite() -> None:
    schema = Schema.learn(pd.DataFrame({"x": [1.0, 2.0]}))
    assert np.isfinite(schema.numbers(pd.DataFrame({"x": [1e300, -np.inf]}))).all()


def test_large_whole_numbers_keep_their_differences() -> None:
    frame = pd.DataFrame({"unix": [1_700_000_000, 1_700_000_001, 1_700_000_002]})
    schema = Schema(Schema.learn(frame).columns)
    assert schema.columns[0].mean == 1_700_000_001


@pytest.mark.parametrize(
    "learned, met, codes",
    [
        (pa.array([3, 1, 3]), pa.array([1, 3, 7, None]), [2, 1, 0, 0]),
        (pa.array([3, 1, 3]), pa.array([1.0, 3.0, 1.5, None]), [2, 1, 0, 0]),
        (pa.array([3, 1, 3]), pa.array(["1", "3"]), [0, 0]),
        (pa.array(["b", "a", "b"]), pa.array(["a", "b", "c", None]).dictionary_encode(), [2, 1, 0, 0]),
        (pa.array(["b", "a", "b"]), pa.array(["a", "b"], pa.string_view()), [2, 1]),
        (pa.array([True, False, True]), pa.array([False, True, None]), [2, 1, 0]),
        (pa.array([0.5, 1.5, 0.5]), pa.array([1.5, 0.5, 2.0]), [2, 1, 0]),
        (pa.array([3, 1, 3]), pa.array([2**64 - 1, 3], pa.uint64()), [0, 1]),
        (pa.array(["b", "a"]), pa.nulls(2), [0, 0]),
    ],
)
def test_categories_of_any_type(learned: pa.Array, met: pa.Array, codes: list[int]) -> None:
    schema = Schema.learn(pa.table({"c": learned}), kinds={"c": "category"})
    assert schema.codes(pa.table({"c": met})).ravel().tolist() == codes
    assert schema.codes(pa.table({"c": met}).to_pandas()).ravel().tolist() == codes


def test_text_beside_numbers_is_refused_unless_it_is_said_to_be_categories() -> None:
    frame = pd.DataFrame({"c": pd.Series(["a", 1, "a", None], dtype=object)})
    with pytest.raises(DataError, match=r"column 'c' .* holds int values such as '1' beside text such as 'a'.*to_num"):
        Schema.learn(frame)
    schema = Schema.learn(frame, kinds={"c": "category"})
    assert schema.codes(frame).ravel().tolist() == [1, 2, 1, 0], "looked up as Python does"
    assert schema.codes(pd.DataFrame({"c": [1, 2]})).ravel().tolist() == [2, 0]


# -- arrays, lists, images, text ----------------------------------------------------------------------------------


def test_arrays_keep_integers_and_are_views_of_files() -> None:
    column = to_array_column(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    block = Schema.learn(pa.table({"x": column})).encode(pa.table({"x": column}))
    assert list(block) == ["x"]  # no numbers
    assert block["x"].dtype == np.uint8 and block["x"].shape == (2, 3, 4)
    assert block["x"].ctypes.data == column.storage.values.buffers()[1].address


def test_missing_arrays_and_numbers_in_them_are_zero_or_refused() -> None:
    table = pa.table({"v": [[1.0, 2.0], None, [3.0, None]]})
    schema = Schema.learn(table)
    assert schema.encode(table)["v"].tolist() == [[1, 2], [0, 0], [3, 0]]
    assert (schema["v"].n_missing, schema["v"].mean) == (2, 1.5)
    with pytest.raises(DataError, match="column 'v' has 2 missing values, and missing='refuse'"):
        Schema.learn(table[:1], "refuse").encode(table)
    whole = pa.table({"v": [[1, 2], None, [3, 4]]})
    assert Schema.learn(whole[:1]).encode(whole)["v"].dtype == np.int64


def test_an_array_can_be_given_its_shape_and_rows_of_as_many_numbers_fit() -> None:
    flat = pd.DataFrame({"v": [np.arange(6), np.arange(6)]})
    schema = Schema.learn(flat, kinds={"v": Array(2, 3)})
    assert schema.encode(flat)["v"].shape == (2, 2, 3)
    shaped = pa.table({"v": to_array_column(np.arange(12).reshape(2, 2, 3))})
    assert schema.encode(shaped)["v"].shape == (2, 2, 3)
    assert Schema.learn(shaped).encode(shaped.to_pandas())["v"].shape == (2, 2, 3)  # pandas loses the shape


def test_lists_of_arrays_are_padded_along_their_first_axis() -> None:
    table = pa.table({"track": to_array_column([np.ones((2, 3)), np.ones((1, 3)), None])})
    schema = Schema.learn(table)
    batch = schema.finish(schema.encode(table))
    assert batch["track"].shape == (3, 2, 3)
    assert batch["track_length"].tolist() == [2, 1, 0]
    assert batch["track"].sum() == 9
    again = schema.encode(table.to_pandas())
    assert same(again["track"], schema.encode(table)["track"])


def test_rows_that_are_all_empty_have_one_place() -> None:
    schema = Schema.learn(pa.table({"l": pa.array([[1], []])}))
    assert schema.finish(schema.encode(pa.table({"l": pa.array([[], None], pa.list_(pa.int64()))})))["l"].shape == (
        2,
        1,
    )


def test_images_are_decoded_once_per_batch_by_a_pool_or_without() -> None:
    from concurrent.futures import ThreadPoolExecutor

    table = pa.table({"photo": pa.array([*PNGS, None])})
    schema = Schema.learn(table)
    assert schema["photo"].shape == (1, 4, 2)
    block = schema.encode(table)
    assert block["photo"].dtype == object
    wanted = np.concatenate([PIXELS, np.zeros((1, 4, 2))])[:, None]
    assert (schema.finish(block)["photo"] == wanted).all()
    with ThreadPoolExecutor(2) as pool:
        assert (schema.finish(block, pool)["photo"] == wanted).all()
    small = Schema.learn(table, kinds={"photo": Image(2, 2, channels=3)})
    assert small.finish(small.encode(table))["photo"].shape == (4, 3, 2, 2)


def test_text_is_hashed_words_the_same_everywhere() -> None:
    table = pa.table({"t": pa.array(["Two roads, two roads!", None, "...Größe 3"])})
    schema = Schema.learn(table, kinds={"t": Text()})
    tokens = schema.encode(table)["t"]
    assert [row.tolist() for row in tokens.take(np.arange(3))] == [
        [11772, 23763, 11772, 23763],
        [],
        HashingTokenizer()("größe 3"),
    ]
    assert tokens.values.dtype == np.int32
    assert schema["t"].n_tokens == 32_768
    short = Schema.learn(table, kinds={"t": Text(HashingTokenizer(8), max_length=1)})
    assert short.encode(table)["t"].lengths.tolist() == [1, 0, 1]
    assert Schema.from_dict(json.loads(json.dumps(short.to_dict()))) == short


def test_a_tokenizer_of_ones_own_works_and_cannot_be_saved() -> None:
    table = pa.table({"t": pa.array(["ab", None, "c"])})
    schema = Schema.learn(table, kinds={"t": Text(lambda text: [ord(letter) for letter in text])})
    assert schema.encode(table)["t"].padded(0).tolist() == [[97, 98], [0, 0], [99, 0]]
    assert schema["t"].n_tokens is None
    with pytest.raises(TypeError, match="is a function of your own, and a saved schema holds plain values"):
        schema.to_dict()
    wrong = Schema.learn(table, kinds={"t": Text(lambda text: [0.5])})
    with pytest.raises(DataError, match="a tokenizer must give a list of integers per text, got float64"):
        wrong.encode(table)
    with pytest.raises(TypeError, match="a tokenizer must be a function .* got int"):
        as_tokenizer(3)


def test_a_tokenizer_of_the_package_tokenizers_travels_as_json() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "two": 1, "roads": 2}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    table = pa.table({"t": pa.array(["two roads", None, "roads"])})
    schema = Schema.learn(table, kinds={"t": Text(words)})
    again = Schema.from_dict(json.loads(json.dumps(schema.to_dict())))
    assert again == schema and again["t"].n_tokens == 3
    assert again.encode(table)["t"].padded(0).tolist() == [[1, 2], [0, 0], [2, 0]]


# -- what is refused ----------------------------------------------------------------------------------------------


def learn(column: Any, kind: Any = None) -> Schema:
    return Schema.learn(pa.table({"c": column}), kinds={"c": kind} if kind else None)


@pytest.mark.parametrize(
    "column, kind, message",
    [
        (pa.array([["a"], ["b", "c"]]), None, r"column 'c' has dtype list<.*string>; a feature must be a number"),
        (pa.array([{"a": 1}]), None, r"column 'c' has dtype struct<a: int64>; a feature must be"),
        (pa.array([b"no image"]), None, "column 'c': 8 bytes that begin with b'no image' are none of PNG"),
        (pa.array([PNGS[0][:12]]), None, "column 'c': an image of 12 bytes has a broken head"),
        (pa.array([[[1], [2, 3]]]), None, "cannot be read as kind 'ragged': rows vary in shape along more than"),
        (to_array_column([np.ones((1, 2)), np.ones((1, 3))]), None, "cannot be read as kind 'array': rows vary"),
        (pa.array([["x"]]), "ragged", "cannot be read as kind 'ragged': lists of strings are no numbers"),
        (
            pa.array([1, 2]),
            "ragged",
            "column 'c' of dtype int64 cannot be read as kind 'ragged': int64 is no type of lists",
        ),
        (pa.array([1, 2]), Text(), "cannot be read as kind 'text': int64 is no type of text"),
        (pa.array(["a"]), "number", "cannot be read as kind 'number': Unable to parse string"),
        (pa.array([1]), "image", "cannot be read as kind 'image': int64 values are no bytes"),
        (pa.array([1]), "time", "cannot be read as kind 'time'"),
        (pa.array([[1], [2, 3]]), "array", r"column 'c' has rows of shape -1, expected arrays of shape -1"),
        (pa.array([[1, 2]]), Array(3), "column 'c' has rows of shape 2, expected arrays of shape 3"),
        (pa.array([None, None], pa.list_(pa.int64())), None, "column 'c' holds no array or list in 2 rows"),
        (pa.array([None], pa.binary()), None, r"column 'c' has no image at all, .* kinds={'c': Image\(224, 224\)}"),
        (
            pa.array([*PNGS[:1], *encode_images(np.zeros((1, 9, 9), np.uint8)).to_pylist()]),
            None,
            "column 'c' has images of different sizes",
        ),
        (pa.array([[1.0, np.inf]]), None, "column 'c' holds 1 infinite values"),
    ],
)
def test_columns_that_make_no_tensor_are_named(column: Any, kind: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        learn(column, kind)


@pytest.mark.parametrize(
    "learned, kind, met, message",
    [
        (pa.array([[1, 2]]), None, pa.array([[1, 2, 3]]), "had rows of shape 2 in fit and has rows of shape 3"),
        (pa.array([[1, 2]]), None, pa.array([[1, 2], [3]]), "had rows of shape 2 in fit and has rows of shape -1"),
        (pa.array([[1, 2]]), None, pa.array(["a"]), "column 'c' was an array in fit and is string now"),
        (
            pa.array([[1, 2]]),
            None,
            pa.array([[0.5, 1]]),
            "held int64 in fit and holds float64 now",
        ),
        (pa.array([[1], []]), None, pa.array([[[1, 2]]]), "had lists of numbers in fit and has lists of 2 now"),
        (pa.array([[1], []]), None, pa.array([3]), "column 'c' was a list of any length in fit and is int64 now"),
        (pa.array(PNGS), None, pa.array([3]), "column 'c' was an image in fit and is int64 now"),
        (pa.array(["a b"]), Text(), pa.array([3]), "column 'c' was a text in fit and is int64 now"),
        (pa.array([MOMENT]), None, pa.array([3.0]), "column 'c' was a date in fit and is double now"),
        (pa.array([1.0]), None, pa.array(["low"]), "column 'c' was a number in fit and is string now"),
    ],
)
def test_columns_that_are_not_what_they_were_are_named(learned: Any, kind: Any, met: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        learn(learned, kind).encode(pa.table({"c": met}))


@pytest.mark.parametrize("kind, column", [("ragged", [[1], None]), ("image", [PNGS[0], None]), ("text", ["a", None])])
def test_missing_values_of_every_kind_are_refused_when_asked(kind: Any, column: list[Any]) -> None:
    table = pa.table({"c": pa.array(column)})
    schema = Schema.learn(table[:1], "refuse", {"c": kind})
    with pytest.raises(DataError, match="Input contains NaN: column 'c' has 1 missing values"):
        schema.encode(table)
    with pytest.raises(DataError, match="column 'c' has 1 missing values .* and missing='refuse'"):
        Schema.learn(table, "refuse", {"c": kind})


def test_an_image_that_is_cut_off_is_named_when_it_is_decoded() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    jpeg = encode_images(noise, "jpeg")[0].as_py()
    schema = learn(pa.array([jpeg]))
    with pytest.raises(DataError, match="column 'c': an image of .* bytes cannot be decoded: .* or leave it out"):
        schema.finish(schema.encode(pa.table({"c": [jpeg[: len(jpeg) * 3 // 4]]})))


def test_partitions_of_different_kinds_do_not_merge() -> None:
    with pytest.raises(TypeError, match="number in some partitions, category in others"):
        describe(pd.Series([1.0])).merge(describe(pd.Series(["a"])))
    with pytest.raises(TypeError, match="rows of 1 dimensions in some partitions, of 2 in others"):
        describe(pa.array([[1]])).merge(describe(pa.array([[[1]]])))
    merged = describe(pd.Series([None, None], dtype=object)).merge(describe(pa.array([[1, 2]])))
    assert (merged.kind, merged.n_missing, merged.shape) == ("array", 2, (2,))
    two = describe(pa.array([[[1, 2]]])).merge(describe(pa.array([[[1, 2, 3], [4, 5, 6]]])))
    with pytest.raises(DataError, match="column 'c' has arrays whose shapes differ along more than the first axis"):
        Schema.from_stats({"c": two})


def test_kinds_that_cannot_be() -> None:
    table = pa.table({"c": [1.0]})
    with pytest.raises(ValueError, match="a kind must be one of 'number', .* got 'picture'"):
        Schema.learn(table, kinds={"c": "picture"})
    with pytest.raises(DataError, match=r"kinds names columns that are not there: \['d'\]"):
        Schema.learn(table, kinds={"d": "number"})
    with pytest.raises(ValueError, match="column 'c' is to be read as 'category', and was described as 'number'"):
        Schema.from_stats({"c": describe(table["c"])}, kinds={"c": "category"})
    for make, message in (
        (lambda: Image(3), "a height and a width in pixels, got 3 and None"),
        (lambda: Image(3, 3, channels=4), "channels must be 1"),
        (lambda: Array(), "Array takes the length of each axis"),
        (lambda: Text(max_length=0), "max_length must be at least 1"),
        (lambda: HashingTokenizer(1), "n_tokens must be at least 2"),
        (lambda: kind_name(3), "a kind must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_tensors_of_the_same_name_are_refused() -> None:
    with pytest.raises(DataError, match=r"tensors of the same name: \['numbers'\]"):
        Schema.learn(pa.table({"numbers": [[1, 2]]}))
    with pytest.raises(DataError, match=r"tensors of the same name: \['l_length'\]"):
        Schema.learn(pa.table({"l": [[1, 2], [3]], "l_length": [[1], [2]]}))


def test_a_column_that_is_not_there_is_named() -> None:
    schema = Schema.learn(pa.table({"c": [1.0, 2.0]}))
    for chunk in (pa.table({"d": [1.0]}), pa.table({"d": [1.0]}).to_batches()[0], pd.DataFrame({"d": [1.0]})):
        with pytest.raises(DataError, match=r"missing: \['c'\]. The rows have 1 columns: \['d'\]"):
            schema.encode(chunk)
    assert schema.encode(pa.table({"more": [0], "c": [1.5]}))["numbers"].tolist() == [[0]]


@pytest.mark.parametrize(
    "dtype, kind",
    [
        (np.dtype("int8"), "number"),
        (np.dtype("m8[ns]"), "number"),
        (pd.ArrowDtype(pa.duration("s")), "number"),
        (pd.ArrowDtype(pa.decimal128(9, 2)), "number"),
        (np.dtype("M8[us]"), "time"),
        (pd.DatetimeTZDtype("us", "UTC"), "time"),
        (pd.ArrowDtype(pa.date32()), "time"),
        (pd.StringDtype(), "category"),
        (pd.ArrowDtype(pa.dictionary(pa.int8(), pa.string())), "category"),
        (pa.list_(pa.float32(), 3), "array"),
        (pa.fixed_shape_tensor(pa.int8(), (2, 2)), "array"),
        (pd.ArrowDtype(pa.list_(pa.list_(pa.float32(), 3))), "ragged"),
        (pa.large_binary(), "image"),
        (pd.ArrowDtype(pa.time32("s")), "number"),
        (pd.SparseDtype(bool), "number"),
    ],
)
def test_types_tell_kinds(dtype: Any, kind: str) -> None:
    assert column_kind("c", dtype) == kind


@pytest.mark.parametrize(
    "dtype", [pd.PeriodDtype("D"), pd.IntervalDtype(), pd.ArrowDtype(pa.map_(pa.int8(), pa.int8()))]
)
def test_types_without_a_kind_are_refused(dtype: Any) -> None:
    with pytest.raises(DataError, match=r"column 'c' has dtype .*; a feature must be"):
        column_kind("c", dtype)


def test_a_permuted_tensor_is_read_in_its_logical_order() -> None:
    type_ = pa.fixed_shape_tensor(pa.int64(), (2, 3), permutation=(1, 0))
    column = pa.ExtensionArray.from_storage(type_, pa.array([list(range(6))], pa.list_(pa.int64(), 6)))
    assert lists(column).values.tolist() == [[0, 3], [1, 4], [2, 5]]
