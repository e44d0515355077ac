"""Class names, templates, few-shot splits and pixels."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import write_file, write_photo

from p4q_edge.data.augmentation import augment
from p4q_edge.data.few_shot import few_shot, make_split
from p4q_edge.data.image_set import pixels
from p4q_edge.data.readers import read_class_prompts, read_images, read_split, read_words
from p4q_edge.recipe.schema import DataSection
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.images.image_set import ImageSet
from p4q_edge.runtime.images.preprocessing import PreprocessSpec


def test_words_from_files(tmp_path: Path) -> None:
    text = write_file(tmp_path / "n.txt", b"# comment\ncat\n\n big dog \n")
    assert read_words(text, key="k") == ("cat", "big dog")
    assert read_words(write_file(tmp_path / "n.json", b'["cat", "dog"]'), key="k") == ("cat", "dog")
    assert read_words((), key="k") == ()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("n.txt", b"\n# only this\n", "names nothing"),
        ("n.txt", b"cat\ncat\n", "'cat' appears more than once"),
        ("n.json", b'{"a": 1}', "must hold a list of strings"),
        ("n.json", b"[", "must hold a list of strings"),
    ],
)
def test_words_that_cannot_be_used(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_words(write_file(tmp_path / name, data), key="data.class_names")


def test_words_from_a_missing_file() -> None:
    with pytest.raises(UsageError, match=r"data\.class_names: expected a list, or an existing \.txt or \.json file"):
        read_words("nowhere.txt", key="data.class_names")


def test_class_prompts(tmp_path: Path) -> None:
    path = write_file(tmp_path / "p.json", json.dumps({"cat": ["a cat", "my cat"]}).encode())
    assert read_class_prompts(path) == {"cat": ("a cat", "my cat")}
    assert read_class_prompts("") == {}
    with pytest.raises(InputError, match="is not of the form"):
        read_class_prompts(write_file(tmp_path / "q.json", b"[1]"))
    with pytest.raises(UsageError, match="does not exist"):
        read_class_prompts(str(tmp_path / "none.json"))


def test_few_shot_draws_are_seeded_and_disjoint(toy_images: Callable[[int], ImageSet]) -> None:
    images = toy_images(10)
    split = make_split(images, None, shots=3, seed=1, test_limit=0)
    assert np.bincount(split.train.labels).tolist() == [3, 3, 3, 3]
    assert len(split.test) == 28
    assert set(split.train.names).isdisjoint(split.test.names)
    assert few_shot(images, shots=3, seed=1) == few_shot(images, shots=3, seed=1)
    assert few_shot(images, shots=3, seed=1) != few_shot(images, shots=3, seed=2)
    assert len(make_split(images, None, shots=3, seed=1, test_limit=5).test) == 5


def test_a_test_image_that_is_also_learned_from_is_an_error(folder: Path) -> None:
    with pytest.raises(InputError, match=r"test image cat/.*\.png is also learned from"):
        read_split(DataSection(train=str(folder), test=str(folder), shots=3), seed=0)


def test_a_copy_under_another_name_is_found_by_its_bytes(folder: Path, tmp_path: Path) -> None:
    for label, name in enumerate(("cat", "dog")):
        write_photo(tmp_path / "other" / name / "new.png", 90 + label)
    write_photo(tmp_path / "other" / "dog" / "copy.png", 40)  # the bytes of dog/0.png
    with pytest.raises(InputError, match=r"test image dog/copy\.png is also learned from \(as dog/0\.png\)"):
        read_split(DataSection(train=str(folder), test=str(tmp_path / "other"), shots=4), seed=0)


def test_copies_within_one_folder_are_not_tested_on(folder: Path) -> None:
    for name in ("copy1.png", "copy2.png", "copy3.png", "copy4.png"):
        write_photo(folder / "cat" / name, 0)  # all equal cat/0.png
    split = read_split(DataSection(train=str(folder), shots=3), seed=0)
    assert set(split.train.digests()).isdisjoint(split.test.digests())


def test_class_names_must_fit_the_classes(folder: Path) -> None:
    with pytest.raises(InputError, match="1 class name was given for 2 classes"):
        read_split(DataSection(train=str(folder), class_names=("cat",), shots=2), seed=0)
    split = read_split(DataSection(train=str(folder), class_names=("a cat", "a dog"), shots=2), seed=0)
    assert split.test.class_names == ("a cat", "a dog")


def test_pixels_are_uint8_batches(toy_images: Callable[[int], ImageSet]) -> None:
    spec = PreprocessSpec(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    batch = pixels(toy_images(2), spec)
    assert batch.shape == (8, 3, 8, 8)
    assert batch.dtype is torch.uint8


def test_an_unreadable_image_is_named(folder: Path) -> None:
    (folder / "cat" / "0.png").write_bytes(b"not an image")
    spec = PreprocessSpec(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(InputError, match=r"0\.png"):
        pixels(read_images(str(folder)), spec)


def test_augmented_views_are_seeded_and_near_the_image() -> None:
    image = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    image[:, :, 10:22, 10:22] = 200
    first, again = (augment(image, generator=torch.Generator().manual_seed(5), flip=True) for _ in range(2))
    other = augment(image, generator=torch.Generator().manual_seed(6), flip=True)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float((first[:, :, 14:18, 14:18] == 200).float().mean()) == 1.0


def test_mirroring_needs_to_be_asked_for() -> None:
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(64, 3, 32, 32).contiguous()

    def falling(flip: bool) -> int:
        out = augment(ramp, generator=torch.Generator().manual_seed(0), flip=flip).float().mean(dim=(1, 2))
        return int((out[:, 26] < out[:, 6]).sum())

    assert falling(flip=False) == 0
    assert 16 < falling(flip=True) < 48
