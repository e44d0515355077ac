"""How many images of each class are learned from, and what is kept to test on."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p4q_edge.data.few_shot import Split, few_shot, make_split
from p4q_edge.data.preflight import check_data
from p4q_edge.data.readers import read_split
from p4q_edge.recipe.schema import DataSection
from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images.image_set import ImageSet


def counts(split: Split) -> tuple[list[int], list[int]]:
    classes = len(split.train.class_names)
    return (
        np.bincount(split.train.labels, minlength=classes).tolist(),
        np.bincount(split.test.labels, minlength=classes).tolist(),
    )


def unequal(toy_images: Callable[[int], ImageSet], *of_class: int) -> ImageSet:
    """So many images of each of the four classes."""
    images = toy_images(max(of_class))
    chosen = [i for label, count in enumerate(of_class) for i in np.flatnonzero(images.labels == label)[:count]]
    return images.subset(chosen)


@pytest.mark.parametrize(
    ("have", "shots", "learned", "tested"),
    [
        ((10, 10, 10, 10), 3, [3, 3, 3, 3], [7, 7, 7, 7]),
        ((10, 30, 16, 20), 16, [8, 16, 13, 16], [2, 14, 3, 4]),
        ((2, 3, 4, 5), 16, [2, 2, 3, 4], [0, 1, 1, 1]),
        ((4, 4, 4, 4), 0, [4, 4, 4, 4], [0, 0, 0, 0]),
    ],
)
def test_what_there_is_is_taken_and_a_share_is_kept_to_test_on(
    toy_images: Callable[[int], ImageSet],
    have: tuple[int, ...],
    shots: int,
    learned: list[int],
    tested: list[int],
) -> None:
    split = make_split(unequal(toy_images, *have), None, shots=shots, seed=0, test_limit=0)
    assert counts(split) == (learned, tested)
    assert set(split.train.names).isdisjoint(split.test.names)


def test_with_a_test_set_all_there_is_is_learned_from(
    toy_images: Callable[[int], ImageSet], caplog: pytest.LogCaptureFixture
) -> None:
    train = unequal(toy_images, 10, 30, 16, 20)
    test = toy_images(40).subset(np.flatnonzero(np.arange(160) % 40 >= 30))
    assert counts(make_split(train, test, shots=16, seed=0, test_limit=0)) == ([10, 16, 16, 16], [10, 10, 10, 10])
    assert caplog.messages == ["data.shots = 16: 1 class has fewer; learned from: red 10 of 10"]


def test_it_is_said_which_classes_have_fewer(
    toy_images: Callable[[int], ImageSet], caplog: pytest.LogCaptureFixture
) -> None:
    make_split(unequal(toy_images, 10, 30, 16, 20), None, shots=16, seed=0, test_limit=0)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        (
            "WARNING",
            "data.shots = 16: 2 classes have fewer; learned from, with a share kept to test on: red 8 of 10, "
            "blue 13 of 16",
        )
    ]


def test_nothing_left_to_test_on_is_said_and_no_error(
    toy_images: Callable[[int], ImageSet], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        split = make_split(toy_images(4), None, shots=0, seed=0, test_limit=0)
    assert (len(split.train), len(split.test)) == (16, 0)
    assert "all 16 images are learned from and none is left to test on: accuracy is cross-validated" in caplog.text


def test_one_class_alone_is_told_from_nothing(tmp_path: Path) -> None:
    (tmp_path / "cup").mkdir()
    for index in range(3):
        Image.new("RGB", (8, 8), (50 + index, 0, 0)).save(tmp_path / "cup" / f"{index}.png")
    section = DataSection(train=str(tmp_path), shots=2)
    with pytest.raises(InputError, match="at least 2 classes are needed, .*; got 'cup' alone. Add photos of another,"):
        read_split(section, seed=0)
    assert check_data(section, seed=0)[0] is None


def test_all_classes_with_too_few_images_are_named(toy_images: Callable[[int], ImageSet]) -> None:
    with pytest.raises(InputError, match=r"at least 2 .*: class 'red' has 1, 'blue' has 0\. Add photos of it"):
        few_shot(unequal(toy_images, 1, 4, 0, 4), shots=2, seed=0)
