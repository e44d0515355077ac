"""Labelled images: every source, and what bad input is told."""

import csv
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import write_file
from PIL import Image

from p4q_edge.data.preflight import check_data
from p4q_edge.data.readers import read_images
from p4q_edge.recipe.toml import read_recipe
from p4q_edge.runtime.errors import InputError, UsageError

# --- recipes


# --- images


def test_class_folders(folder: Path) -> None:
    images = read_images(str(folder))
    assert images.class_names == ("cat", "dog")
    assert images.labels.tolist() == [0] * 4 + [1] * 4
    assert images.names[5] == "dog/1.png"
    assert images.open_image(5).getpixel((0, 0))[0] == 41


def test_tables_agree_with_folders(folder: Path) -> None:
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        table = folder / f"table{suffix}"
        with table.open("w", newline="") as stream:
            writer = csv.writer(stream, delimiter=delimiter)
            writer.writerow(["path", "label"])
            writer.writerows([f"{name}/{i}.png", name] for name in ("cat", "dog") for i in range(4))
        images = read_images(str(table))
        assert images.digests() == read_images(str(folder)).digests()
        assert images.class_names == ("cat", "dog")


def test_arrays(tmp_path: Path) -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", images=arrays, labels=np.array([0, 1, 0, 1, 0, 1]), class_names=np.array(["a", "b"]))
    images = read_images(str(tmp_path / "d.npz"))
    assert images.class_names == ("a", "b")
    assert np.array_equal(np.asarray(images.open_image(3)), arrays[3])


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    objects = np.array([{"a": 1}, None], dtype=object)
    np.savez(tmp_path / "d.npz", images=objects, labels=np.zeros(2), class_names=objects)
    with pytest.raises(InputError, match="no pickles"):
        read_images(str(tmp_path / "d.npz"))


def _tar(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def _png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), value).save(stream, "PNG")
    return stream.getvalue()


def test_webdataset_tars(tmp_path: Path) -> None:
    members = {"b.png": _png(1), "b.cls": b"1", "a.png": _png(2), "a.cls": b"0\n", "classnames.txt": b"cat\nbig dog\n"}
    images = read_images(_tar(tmp_path / "d.tar", members))
    assert images.names == ("a", "b")
    assert images.labels.tolist() == [0, 1]
    assert images.class_names == ("cat", "big dog")
    assert images.open_image(1).getpixel((0, 0)) == 1


def test_the_demo_digits() -> None:
    images = read_images("demo:digits")
    assert len(images) == 1797
    assert images.class_names[3] == "digit three"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: str(p / "nowhere"), UsageError, "does not exist; name a folder of class folders"),
        (lambda p: write_file(p / "d.bin", b""), UsageError, r"has suffix '\.bin'; expected a folder"),
        (lambda p: str(_mkdir(p / "empty")), InputError, "has no class folders"),
        (lambda p: str(_mkdir(p / "one" / "cat").parent), InputError, "cat has no images"),
        (lambda p: write_file(p / "d.csv", b""), InputError, "has no rows"),
        (lambda p: write_file(p / "d.csv", b"a.png\n"), InputError, "line 1: expected path and label"),
        (
            lambda p: write_file(p / "d.csv", b"a.png,cat\n"),
            InputError,
            r"line 1: .*a\.png does not exist; paths are relative",
        ),
        (lambda p: write_file(p / "d.npz", b"x"), InputError, "needs arrays images, labels and class_names"),
        (lambda p: write_file(p / "d.tar", b"x" * 600), InputError, "is not an uncompressed webdataset tar"),
        (lambda p: _tar(p / "d.tar", {"a.png": _png(0)}), InputError, r"every KEY\.jpg needs a KEY\.cls"),
        (lambda p: _tar(p / "d.tar", {"a.png": _png(0), "a.cls": b"x"}), InputError, "uncompressed webdataset tar"),
    ],
)
def test_sources_that_cannot_be_used(
    tmp_path: Path, make: Callable[[Path], str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_images(make(tmp_path))


def _mkdir(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_labels_beyond_the_class_names(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "d.npz",
        images=np.zeros((1, 2, 2, 3), np.uint8),
        labels=np.array([5]),
        class_names=np.array(["a", "b"]),
    )
    with pytest.raises(InputError, match="labels must be between 0 and 1 .2 class names., got 5 to 5"):
        read_images(str(tmp_path / "d.npz"))


# --- words


# --- splits


# --- pixels


@pytest.mark.parametrize("key", ["train", "test", "unlabelled", "class_names", "templates", "class_prompts"])
def test_an_address_in_a_recipe_is_told_as_it_was_written(key: str, folder: Path) -> None:
    keys = {"train": f'"{folder}"', key: '"https://example.org/set.tar"'}
    recipe = folder.parent / "r.toml"
    lines = [f"{name} = {value}\n" for name, value in keys.items()]
    recipe.write_text("[model]\nname = 'demo'\n[learn]\nteacher = 'learned'\n[data]\n" + "".join(lines))
    _, problems = check_data(read_recipe(recipe).data, seed=0)
    assert f"data.{key}: https://example.org/set.tar is an address, and nothing is fetched" in "\n".join(problems)
