from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest

from daskdl.data.staging.cache import Entry, bound, entries
from daskdl.data.staging.leases import write_json


def builds(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("v*/*") if len(path.name) == 32)


def _entry(root: Path, key: str) -> Entry:
    return Entry(fsspec.filesystem("file"), str(root), key)


def _write_build(entry: Entry, build: str, n_bytes: int = 3) -> dict[str, Any]:
    entry.fs.makedirs(f"{entry.folder}/{build}")
    entry.fs.pipe_file(f"{entry.folder}/{build}/part-0", b"x" * n_bytes)
    return {"build": build, "bytes": n_bytes, "parts": [{"name": "part-0", "bytes": n_bytes}]}


def test_the_second_of_two_builds_gives_way(tmp_path: Path) -> None:
    entry, made = _entry(tmp_path, "v1-x"), []
    for build in ("a" * 32, "b" * 32):
        manifest, lease = entry.publish(_write_build(entry, build), entry.lease(build))
        made.append((manifest["build"], lease))
    assert [build for build, _ in made] == ["a" * 32] * 2 and builds(tmp_path) == ["a" * 32]
    assert entry.leased() == {"a" * 32}
    for _, lease in made:
        lease.release()
    assert entry.leased() == set()


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    opened = {}
    for i in range(4):
        entry = _entry(tmp_path, f"v1-{i}")
        _, opened[i] = entry.publish(_write_build(entry, str(i) * 32, 10), entry.lease(str(i) * 32))
        write_json(entry.fs, f"{entry.folder}/used.json", {"time": i})
    for i in (0, 1, 3):
        opened[i].release()
    found = _entry(tmp_path, "v1-0").open()  # used now
    assert found is not None
    found[1].release()
    fs = fsspec.filesystem("file")
    bound(fs, str(tmp_path), 40)
    assert len(builds(tmp_path)) == 4
    bound(fs, str(tmp_path), 25)
    assert [build[0] for build in builds(tmp_path)] == ["0", "2"]  # 1 and 3 are gone, 2 is in use though older
    bound(fs, str(tmp_path), 0)
    assert [build[0] for build in builds(tmp_path)] == ["2"]
    opened[2].release()
    bound(fs, str(tmp_path), 0)
    assert list(tmp_path.iterdir()) == [] and entries(fs, str(tmp_path)) == []


def test_one_who_opens_while_it_is_removed_keeps_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = _entry(tmp_path, "v1-x")
    _, lease = entry.publish(_write_build(entry, "a" * 32), entry.lease("a" * 32))
    lease.release()
    answers = iter([set(), {"a" * 32}])  # somebody leases between the two looks
    monkeypatch.setattr(entry, "leased", lambda: next(answers))
    assert not entry.evict() and builds(tmp_path) == ["a" * 32]


@pytest.mark.parametrize("spoil", ["remove", "cut", "manifest"])
def test_files_that_are_not_as_written_are_not_used(tmp_path: Path, spoil: str) -> None:
    entry = _entry(tmp_path, "v1-x")
    _, lease = entry.publish(_write_build(entry, "a" * 32), entry.lease("a" * 32))
    lease.release()
    part, current = tmp_path / "v1-x" / ("a" * 32) / "part-0", tmp_path / "v1-x" / "current.json"
    {"remove": part.unlink, "cut": lambda: part.write_bytes(b"x"), "manifest": lambda: current.write_text("{")}[spoil]()
    assert entry.open() is None and entry.leased() == set()
