"""Which files of a folder are taken as images, and what is said about those that are not."""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, features

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images import decode, listing
from p4q_edge.runtime.images.decode import load_image
from p4q_edge.runtime.images.image_set import from_class_folders
from p4q_edge.runtime.images.inputs import expand
from p4q_edge.runtime.images.listing import LeftOut, class_folders, image_files, labelled_files


def write(path: Path, file_format: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(buffer, file_format)
    path.write_bytes(buffer.getvalue())
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """What lies in folders that came from a network storage, a Mac and a browser."""
    root = tmp_path / "photos"
    write(root / "a" / "0.png")
    write(root / "a" / "saved.jfif", "JPEG")
    (root / "a" / "IMG_1.HEIC").touch()
    write(root / "b" / "0.png")
    write(root / "b" / "@eaDir" / "0.png" / "SYNOPHOTO_THUMB_M.jpg", "JPEG")
    write(root / "b" / "._0.png")
    (root / "b" / "Thumbs.db").touch()
    (root / "b" / "linked").symlink_to(write(tmp_path / "far" / "x.png").parent)
    (root / "b" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    write(root / "__MACOSX" / "a" / "0.png")
    write(root / "cover.png")
    (root / "labels.csv").touch()
    return root


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "SUFFIXES", decode.SUFFIXES - decode._HEIF.keys())
    monkeypatch.setattr(listing, "READABLE_WITH", {**decode.READABLE_WITH, **decode._HEIF})


@pytest.mark.usefixtures("without_heif")
def test_one_line_says_what_was_left_out_and_why(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = {folder.name: [file.name for file in files] for folder, files in labelled_files(photos)}
    assert found == {"a": ["0.png", "saved.jfif"], "b": ["0.png"]}
    assert [(record.levelname, record.message) for record in caplog.records] == [
        (
            "WARNING",
            f"left out of {photos}: 1 .csv file, 1 .heic file (to read them: pip install 'p4q-edge-runtime[heif]'), "
            "1 broken link, 1 hidden file, 1 image outside of the class folders, 1 linked folder (copy it in), "
            "1 of the system (@eaDir), 1 of the system (Thumbs.db), 1 of the system (__MACOSX)",
        )
    ]


def test_what_nobody_means_to_be_taken_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a" / "0.png")
    (tmp_path / "a" / ".DS_Store").touch()
    (tmp_path / "a" / "notes.txt").touch()
    with caplog.at_level(logging.INFO):
        assert list(expand(tmp_path)) == [str(tmp_path / "a" / "0.png")]
    assert [record.levelname for record in caplog.records] == ["INFO"]
    caplog.clear()
    (tmp_path / "a" / ".DS_Store").unlink()
    (tmp_path / "a" / "notes.txt").unlink()
    with caplog.at_level(logging.INFO):
        assert len(list(expand(tmp_path))) == 1
    assert not caplog.records


def test_linked_files_and_linked_class_folders_are_taken(tmp_path: Path) -> None:
    far = write(tmp_path / "far" / "x.png")
    root = tmp_path / "photos"
    root.mkdir()
    (root / "cat").symlink_to(far.parent)
    write(root / "dog" / "0.png")
    (root / "dog" / "1.png").symlink_to(far)
    assert [folder.name for folder in class_folders(root)] == ["cat", "dog"]
    assert image_files(root / "cat") == [root / "cat" / "x.png"]
    assert image_files(root / "dog") == [root / "dog" / "0.png", root / "dog" / "1.png"]


def test_numbered_folders_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(1, 13):
        (tmp_path / str(number)).mkdir()
    assert [folder.name for folder in class_folders(tmp_path)] == [str(number) for number in range(1, 13)]


@pytest.mark.usefixtures("without_heif")
def test_a_class_of_unreadable_photographs_says_so(tmp_path: Path) -> None:
    write(tmp_path / "a" / "0.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.heic").touch()
    with pytest.raises(InputError, match=r"class folder .*b has no images .*; left out: 1 \.heic file \(to read them"):
        list(labelled_files(tmp_path))


def test_left_out_counts_by_reason() -> None:
    left_out = LeftOut()
    assert str(left_out) == ""
    left_out.add("file")
    left_out.add("file")
    left_out.add("link there", "links there")
    assert str(left_out) == "2 files, 1 link there"


@pytest.mark.skipif("avif" not in features.modules or not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read_where_pillow_does(tmp_path: Path) -> None:
    assert load_image(write(tmp_path / "a.avif", "AVIF")).size == (8, 8)
    assert image_files(tmp_path) == [tmp_path / "a.avif"]


@pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="pillow-heif is not installed")
def test_heic_is_read_with_the_optional_package(tmp_path: Path) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    assert load_image(write(tmp_path / "a.heic", "HEIF")).size == (8, 8)
    assert image_files(tmp_path) == [tmp_path / "a.heic"]


def test_parts_of_a_data_set_are_not_taken_for_its_classes(tmp_path: Path) -> None:
    for name in ("test/cup/1.png", "Train/cup/2.png", "Train/plate/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    said = (
        rf"holds no classes but Train and test, parts of .* of them: {tmp_path}/Train\. If these are classes, put their"
    )
    with pytest.raises(InputError, match=said):
        class_folders(tmp_path)
    assert [folder.name for folder in class_folders(tmp_path / "Train")] == ["cup", "plate"]
    assert [folder.name for folder in class_folders(tmp_path, known=("test", "Train", "cup"))] == ["Train", "test"]
    with pytest.raises(InputError, match=said + r" images into them and not deeper, or name them in x\.y$"):
        class_folders(tmp_path, known=("test", "cup"), advice="name them in x.y")
    (tmp_path / "test/4.png").touch()  # a class of this name
    assert {folder.name for folder in class_folders(tmp_path)} == {"test", "Train"}
    (tmp_path / "test/4.png").unlink()
    (tmp_path / "cup").mkdir()
    assert {folder.name for folder in class_folders(tmp_path)} == {"cup", "test", "Train"}


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems have no such names")
def test_a_class_cannot_have_a_name_that_is_no_text(tmp_path: Path) -> None:
    for name in (b"caf\xe9", "th\u00e9".encode()):
        (tmp_path / os.fsdecode(name)).mkdir()
    with pytest.raises(
        InputError, match=r"class folder .*caf.* has a name that is not UTF-8, and no class can; rename it"
    ):
        class_folders(tmp_path)
    (tmp_path / os.fsdecode(b"caf\xe9")).rmdir()
    assert [folder.name for folder in class_folders(tmp_path)] == ["th\u00e9"]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems have no such names")
def test_one_name_stored_in_two_ways_is_refused(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    for name in (composed, apart, "dog"):
        write(tmp_path / name / "0.png")
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system takes both for one")
    with pytest.raises(InputError, match="two class folders of .* have one name, caf\u00e9, with") as found:
        from_class_folders(tmp_path)
    assert f"{composed!a}" in str(found.value)
    assert f"{apart!a}" in str(found.value)


def test_a_photograph_may_have_a_name_that_is_no_text(tmp_path: Path) -> None:
    """What a bundle records of it is text all the same: a build ended when it was written, after learning."""
    write(tmp_path / "cup" / os.fsdecode(b"caf\xe9.png"))
    images = from_class_folders(tmp_path)
    assert images.names == ("cup/caf\\udce9.png",)
    assert images.names[0].isascii()
    assert images.open_image(0).size == (8, 8)
    assert len(images.digests()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have UTF-8 names whatever the locale")
def test_a_name_that_python_alone_cannot_read_is_not_called_wrong(tmp_path: Path) -> None:
    (tmp_path / "th\u00e9").mkdir()
    code = (
        "from pathlib import Path; from p4q_edge.runtime.images.listing import class_folders; "
        f"class_folders(Path({str(tmp_path)!r}))"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert b"this Python takes names of files for ascii, in which the class folder" in done.stderr
    assert b"has none; set PYTHONUTF8=1" in done.stderr
