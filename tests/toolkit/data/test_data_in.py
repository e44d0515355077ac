"""What people bring as labelled images and words, and what they are told when it cannot be used."""

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import png_bytes, write_file, write_npz, write_tar

from p4q_edge.data.archive_readers import checked_labels
from p4q_edge.data.image_set import pixels
from p4q_edge.data.readers import read_images
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.images.inputs import _files
from p4q_edge.runtime.images.labelled import read_class_folders
from p4q_edge.runtime.images.listing import image_files
from p4q_edge.runtime.images.preprocessing import PreprocessSpec

SPEC = PreprocessSpec(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)


# --- folders


def test_hidden_files_and_folders_are_no_images_and_suffixes_may_be_upper_case(photos: Path) -> None:
    write_file(photos / "cat" / "._0.png", b"what macOS leaves behind")
    write_file(photos / "cat" / ".thumbnails" / "0.png", b"small")
    write_file(photos / ".cache" / "0.png", b"no class")
    write_file(photos / "cat" / "notes.txt", b"text")
    write_file(photos / "cat" / "deeper" / "9.PNG", png_bytes(9))
    names = [f"cat/{i}.png" for i in range(4)] + ["cat/deeper/9.PNG"]
    assert list(read_images(str(photos)).names[:5]) == names
    assert image_files(photos / "cat") == [photos / name for name in names]
    assert len(read_class_folders(photos, class_names=("cat", "dog"), spec=SPEC).labels) == 9
    assert len(_files(photos)) == 9


