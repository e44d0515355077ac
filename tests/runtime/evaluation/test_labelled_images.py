"""Labelled images of a device: how folders are matched, what is left out, and when pixels are kept."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.images import ToDecode, labelled, require_decodable
from p4q_edge.runtime.images.preprocessing import PreprocessSpec
from p4q_edge.runtime.storage.files import sha256_file

SPEC = PreprocessSpec(
    size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic", resize_mode="shortest", fill_color=0
)


def folders(root: Path, **counts: int) -> Path:
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def test_folders_are_matched_by_name(tmp_path: Path) -> None:
    images = labelled.read_class_folders(folders(tmp_path, owl=2, cat=1), class_names=("cat", "dog", "owl"), spec=SPEC)
    assert images.labels.tolist() == [0, 2, 2]
    assert images.pixels[slice(0, 2)].shape == (2, 3, 8, 8)
    assert images.source.startswith("3 images of")


def test_images_of_one_class_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labelled.read_class_folders(folders(tmp_path / "all", owl=1, cat=1), class_names=("cat", "owl"), spec=SPEC)
    assert not caplog.records
    labelled.read_class_folders(folders(tmp_path / "one", owl=3), class_names=("cat", "owl"), spec=SPEC)
    assert f"--data {tmp_path / 'one'}: all 3 images are of the class 'owl'" in caplog.text


def test_images_that_were_learned_from_are_left_out(tmp_path: Path) -> None:
    root = folders(tmp_path, cat=2, dog=2)
    learned = frozenset({sha256_file(root / "cat" / "0.png")})
    images = labelled.read_class_folders(root, class_names=("cat", "dog"), spec=SPEC, learned=learned)
    assert (images.labels.tolist(), images.left_out) == ([0, 1, 1], 1)
    everything = frozenset(sha256_file(path) for path in root.rglob("*.png"))
    with pytest.raises(InputError, match="learned from all of .*, 4 images; accuracy on them means nothing"):
        labelled.read_class_folders(root, class_names=("cat", "dog"), spec=SPEC, learned=everything)


def test_folders_may_have_the_names_that_were_learned_from(tmp_path: Path) -> None:
    root = folders(tmp_path, n02=1, n01=2)
    images = labelled.read_class_folders(root, class_names=("dog", "cat"), spec=SPEC, other_names=("n02", "n01"))
    assert images.labels.tolist() == [1, 1, 0]
    with pytest.raises(InputError, match="the classes 'n01' and 'n02', which are not among the 2 known classes"):
        labelled.read_class_folders(root, class_names=("dog", "cat"), spec=SPEC)


def test_empty_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a directory"):
        labelled.read_class_folders(tmp_path / "x", class_names=("cat",), spec=SPEC)
    with pytest.raises(InputError, match="has no class folders"):
        labelled.read_class_folders(tmp_path, class_names=("cat",), spec=SPEC)
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError, match="has no images"):
        labelled.read_class_folders(tmp_path, class_names=("cat",), spec=SPEC)


@pytest.mark.parametrize(("limit", "again"), [(1 << 30, []), (12, [2]), (1, [1, 2])])
def test_pixels_are_decoded_once_where_they_fit(limit: int, again: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled, "MAX_CACHED_BYTES", limit)
    read: list[int] = []

    def decode(index: int) -> np.ndarray:
        read.append(index)
        return np.full((3, 2, 2), index, np.uint8)

    pixels = labelled.Pixels(decode, 5, (3, 2, 2))
    for _ in range(2):
        assert pixels[slice(1, 3)][:, 0, 0, 0].tolist() == [1, 2]
    assert read == [1, 2, *again]
    assert pixels[slice(2, 2)].shape == (0, 3, 2, 2)


def test_of_many_damaged_images_the_first_few_are_named() -> None:
    def decode(index: int) -> np.ndarray:
        if index % 2:
            raise InputError(f"{index}.png is damaged. Save it again.")
        return np.zeros((3, 2, 2), np.uint8)

    pixels = labelled.Pixels(decode, 50, (3, 2, 2))

    def of(rows: Sequence[int], source: str = "photos") -> ToDecode:
        return ToDecode.of_pixels(pixels, rows, source=source)

    require_decodable(of(range(0, 50, 2)))
    with pytest.raises(InputError) as caught:
        require_decodable(of(range(30)))
    assert str(caught.value).startswith(
        "photos: 15 of 30 images cannot be read: 1.png is damaged. Save it again; 3.png"
    )
    assert str(caught.value).endswith("19.png is damaged. Save it again; and 5 more. Replace them, or take them out.")
    with pytest.raises(InputError) as caught:
        require_decodable(of([1, 2]))
    assert str(caught.value).endswith(
        "1 of 2 images cannot be read: 1.png is damaged. Save it again. Replace it, or take it out."
    )
    with pytest.raises(InputError) as caught:
        require_decodable(of([1]), of([2]), of([3], "others"))
    assert str(caught.value) == (
        "photos: 1 of 1 image cannot be read: 1.png is damaged. Save it again. Replace it, or take it out. "
        "others: 1 of 1 image cannot be read: 3.png is damaged. Save it again. Replace it, or take it out."
    )


def test_a_drawn_subset_keeps_images_with_their_labels() -> None:
    pixels = labelled.Pixels(lambda index: np.full((3, 2, 2), index, np.uint8), 50, (3, 2, 2))
    images = labelled.LabelledImages(pixels=pixels, labels=np.arange(50), digest="d", source="50 images")
    rows = labelled.draw_subset(50, 10, seed=1)
    assert (
        rows.tolist() == labelled.draw_subset(50, 10, seed=1).tolist() != labelled.draw_subset(50, 10, seed=2).tolist()
    )
    part = labelled.subset(images, rows)
    assert part.pixels[slice(0, 10)][:, 0, 0, 0].tolist() == part.labels.tolist() == rows.tolist()
    assert part.source == "10 of 50 images"
    assert part.digest != "d"
    assert labelled.subset(images, labelled.draw_subset(50, 0, seed=1)) is images


def test_images_and_some_of_them_share_their_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kept its own copies, up to 512 MiB."""
    monkeypatch.setattr(labelled, "MAX_CACHED_BYTES", 4 * 12)
    read: list[int] = []

    def decode(index: int) -> np.ndarray:
        read.append(index)
        return np.full((3, 2, 2), index, np.uint8)

    pixels = labelled.Pixels(decode, 10, (3, 2, 2))
    assert len(pixels[slice(0, 4)]) == 4
    images = labelled.LabelledImages(pixels=pixels, labels=np.arange(10), digest="d", source="10 images")
    part = labelled.subset(images, np.array([2, 5, 6, 7]))
    some = labelled.subset(part, np.array([1, 3]))
    for _ in range(2):
        assert part.pixels[slice(0, 4)][:, 0, 0, 0].tolist() == [2, 5, 6, 7]
        assert some.pixels[slice(0, 2)][:, 0, 0, 0].tolist() == some.labels.tolist() == [5, 7]
    assert read == [0, 1, 2, 3, 5, 6, 7]  # the others made room, and 2 stayed
    assert len(pixels._kept) == 4
    assert pixels[slice(1, 2)][0, 0, 0, 0] == 1
    assert part.pixels[slice(2, 2)].shape == (0, 3, 2, 2)


def test_some_rows_of_an_array() -> None:
    array = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    images = labelled.LabelledImages(pixels=array, labels=np.arange(10), digest="d", source="10 images")
    assert labelled.subset(images, np.array([3, 8])).pixels[slice(0, 9)].ravel().tolist() == [3, 8]
