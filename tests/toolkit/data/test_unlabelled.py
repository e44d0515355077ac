"""Images without labels: from folders of any form or any labelled source, without copies of the others."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p4q_edge.data.few_shot import Split
from p4q_edge.data.preflight import check_data
from p4q_edge.data.readers import read_split, read_unlabelled
from p4q_edge.recipe.schema import DataSection
from p4q_edge.runtime.errors import InputError, UsageError


def paint(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


@pytest.fixture
def section(tmp_path: Path) -> DataSection:
    for label, name in enumerate(("cat", "dog")):
        for number in range(6):
            paint(tmp_path / "photos" / name / f"{number}.png", 10 * label + number)
    return DataSection(train=str(tmp_path / "photos"), shots=3)


@pytest.fixture
def split(section: DataSection) -> Split:
    return read_split(section, seed=0)


def named(section: DataSection, source: Path) -> DataSection:
    return DataSection(train=section.train, shots=section.shots, unlabelled=str(source))


def test_none_is_read_where_none_is_named(section: DataSection, split: Split) -> None:
    assert read_unlabelled(section, split) is None


@pytest.mark.parametrize("names", [("a.png", "b.png"), ("x/a.png", "b.png"), ("x/a.png", "y/z/b.png")])
def test_a_folder_may_have_any_form(section: DataSection, split: Split, tmp_path: Path, names: tuple[str, ...]) -> None:
    for value, name in enumerate(names, 100):
        paint(tmp_path / "more" / name, value)
    (tmp_path / "more" / "notes.txt").write_text("left out")
    found = read_unlabelled(named(section, tmp_path / "more"), split)
    assert found is not None
    assert sorted(found.names) == sorted(names)
    assert set(found.labels) == {0}
    assert {found.open_image(index).getpixel((0, 0))[0] for index in range(2)} == {100, 101}  # type: ignore[index]


def test_labels_of_a_labelled_source_are_not_read(section: DataSection, split: Split, tmp_path: Path) -> None:
    images = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (100, 101, 102)])
    np.savez(tmp_path / "more.npz", images=images, labels=np.array([0, 1, 2]), class_names=np.array(["a", "b", "c"]))
    found = read_unlabelled(named(section, tmp_path / "more.npz"), split)
    assert found is not None
    assert (len(found), found.labels.tolist(), found.class_names) == (3, [0, 0, 0], ("",))


def test_copies_of_learned_and_tested_images_are_left_out(
    section: DataSection, split: Split, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paint(tmp_path / "photos" / "new.png", 100)
    with caplog.at_level(logging.INFO, logger="p4q_edge"):
        found = read_unlabelled(named(section, tmp_path / "photos"), split)
    assert found is not None
    assert found.names == ("new.png",)
    assert len(split.train) + len(split.test) == 12
    assert "data.unlabelled: 1 image, 12 of" in caplog.text


def test_a_source_of_copies_alone_is_refused(section: DataSection, split: Split) -> None:
    with pytest.raises(
        InputError, match=r"data\.unlabelled: .* has no image beside those .* \(12 in all\); name other"
    ):
        read_unlabelled(named(section, Path(section.train)), split)


def test_a_missing_source_is_told_of_before_anything_runs(section: DataSection, split: Split, tmp_path: Path) -> None:
    missing = named(section, tmp_path / "none")
    with pytest.raises(UsageError, match=r"data\.unlabelled: .*none does not exist; name a folder"):
        read_unlabelled(missing, split)
    assert "data.unlabelled" in "; ".join(check_data(missing, seed=0)[1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"data\.unlabelled: .*empty has no images; name a folder with some, at any"):
        read_unlabelled(named(section, tmp_path / "empty"), split)


def test_an_image_that_cannot_be_read_is_found_before_anything_runs(section: DataSection, tmp_path: Path) -> None:
    paint(tmp_path / "more" / "good.png", 100)
    (tmp_path / "more" / "bad.png").write_bytes(b"no image")
    _, problems = check_data(named(section, tmp_path / "more"), seed=0)
    assert len(problems) == 1
    assert "bad.png" in problems[0]
