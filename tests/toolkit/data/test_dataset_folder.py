"""Folders that Hugging Face's `datasets` saved, in the form that its version 5.2 writes."""

import io
import json
import os
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from p4q_edge.data.readers import read_images
from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images.image_set import ImageSet

pa = pytest.importorskip("pyarrow")

FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), value).save(stream, "PNG")
    return stream.getvalue()


def save(folder: Path, parts: list[list[tuple[Any, Any]]], features: dict[str, Any] | None = None) -> Path:
    """Write image (value, or what the column holds) and label of each row, a file for each part."""
    folder.mkdir()
    names = [f"data-{number:05d}-of-{len(parts):05d}.arrow" for number in range(len(parts))]
    for name, rows in zip(names, parts, strict=True):
        images = [{"bytes": png(image), "path": None} if isinstance(image, int) else image for image, _ in rows]
        columns = {"image": pa.array(images, STRUCT), "label": pa.array([label for _, label in rows], pa.int64())}
        table = pa.table(columns)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    info = {"citation": "", "description": "", "features": features or FEATURES, "homepage": "", "license": ""}
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "3", "_format_type": None}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "state.json").write_text(json.dumps(state))
    return folder


PARTS = [[(1, 0), (2, 1), (3, 1)], [(4, 0), (5, 1)]]


def test_a_saved_data_set_is_read_in_order(tmp_path: Path) -> None:
    images = read_images(str(save(tmp_path / "set", PARTS)))
    assert images.names[3] == "set[3]"
    assert images.class_names == ("cat", "dog")
    assert images.labels.tolist() == [0, 1, 1, 0, 1]
    assert [images.open_image(i).getpixel((0, 0)) for i in (4, 0, 3, 2, 1)] == [5, 1, 4, 3, 2]
    assert images.read_bytes(2) == png(3)
    sent: ImageSet = ForkingPickler.loads(ForkingPickler.dumps(images))
    assert sent.digests() == images.digests()


