"""What is found about a recipe's data before anything is run: everything, in one list."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from p4q_edge.data import preflight
from p4q_edge.data.few_shot import Split
from p4q_edge.data.preflight import SHOWN_IMAGES, check_data
from p4q_edge.recipe.schema import DataSection
from p4q_edge.runtime.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (16, 16), (100 * label, i, 9)).save(tmp_path / "train" / name / f"{i}.png")
    return tmp_path / "train"


def test_sound_data_give_the_split_and_no_problem(folder: Path) -> None:
    split, problems = check_data(DataSection(train=str(folder), shots=4), seed=0)
    assert not problems
    assert split is not None
    assert (len(split.train), len(split.test)) == (8, 32)


def test_what_keeps_a_split_from_being_drawn_is_told_also_where_a_second_look_finds_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a file that was being written when it was looked at first."""

    def refused(*_: object, **__: object) -> Split:
        raise InputError("it was locked")

    monkeypatch.setattr(preflight, "make_split", refused)
    split, problems = check_data(DataSection(train=str(folder), shots=4), seed=0)
    assert (split, problems) == (None, ["it was locked"])


def test_every_damaged_image_is_named(folder: Path) -> None:
    (folder / "cat" / "3.png").write_bytes((folder / "cat" / "3.png").read_bytes()[:50])
    (folder / "dog" / "7.png").write_bytes(b"")
    _, problems = check_data(DataSection(train=str(folder), shots=4), seed=0)
    assert len(problems) == 2
    assert any("cat/3.png cannot be decoded" in problem for problem in problems)
    assert any("dog/7.png is empty (0 bytes)" in problem for problem in problems)


def test_of_many_damaged_images_the_first_are_named(folder: Path) -> None:
    for i in range(19):
        (folder / "cat" / f"{i}.png").write_bytes(b"%d" % i)
    _, problems = check_data(DataSection(train=str(folder), shots=0), seed=0)
    assert len(problems) == SHOWN_IMAGES + 1
    assert problems[-1] == "and 9 more images cannot be read"


def test_problems_of_all_keys_stand_in_one_list(folder: Path, tmp_path: Path) -> None:
    (folder / "dog" / "7.png").write_bytes(b"")
    section = DataSection(
        train=str(folder),
        test=str(tmp_path / "gone"),
        class_names=str(tmp_path / "names.txt"),
        templates=("a photo", "a {}"),
        class_prompts=str(tmp_path / "prompts.json"),
    )
    split, problems = check_data(section, seed=0)
    assert split is None
    assert [problem.partition(":")[0] for problem in problems] == [
        "data.test",
        "data.class_names",
        "data.templates",
        "data.class_prompts",
        f"{folder / 'dog' / '7.png'} is empty (0 bytes). Copy it again, or remove it.",
    ]
    _, problems = check_data(DataSection(train=str(folder), class_prompts=str(tmp_path / "prompts.json")), seed=0)
    assert problems[0].startswith("data.class_prompts")
    assert "7.png" in problems[1]


def test_classes_that_do_not_fit_are_a_problem(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "test" / "cow").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "test" / "cow" / "0.png")
    split, problems = check_data(DataSection(train=str(folder), test=str(tmp_path / "test")), seed=0)
    assert split is None
    assert len(problems) == 1
    assert "data.test has the class 'cow'" in problems[0]


def test_every_reason_why_there_is_no_split_is_told_beside_damaged_images(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train" / "eel").mkdir()
    (tmp_path / "train" / "eel" / "0.png").write_bytes((folder / "cat" / "0.png").read_bytes()[:50])
    for name in ("cow", "Dog"):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (9, 9, len(name))).save(tmp_path / "test" / name / "0.png")
    (tmp_path / "test" / "Dog" / "1.png").write_bytes(b"no image")
    split, problems = check_data(DataSection(train=str(folder), test=str(tmp_path / "test")), seed=0)
    assert split is None
    assert [problem.partition(",")[0] for problem in problems[:2]] == [
        "at least 2 images of a class are needed: class 'eel' has 1. Add photos of it",
        "data.test has the classes 'Dog' (did you mean 'dog'?) and 'cow'",
    ]
    assert "eel/0.png cannot be decoded" in problems[2]
    assert "Dog/1.png is not one of JPEG" in problems[3]
    assert len(problems) == 4


def test_all_test_images_that_are_learned_from_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "test" / "cat").mkdir(parents=True)
    for i in range(7):
        (tmp_path / "test" / "cat" / f"{i}.png").write_bytes((folder / "dog" / f"{i}.png").read_bytes())
    (tmp_path / "test" / "cat" / "z.png").write_bytes(b"no image")
    _, problems = check_data(DataSection(train=str(folder), test=str(tmp_path / "test"), shots=0), seed=0)
    assert problems[0] == (
        "test image cat/0.png is also learned from (as dog/0.png), cat/1.png is also learned from (as dog/1.png), "
        "cat/2.png is also learned from (as dog/2.png), cat/3.png is also learned from (as dog/3.png), "
        "cat/4.png is also learned from (as dog/4.png) and 2 more; remove them from data.test: accuracy on learned "
        "images means nothing"
    )
    assert "cat/z.png is not one of JPEG" in problems[1]
    assert len(problems) == 2


def test_the_check_needs_no_torch() -> None:
    code = (
        "import sys; from p4q_edge.cli import from_recipe, preflight; from p4q_edge.data.preflight import check_data; "
        "from p4q_edge.recipe import DataSection; check_data(DataSection(train='nowhere'), seed=0); "
        "sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_classes_may_be_called_train_and_test_where_they_are_named(tmp_path: Path) -> None:
    for shade, name in enumerate(("test", "train")):
        (tmp_path / "vehicles" / name / "red").mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (16, 16), (100 * shade, i, 9)).save(tmp_path / "vehicles" / name / "red" / f"{i}.png")
    section = DataSection(train=str(tmp_path / "vehicles"), shots=2)
    _, problems = check_data(section, seed=0)
    assert "vehicles holds no classes but train and test, parts of a data set" in problems[0]
    assert "or name them in data.class_names" in problems[0]
    split, problems = check_data(msgspec.structs.replace(section, class_names=("test", "train")), seed=0)
    assert not problems
    assert split is not None
    assert split.train.names[0].startswith("test/red/")
