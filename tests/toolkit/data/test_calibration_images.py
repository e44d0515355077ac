"""Images without labels: where they may come from, how they are split, and the drawn ones."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p4q_edge.data import check_data, read_split
from p4q_edge.data.few_shot import split_without_labels
from p4q_edge.data.readers import class_names_of, read_calibration_images
from p4q_edge.demo import LEAVES, draw_leaves
from p4q_edge.recipe import DEMO_DATA, DRAWN_IMAGES, DataSection
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.images import ImageSet

TINY = Path(__file__).parents[2] / "runtime" / "data" / "tiny.p4q"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Twenty images: some in the folder itself, some below."""
    folder = tmp_path / "photographs"
    for index in range(20):
        below = folder / "monday" if index % 2 else folder
        below.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (index * 12, 0, 9)).save(below / f"{index}.png")
    return folder


def test_a_folder_gives_its_images_at_any_depth(photographs: Path) -> None:
    found = read_calibration_images(str(photographs))
    assert len(found) == 20
    assert set(found.labels) == {-1}
    assert found.class_names == ()
    assert {"0.png", "monday/1.png"} <= set(found.names)


def test_a_bundle_gives_its_golden_samples() -> None:
    found = read_calibration_images(str(TINY))
    assert len(found) > 0
    assert found.open_image(0).mode == "RGB"
    assert found.names[0] == "tiny.p4q golden[0]"


def test_labels_of_labelled_images_are_not_used() -> None:
    found = read_calibration_images(DEMO_DATA)
    assert (len(found), set(found.labels)) == (1797, {-1})


def test_drawn_images_are_the_same_at_all_times_and_differ_from_each_other() -> None:
    found = read_calibration_images(DRAWN_IMAGES)
    assert len(found) == LEAVES
    digests = found.digests()
    assert len(set(digests)) == LEAVES
    first = np.asarray(draw_leaves(0))
    assert (first == np.asarray(found.open_image(0))).all()
    assert first.shape == (320, 320, 3)
    # Large discs and small ones: neighbours are alike, the whole is not.
    assert np.abs(np.diff(first.astype(int), axis=1)).mean() < 0.5 * first.std()


@pytest.mark.parametrize("source", ["", "nowhere", "nowhere.p4q"])
def test_what_does_not_exist_is_answered_with_what_may_be_named(source: str) -> None:
    with pytest.raises(UsageError, match=r"does not exist; name a folder of images, .* bundle \(.p4q\) or demo:leaves"):
        read_calibration_images(source)


def test_an_empty_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no images; name a folder with some, at any depth"):
        read_calibration_images(str(tmp_path))


@pytest.mark.parametrize(("count", "held_out"), [(20, 4), (10, 2), (9, 0), (1, 0)])
def test_one_of_five_is_held_out_of_enough(photographs: Path, count: int, held_out: int) -> None:
    images = read_calibration_images(str(photographs)).subset(range(count))
    split = split_without_labels(images, None, ("a", "b"), seed=3)
    assert split.calibration is not None
    assert split.held_out is not None
    assert (len(split.calibration), len(split.held_out)) == (count - held_out, held_out)
    assert not set(split.calibration.names) & set(split.held_out.names)
    assert split.measured is split.calibration
    assert (len(split.train), len(split.test), split.train.class_names) == (0, 0, ("a", "b"))
    again = split_without_labels(images, None, ("a", "b"), seed=3)
    assert again.held_out is not None
    assert again.held_out.names == split.held_out.names


def test_no_range_is_measured_on_an_image_that_is_tested_on(photographs: Path) -> None:
    images = read_calibration_images(str(photographs))
    tested: ImageSet = images.subset(range(5))
    tested = ImageSet(
        names=tested.names,
        labels=np.zeros(5, np.int64),
        class_names=("a",),
        open_image=tested.open_image,
        read_bytes=tested.read_bytes,
    )
    split = split_without_labels(images, tested, ("b", "a"), seed=0)
    assert split.calibration is not None
    assert split.held_out is not None
    assert len(split.calibration) + len(split.held_out) == 15
    assert not set(split.test.digests()) & {*split.calibration.digests(), *split.held_out.digests()}
    assert split.test.labels.tolist() == [1] * 5  # by name
    with pytest.raises(InputError, match="has no image that data.test does not have; name others"):
        split_without_labels(images.subset(range(5)), tested, ("b", "a"), seed=0)


@pytest.mark.parametrize("names", [(), ("cup",), ("cup", " ")])
def test_too_few_names_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="at least 2 names are needed, none of them empty"):
        class_names_of(names)


def test_names_that_are_alike_are_refused() -> None:
    with pytest.raises(InputError, match="'caf\u00e9' appears more than once"):
        class_names_of(("caf\u00e9", "cafe\u0301"))


def test_all_problems_are_told_at_once(photographs: Path) -> None:
    (photographs / "bad.png").write_bytes(b"no image")
    section = DataSection(calibration=str(photographs), class_names=("a", "b"), templates=("a photo",))
    split, problems = check_data(section, seed=0)
    assert split is not None
    assert [any(part in problem for problem in problems) for part in ("has no {}", "bad.png")] == [True, True]
    missing = DataSection(calibration="nowhere", class_names=("a", "b"))
    assert check_data(missing, seed=0)[0] is None


def test_a_recipe_without_labels_is_read(photographs: Path) -> None:
    split = read_split(DataSection(calibration=str(photographs), class_names=(" a ", "b")), seed=0)
    assert split.train.class_names == ("a", "b")
    assert len(split.measured) == 16


def test_of_drawn_images_none_is_held_out() -> None:
    split = read_split(DataSection(calibration=DRAWN_IMAGES, class_names=("a", "b")), seed=0)
    assert split.held_out is not None
    assert (len(split.measured), len(split.held_out)) == (LEAVES, 0)
