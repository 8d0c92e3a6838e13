from __future__ import annotations

import os
from pathlib import Path

import fsspec
import numpy as np
import pytest
from data.conformance import check_source, rows_of

from daskdl.data.sources.images import ImageFolderSource
from daskdl.errors import DataError


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    root, rng = tmp_path / "pets", np.random.default_rng(0)
    for name in ["dog/2.jpg", "dog/10.jpg", "cat/a.png", "cat/deep/b.PNG", "dog/x.jpeg"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(rng.bytes(20 + len(name)))
    for name in ["cat/notes.txt", "cat/.hidden.png", "beside.png"]:
        (root / name).write_bytes(b"no image")
    return root


def test_an_image_folder_is_a_source(pets: Path) -> None:
    source = ImageFolderSource(str(pets), group_rows=2)
    rows = check_source(source)
    assert source.counts.tolist() == [2, 2, 1] and source.names == ["image", "label", "file"]
    names = ["cat/a.png", "cat/deep/b.PNG", "dog/10.jpg", "dog/2.jpg", "dog/x.jpeg"]
    assert [row[1:] for row in rows] == [(name.split("/")[0], name) for name in names]
    assert [row[0] for row in rows] == [(pets / name).read_bytes() for name in names]
    assert source.where(1).startswith("images dog/10.jpg to dog/2.jpg of ")


def test_image_folders_elsewhere(pets: Path) -> None:
    files = {f"/pets-copy/{p.relative_to(pets)}": p.read_bytes() for p in pets.rglob("*") if p.is_file()}
    fsspec.filesystem("memory").pipe(files)
    source = ImageFolderSource("memory://pets-copy", group_rows=3)
    assert check_source(source, processes=False) == check_source(ImageFolderSource(f"{pets}/", group_rows=3))


def test_the_fingerprint_of_images(pets: Path) -> None:
    def now() -> str:
        return ImageFolderSource(str(pets)).fingerprint

    first = now()
    assert now() == first and ImageFolderSource(str(pets), group_rows=2).fingerprint != first
    os.utime(pets / "dog" / "2.jpg", ns=(1, 1))
    assert now() != first
    (pets / "dog" / "2.jpg").rename(pets / "cat" / "2.jpg")
    assert now() != first


def test_images_that_change_or_vanish_are_named(pets: Path) -> None:
    source = ImageFolderSource(str(pets), group_rows=5)
    (pets / "dog" / "2.jpg").write_bytes(b"short")
    with pytest.raises(DataError, match=r"image dog/2.jpg of .* had 29 bytes, now 5.*make the source again"):
        list(source.read(0, 0, 5))
    (pets / "dog" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"image dog/2.jpg of .* cannot be read"):
        list(source.read(0, 3, 4))
    assert len(rows_of(source, 0, 0, 3)) == 3


def test_folders_without_images(tmp_path: Path, pets: Path) -> None:
    with pytest.raises(DataError, match="folders named by class.*found 0 other files"):
        ImageFolderSource(str(tmp_path / "nothing"))
    for path in [path for path in pets.rglob("*") if path.is_file() and path.suffix != ".txt"]:
        path.unlink()
    with pytest.raises(DataError, match="folders named by class.*such as .*/cat/1.png; found 1 other files"):
        ImageFolderSource(str(pets))


def test_images_without_folders_have_no_label(pets: Path) -> None:
    (pets / "cat" / "deep" / "b.PNG").rename(pets / "cat" / "b.PNG")
    source = ImageFolderSource(str(pets / "cat"))
    assert source.names == ["image", "file"] and source.head().file.tolist() == ["a.png", "b.PNG"]


def test_images_that_are_left_out_are_said(pets: Path) -> None:
    (pets / "cat" / "photo.HEIC").write_bytes(b"")
    notes = ImageFolderSource(str(pets)).notes
    assert notes[0] == f"1 image of {pets} left out, beside the folders that name the classes: beside.png"
    assert notes[1] == f"1 image of {pets} left out, in formats that are not read: cat/photo.HEIC"
    assert len(notes) == 2


def test_links_are_followed_and_lead_into_no_circle(pets: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "1.png").write_bytes(b"image")
    (pets / "linked").symlink_to(tmp_path / "more")
    (pets / "dog" / "back").symlink_to(pets)
    (pets / "dog" / "nothing.png").symlink_to(tmp_path / "nowhere.png")
    source = ImageFolderSource(str(pets))
    found = source.head(99)
    assert source.notes[-1] == f"1 image of {pets} left out, links to nothing: dog/nothing.png"
    assert found.file.tolist()[-1] == "linked/1.png" and len(found) == 6