def test_files_outside_of_the_folder_are_not_read(tmp_path: Path) -> None:
    save(tmp_path / "other", PARTS)
    folder = save(tmp_path / "set", PARTS)
    (folder / "data-00000-of-00002.arrow").unlink()
    state = {"_data_files": [{"filename": "../other/data-00000-of-00002.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="set cannot be read: .*Save it again"):
        read_images(str(folder))


@pytest.mark.parametrize(
    ("parts", "features", "message"),
    [
        (PARTS, {"image": {"_type": "Image"}}, "expected one column of ClassLabel, got 0 among image"),
        (
            PARTS,
            FEATURES | {"more": {"_type": "Image"}},
            "expected one column of Image, got 2 among image, label, more",
        ),
        (PARTS, {"photo": {"_type": "Image"}, "kind": FEATURES["label"]}, "set cannot be read"),
        ([[(1, 0), (2, 2)]], None, r"labels must be between 0 and 1 \(2 class names\), got 0 to 2"),
        ([[(1, 0), (2, -1)]], None, r"labels must be between 0 and 1 \(2 class names\), got -1 to 0"),
        ([[(1, None)]], None, "an image has no label; expected the number of a class for each image"),
        ([[]], None, "has no images; expected the number of a class for each image"),
        (PARTS, {"photo": {"_type": "Image"}, "label": FEATURES["label"]}, "cannot be read: .*photo.* does not exist"),
        (PARTS, FEATURES | {"label": {"_type": "ClassLabel"}}, "classes are not a list of words .*Save it again"),
        (PARTS, FEATURES | {"label": {"names": ["cat", ""], "_type": "ClassLabel"}}, "are not a list of words"),
        (PARTS, FEATURES | {"label": {"names": ["cat", "cat"], "_type": "ClassLabel"}}, "'cat' appears more than once"),
    ],
)
def test_data_sets_that_cannot_be_used(
    tmp_path: Path, parts: list[list[tuple[Any, Any]]], features: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_images(str(save(tmp_path / "set", parts, features)))


def save_columns(folder: Path, images: Any, labels: Any) -> Path:
    """Write one image with columns of any type."""
    save(folder, [[(1, 0)]])
    table = pa.table({"image": images, "label": labels})
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as out,
    ):
        out.write_table(table)
    return folder


def save_images(folder: Path, images: Any) -> Path:
    return save_columns(folder, images, pa.array([0]))


def save_labels(folder: Path, labels: Any) -> Path:
    return save_columns(folder, pa.array([{"bytes": png(1), "path": None}], STRUCT), labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat"], "labels are string; expected the number of a class for each image"),
        (
            pa.array([2**62], pa.timestamp("us")),
            r"labels are timestamp\[us\]; expected the number of a class",
        ),
        (
            pa.array([2**64 - 1], pa.uint64()),
            r"labels must be between 0 and 1 \(2 class names\), got 18446744073709551615 to",
        ),
    ],
)
def test_labels_that_no_class_can_have_are_told_of(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_images(str(save_labels(tmp_path / "set", labels)))


def test_words_in_place_of_bytes_are_not_opened_as_paths(tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes(png(7))
    images = read_images(str(save_images(tmp_path / "set", pa.array([{"bytes": str(outside)}]))))
    for read in (images.open_image, images.read_bytes):
        with pytest.raises(InputError, match="set, image 0: it is not in the file"):
            read(0)
    with pytest.raises(InputError, match="it is not in the file"):
        images.digests()


def test_what_lies_beside_an_image_and_cannot_be_read_is_told_of(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.timestamp("s"))])
    beside = pa.array([{"bytes": png(1), "path": None}], STRUCT)
    late = pa.StructArray.from_arrays([beside.field(0), pa.array([2**62], pa.timestamp("s"))], fields=list(kind))
    images = read_images(str(save_images(tmp_path / "set", late)))
    with pytest.raises(InputError, match=r"set, image 0: it cannot be read \(.+\); save the data set again"):
        images.open_image(0)


def test_pipes_and_files_named_twice_are_not_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", PARTS)
    state = {"_data_files": [{"filename": "data-00000-of-00002.arrow"}] * 2}
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match=r"set: state.json names a file twice. Save it again"):
        read_images(str(folder))
    os.mkfifo(folder / "pipe")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "pipe"}]}))
    with pytest.raises(InputError, match="set cannot be read: .*pipe is not a file. Save it again"):
        read_images(str(folder))


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00002.arrow"])
def test_damaged_files_are_told_of(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path / "set", PARTS)
    (folder / name).write_bytes(b"{")
    with pytest.raises(InputError, match=f"{folder} (is not a saved data set|cannot be read)"):
        read_images(str(folder))


@pytest.mark.parametrize("image", [None, {"bytes": None, "path": "elsewhere.png"}])
def test_images_that_are_not_embedded_are_told_of(tmp_path: Path, image: object) -> None:
    images = read_images(str(save(tmp_path / "set", [[(1, 0), (image, 1)]])))
    assert images.open_image(0).getpixel((0, 0)) == 1
    with pytest.raises(InputError, match=r"set, image 1: it is not in the file.* embed the images"):
        images.open_image(1)


def test_an_offset_beyond_its_file_is_told_of_and_not_followed(tmp_path: Path) -> None:
    """Arrow maps a file as it is: this one ended the process with a bus error."""
    folder = save(tmp_path / "set", [[(1, 0), (2, 1)]])
    (file,) = folder.glob("*.arrow")
    first, second = len(png(1)), len(png(1)) + len(png(2))
    offsets = [each.to_bytes(4, "little") for each in (0, first, second)]
    found = file.read_bytes()
    assert found.count(b"".join(offsets)) == 1
    file.write_bytes(found.replace(b"".join(offsets), b"".join(offsets[:2]) + (1 << 30).to_bytes(4, "little")))
    with pytest.raises(InputError, match="set cannot be read: .*offsets .*larger than values array.* Save it again"):
        read_images(str(folder))
