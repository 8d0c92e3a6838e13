from __future__ import annotations

import gzip
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from data.conformance import check_source, rows_of
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from daskdl.data.sources import remote
from daskdl.data.sources.files import TextSource, index_file
from daskdl.errors import DataError

POEM = [f"line {i} ü{'x' * (i % 11)}" for i in range(40)]


def texts(source: TextSource) -> list[str]:
    return [row[0] for g, n in enumerate(source.counts) for row in rows_of(source, g, 0, int(n))]


@pytest.fixture
def poem(tmp_path: Path) -> Path:
    folder = tmp_path / "poem"
    folder.mkdir()
    (folder / "1.txt").write_text("\n".join(POEM[:10]) + "\n")
    (folder / "2.txt").write_bytes("\r\n".join(POEM[10:25]).encode())  # no end of line at the end
    (folder / "3.txt").write_bytes(b"")
    (folder / "4.txt.gz").write_bytes(gzip.compress("\n".join(POEM[25:]).encode()))
    (folder / "_SUCCESS").write_bytes(b"not text")
    return folder


def test_text_is_a_source(poem: Path) -> None:
    source = TextSource(str(poem), block_bytes=64)
    check_source(source)
    assert texts(source) == POEM and source.names == ["text"] and len(source.counts) > 6
    assert source.counts[-1] == 15  # the compressed file is one group
    assert "1.txt, lines 1 to 6" in source.where(0)
    named = TextSource(str(poem / "*.txt"), file=True)
    check_source(named, processes=False)
    assert [Path(row[1]).name for row in rows_of(named, 1, 0, 2)] == ["2.txt", "2.txt"]


LINES = st.lists(st.text(st.sampled_from("aü\r\0"), max_size=6), max_size=12)


@settings(max_examples=200, deadline=None)
@given(LINES, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.integers(1, 30), st.booleans())
def test_lines_are_what_reading_them_all_gives(
    lines: list[str], newline: str, ends: bool, block_bytes: int, packed: bool
) -> None:
    text = newline.join(lines) + (newline if ends and lines else "")
    expected = [line.removesuffix("\n").removesuffix("\r") for line in _slow_lines(text)]
    data = gzip.compress(text.encode()) if packed else text.encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("x.txt.gz" if packed else "x.txt")
        path.write_bytes(data)
        source = TextSource(str(path), block_bytes=block_bytes)
        assert texts(source) == expected
        assert (source.counts > 0).all() and (not packed or len(source.counts) <= 1)


def _slow_lines(text: str) -> list[str]:
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfone\ntwo")
    assert texts(TextSource(str(tmp_path))) == ["one", "two"]


def test_only_its_byte_range_is_read(poem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TextSource(str(poem / "1.txt"), block_bytes=64)
    asked: list[tuple[int, int]] = []
    fs = source._fs
    plain = fs.cat_file
    monkeypatch.setattr(fs, "cat_file", lambda p, start, end: (asked.append((start, end)), plain(p, start, end))[1])
    list(source.read(1, 1, 2))
    assert asked == [tuple(source.files[0].starts[1:3])] and asked[0][1] - asked[0][0] < 100


def test_long_compressed_files_are_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress("\n".join(map(str, range(30_000))).encode()))
    monkeypatch.setattr("daskdl.data.sources.files.BLOCK_BYTES", 10_000)
    source = TextSource(str(tmp_path))
    assert [len(chunk) for chunk in source.read(0, 0, 10)] == [10]
    assert texts(source) == [str(i) for i in range(30_000)]


def test_the_fingerprint_is_of_text_and_groups(tmp_path: Path, poem: Path) -> None:
    first = TextSource(str(poem), block_bytes=64).fingerprint
    assert TextSource(str(poem), block_bytes=64).fingerprint == first
    assert TextSource(str(poem), block_bytes=80).fingerprint != first
    fs = fsspec.filesystem("memory")
    fs.pipe({f"/text-copy/{path.name}": path.read_bytes() for path in poem.iterdir()})
    assert TextSource("memory://text-copy", block_bytes=64).fingerprint == first
    (poem / "1.txt").write_text((poem / "1.txt").read_text().replace("line 3", "line 4"))
    assert TextSource(str(poem), block_bytes=64).fingerprint != first


def test_files_are_looked_at_through_any_map(poem: Path) -> None:
    plain = TextSource(str(poem))
    with ThreadPoolExecutor(2) as pool:
        assert TextSource(str(poem), map=pool.map).fingerprint == plain.fingerprint


@pytest.mark.cluster
def test_files_are_looked_at_on_a_cluster(client: Client, poem: Path) -> None:
    assert TextSource(str(poem), map=client.map).fingerprint == TextSource(str(poem)).fingerprint


def test_text_that_has_changed_is_refused(poem: Path) -> None:
    source = TextSource(str(poem / "1.txt"))
    os.utime(poem / "1.txt", ns=(1, 1))
    with pytest.raises(DataError, match=r"1.txt, lines 1 to 10: the file was written again.*make the source again"):
        list(source.read(0, 0, 1))
    (poem / "1.txt").unlink()
    with pytest.raises(DataError, match=r"1.txt, lines 1 to 10 cannot be read"):
        list(source.read(0, 0, 1))


def test_text_that_changes_unseen_is_counted(poem: Path) -> None:
    source = TextSource(str(poem / "1.txt"))
    path, stat = poem / "1.txt", (poem / "1.txt").stat()
    path.write_text(path.read_text().replace("\n", " "))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(DataError, match="lines 1 to 10 now has 1 lines"):
        list(source.read(0, 0, 10))


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"caf\xe9\n", "x.txt", "x.txt, lines 1 to 1: not all is UTF-8.*iconv"),
        (b"no gzip", "x.txt.gz", "x.txt.gz cannot be read as gzip"),
        (gzip.compress(os.urandom(9_000))[:-900], "x.txt.gz", "x.txt.gz cannot be read as gzip"),
    ],
)
def test_text_that_is_none(tmp_path: Path, data: bytes, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        texts(TextSource(str(tmp_path)))


def test_text_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no files found at .*\*\.csv"):
        TextSource(str(tmp_path / "*.csv"))
    with pytest.raises(DataError, match="no files found"):
        TextSource([])
    with pytest.raises(DataError, match="nothing.txt cannot be read"):
        TextSource(str(tmp_path / "nothing.txt"))
    with pytest.raises(DataError, match="block_bytes must be 1 or more, got 0"):
        TextSource.index([], block_bytes=0)
    (tmp_path / "empty.txt").touch()
    check_source(TextSource(str(tmp_path / "empty.txt")), processes=False)
    assert index_file(str(tmp_path / "empty.txt"), {}, 10).starts.tolist() == [0]


def test_remote_files_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT_SECONDS", 0.001)
    calls: list[int] = []

    def call(fails: int, error: type[OSError] = ConnectionError) -> int:
        calls.append(1)
        if len(calls) <= fails:
            raise error("lost")
        return len(calls)

    memory, local = fsspec.filesystem("memory"), fsspec.filesystem("file")
    assert remote.retried(memory, lambda: call(3)) == 4
    for fs, error, tried in ((memory, ConnectionError, 4), (memory, FileNotFoundError, 1), (local, OSError, 1)):
        calls.clear()
        with pytest.raises(error):
            remote.retried(fs, lambda error=error: call(9, error))
        assert len(calls) == tried
