"""Sources of many files: shards by braces, sets that travel to other processes, folders without a stat of each file."""

import io
import os
import tarfile
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from p4q_edge.data.archive_readers import expand_braces
from p4q_edge.data.image_set import ImageStream
from p4q_edge.data.readers import read_images
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.images.image_set import ImageSet
from p4q_edge.runtime.images.preprocessing import PreprocessSpec

SPEC = PreprocessSpec(size=(4, 4), mean=(0.5,) * 3, std=(0.5,) * 3)


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), value).save(stream, "PNG")
    return stream.getvalue()


def write_shard(path: Path, values: dict[str, tuple[int, int]], *, class_names: bytes = b"") -> None:
    """A shard of images by key: grey value and class."""
    members = {f"{key}.png": png(value) for key, (value, _) in values.items()}
    members |= {f"{key}.cls": str(label).encode() for key, (_, label) in values.items()}
    if class_names:
        members["classnames.txt"] = class_names
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path: Path) -> str:
    for number in range(12):
        write_shard(tmp_path / f"s-{number:03d}.tar", {"b": (number, 0), "a": (100 + number, number % 3)})
    return str(tmp_path / "s-{000..011}.tar")


def test_shards_are_one_set_in_order(shards: str) -> None:
    images = read_images(shards)
    assert images.names[:3] == ("s-000.tar/a", "s-000.tar/b", "s-001.tar/a")
    assert images.labels[::2].tolist() == [number % 3 for number in range(12)]
    assert images.class_names == ("class 0", "class 1", "class 2")
    assert [images.open_image(i).getpixel((0, 0)) for i in (0, 1, 22, 23)] == [100, 0, 111, 11]
    one = read_images(shards.replace("{000..011}", "007"))
    assert one.names == ("a", "b")


def test_lists_and_several_braces(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "more-0", "more-1"):
        write_shard(tmp_path / f"{name}.tar", {"k": (1, 0)}, class_names=b"cat\n")
    images = read_images(str(tmp_path / "{train,more}-{0..1}.tar"))
    assert images.names == tuple(f"{name}.tar/k" for name in ("train-0", "train-1", "more-0", "more-1"))
    assert images.class_names == ("cat",)


def test_a_file_whose_name_has_braces_is_itself(tmp_path: Path) -> None:
    write_shard(tmp_path / "s-{0..1}.tar", {"k": (1, 0)})
    assert read_images(str(tmp_path / "s-{0..1}.tar")).names == ("k",)


@pytest.mark.parametrize(
    ("braces", "message"),
    [
        ("s-{000..020}.tar", r"9 of 21 shards of .* do not exist, the first is .*s-012\.tar"),
        ("s-{011..000}.tar", r"\{011\.\.000\} must count up, with numbers of one width"),
        ("s-{00..011}.tar", "must count up, with numbers of one width"),
        ("s-{000..011.tar", r"an unmatched brace; write e\.g\. shards-\{000000\.\.000099\}\.tar"),
        ("s-000..011}{0,1}.tar", "an unmatched brace"),
        ("s-{}.tar", r"\{\} is neither a range nor a list; write e\.g\."),
        ("s-{abc}.tar", "neither a range nor a list"),
        ("s-{a..c}.tar", "neither a range nor a list"),
        ("s-{0,}.tar", "neither a range nor a list"),
        ("s-{000000..999999}.tar", "names more than 100000 files"),
        ("s-{000..999}{000..999}.tar", "names 1000000 files; at most 100000 are read"),
        ("s-{000,001,000}.tar", "names a shard twice; name each once"),
        ("s-{000..001}.csv", r"stands for several files, which must be \.tar shards"),
    ],
)
def test_braces_that_stand_for_nothing(shards: str, braces: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"data.train: .*{message}"):
        read_images(str(Path(shards).parent / braces), key="data.train")


@given(first=st.integers(0, 300), count=st.integers(1, 40), width=st.integers(0, 6))
def test_ranges_count_every_number_once(
    tmp_path_factory: pytest.TempPathFactory, first: int, count: int, width: int
) -> None:
    last = first + count - 1
    words = [f"{number:0{width}d}" for number in range(first, last + 1)]
    if width and len(words[0]) != len(words[-1]):
        return
    folder = tmp_path_factory.mktemp("shards")
    for word in words:
        (folder / f"{word}.tar").touch()
    found = expand_braces(f"{folder}/{{{words[0]}..{words[-1]}}}.tar", key="--data")
    assert [path.stem for path in found] == words


def test_shards_that_name_other_classes_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {"k": (1, 0)}, class_names=b"cat\ndog\n")
    write_shard(tmp_path / "1.tar", {"k": (1, 0)}, class_names=b"dog\ncat\n")
    with pytest.raises(InputError, match=r"0\.tar and .*1\.tar hold another classnames\.txt"):
        read_images(str(tmp_path / "{0,1}.tar"))


def test_a_damaged_image_is_named_with_its_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {"k": (1, 0)})
    data = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(data.replace(png(1)[:8], b"broken!!"))
    images = read_images(str(tmp_path / "{0,1}.tar"))
    with pytest.raises(InputError, match=r"1\.tar, 1\.tar/k: "):
        images.open_image(1)


def _folder(root: Path) -> str:
    for name in ("cat", "dog"):
        (root / "set" / name).mkdir(parents=True)
        (root / "set" / name / "0.png").write_bytes(png(len(name)))
    return str(root / "set")


def _arrays(root: Path) -> str:
    arrays = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.savez(root / "d.npz", images=arrays, labels=np.array([0, 1]), class_names=np.array(["a", "b"]))
    return str(root / "d.npz")


def _shards(root: Path) -> str:
    write_shard(root / "0.tar", {"k": (1, 0)})
    write_shard(root / "1.tar", {"k": (2, 1)})
    return str(root / "{0,1}.tar")


@pytest.mark.parametrize("make", [_folder, _arrays, _shards])
def test_sets_travel_to_other_processes(tmp_path: Path, make: object) -> None:
    images = read_images(make(tmp_path)).subset([1, 0])  # type: ignore[operator]
    sent: ImageSet = ForkingPickler.loads(ForkingPickler.dumps(images))  # what a process gets that does not fork
    assert sent.digests() == images.digests()
    stream = ImageStream(images=images, spec=SPEC, workers=0)
    assert np.array_equal(next(iter(stream.split(2))), ImageStream(images=sent, spec=SPEC, workers=0)[:2])


def test_class_folders_are_read_without_asking_about_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(_folder(tmp_path))
    for number in range(1, 40):
        (source / "cat" / f"{number}.png").write_bytes(b"")
    asked: list[str] = []

    def watched(name: str) -> None:
        original = getattr(os, name)

        def call(path: object, *args: object, **options: object) -> object:
            asked.append(str(path))
            return original(path, *args, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("stat", "lstat"):
        watched(name)
    assert len(read_images(str(source))) == 41
    assert [path for path in asked if path.endswith(".png")] == []