# --- tables


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bom.csv", "\ufeffpath,label\ncat/0.png,cat\ndog/0.png,dog\n"),
        ("bare.csv", "\ufeffcat/0.png,cat\ndog/0.png,dog\n"),
        ("UPPER.CSV", "PATH,Label\ncat/0.png,cat\n\n,\ndog/0.png,dog\n"),
        ("other.tsv", "width\tlabel\tpath\n4\tcat\tcat/0.png\n4\tdog\tdog/0.png\n"),
        ("quoted.csv", '"cat/0.png","cat"\r\n"dog/0.png"," dog "\r\n'),
    ],
)
def test_tables_of_many_programs(photos: Path, name: str, text: str) -> None:
    images = read_images(write_file(photos / name, text.encode()))
    assert images.names == ("cat/0.png", "dog/0.png")
    assert images.class_names == ("cat", "dog")
    assert images.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"path,class\ncat/0.png,cat\n", r"has no column 'label'; its header names path, class; expected path and"),
        (b"label,file\ncat,cat/0.png\n", r"has no column 'path'; its header names label, file"),
        (b"path,label\ncat/0.png,cat\ncat/1.png\n", r"line 3: expected path and label, got \['cat/1\.png', ''\]"),
        (b"path,label\ncat/0.png,\n", "line 2: expected path and label"),
        (b"cat/0.png,cat\ncat/0.png,dog\n", r"line 2: cat/0\.png appears again, after line 1; name it once"),
        (b"cat/0.png,cat\ndog/../cat/./0.png,dog\n", r"line 2: dog/\.\./cat/\./0\.png appears again, after line 1"),
        (b"cat/0.png,cat\ncat,dog\n", r"line 2: .*cat does not exist; paths are relative"),
        (b"cat/0.png,\xe9t\xe9\n", r"is not UTF-8 \(invalid continuation byte at byte 10\); save it as UTF-8"),
        (b"path,label\n", "has no rows; expected lines of path,label"),
    ],
)
def test_tables_that_cannot_be_used(photos: Path, text: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_images(write_file(photos / "t.csv", text))


# --- arrays


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 4, 4, 3))}, r"images must be uint8 .* got float64 \(2, 4, 4, 3\)"),
        ({"images": np.zeros((2, 3, 4, 4), np.uint8)}, r"images must be uint8 .* got uint8 \(2, 3, 4, 4\)"),
        ({"labels": np.array([0.5, 1.0])}, r"labels must be integers, one for each of 2 images, got float64 \(2,\)"),
        ({"labels": np.array([0, 1, 1])}, r"one for each of 2 images, got int64 \(3,\)"),
        ({"labels": np.array([-1, 1])}, r"labels must be between 0 and 1 \(2 class names\), got -1 to 1"),
        ({"class_names": np.array(["a", "\udce9"])}, "class_names hold characters that Unicode does not have"),
        ({"class_names": np.array([1, 2])}, r"class_names must be a list of strings, got int64 \(2,\)"),
        ({"class_names": np.array(["a", "a"])}, "class name 'a' appears more than once"),
        ({"class_names": np.array(["a", None], dtype=object)}, "no pickles"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_images(write_npz(tmp_path / "d.npz", **arrays))


@pytest.mark.parametrize("labels", [[0, -1, 2**63], np.array([0, -1], np.int8), []])
def test_labels_are_told_as_whole_numbers(labels: Any) -> None:
    """Shards may have labels of several widths, of which NumPy would make decimals."""
    if not len(labels):
        assert checked_labels(labels, ("a", "b"), "set").dtype == np.int64
        return
    said = rf"set: labels must be between 0 and 1 \(2 class names\), got -1 to {max(labels)}$"
    with pytest.raises(InputError, match=said):
        checked_labels(labels, ("a", "b"), "set")


def test_damaged_array_files(tmp_path: Path) -> None:
    whole = Path(write_npz(tmp_path / "d.npz")).read_bytes()
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    for data in (whole[: len(whole) // 2], whole.replace(b"PK\x03\x04", b"PK\x03\x05", 1), single.getvalue()):
        with pytest.raises(InputError, match="needs arrays images, labels and class_names"):
            read_images(write_file(tmp_path / "damaged.npz", data))


# --- tars


def test_a_tar_is_read_lazily_and_by_the_rules_of_webdataset(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "d.TAR",
        ("./train/a.JPG", png_bytes(1)),
        ("train/a.CLS", b"1\n"),
        ("train/a.seg.png", b"a mask, not an image of its own"),
        ("train/._a.jpg", b"what macOS leaves behind"),
        ("train/b.png", png_bytes(2)),
        ("train/b.cls", b"0"),
        ("train/b.json", b"{}"),
        ("classnames.txt", b"\xef\xbb\xbfcat\n\nbig dog\n"),
    )
    images = read_images(path)
    assert images.names == ("train/a", "train/b")
    assert images.class_names == ("cat", "big dog")
    assert images.labels.tolist() == [1, 0]
    assert images.open_image(1).getpixel((0, 0)) == 2
    assert images.read_bytes(0) == png_bytes(1)
    Path(path).rename(tmp_path / "moved.tar")
    with pytest.raises(FileNotFoundError):  # it was not kept in memory
        images.read_bytes(0)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("/etc/a.png", png_bytes(0)), ("/etc/a.cls", b"0")],
            r"member '/etc/a\.png' leaves the archive; pack it again",
        ),
        ([("x/../../a.png", png_bytes(0))], r"member 'x/\.\./\.\./a\.png' leaves the archive"),
        ([("a.png", png_bytes(0)), ("a.png", png_bytes(1)), ("a.cls", b"0")], "d.tar: a appears more than once"),
        ([("a.png", png_bytes(0)), ("a.jpg", png_bytes(1)), ("a.cls", b"0")], "d.tar: a appears more than once"),
        ([("a.png", png_bytes(0)), ("a.cls", b"0"), ("a.cls", b"1")], "d.tar: a appears more than once"),
        ([("a.png", png_bytes(0)), ("a.cls", b"0"), ("b.cls", b"0")], "found 1 image, but b has only one"),
        ([("a.png", png_bytes(0)), ("a.cls", b"-1")], r"labels must be between 0 and -1|labels must be between"),
        (
            [("a.png", png_bytes(0)), ("a.cls", b"3"), ("classnames.txt", b"cat")],
            r"between 0 and 0 \(1 class name\), got 3",
        ),
        ([("a.png", png_bytes(0)), ("a.cls", b"cat")], "is not an uncompressed webdataset tar"),
        (
            [("a.png", png_bytes(0)), ("a.cls", b"0"), ("classnames.txt", b"\xff")],
            "is not an uncompressed webdataset tar",
        ),
        (
            [("a.png", png_bytes(0)), ("a.cls", b"0"), ("classnames.txt", b"cat"), ("x/classnames.txt", b"dog")],
            r"classnames\.txt and x/classnames\.txt both name the classes; pack one classnames\.txt",
        ),
        ([("a.txt", b"0")], r"every KEY\.jpg needs a KEY\.cls with its class index; found 0 images$"),
    ],
)
def test_tars_that_cannot_be_used(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_images(write_tar(tmp_path / "d.tar", *members))


def test_a_compressed_tar_says_what_to_do(tmp_path: Path) -> None:
    plain = Path(write_tar(tmp_path / "plain.tar", ("a.png", png_bytes(0)), ("a.cls", b"0"))).read_bytes()
    with pytest.raises(InputError, match="is not an uncompressed webdataset tar"):
        read_images(write_file(tmp_path / "d.tar", gzip.compress(plain)))


def test_a_damaged_image_in_a_tar_is_named(tmp_path: Path) -> None:
    images = read_images(write_tar(tmp_path / "d.tar", ("a.png", b"no image"), ("a.cls", b"0")))
    with pytest.raises(InputError, match=r"d\.tar, a: image of 8 bytes is not one of JPEG"):
        pixels(images, SPEC)


# --- words


# --- classes


# --- large data


def test_no_name_is_not_the_folder_of_the_process(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    with pytest.raises(UsageError, match=r"data\.train is empty; name a folder of class folders"):
        read_images("", key="data.train")


@pytest.mark.parametrize(
    ("name", "said"),
    [("x" * 300, "does not exist"), ("{" + ",".join(f"shard-{n}" for n in range(99)) + "}.tar", "99 of")],
)
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises((UsageError, InputError), match=said):
        read_images(str(tmp_path / name))
