"""`p4q-edge init`: what it says about photographs, and the recipe that it writes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from read_documents import read_document

from p4q_edge.cli import init
from p4q_edge.cli.documents import DOCUMENTS
from p4q_edge.cli.init import find_sets
from p4q_edge.recipe.schema import DataSection
from p4q_edge.recipe.toml import read_recipe
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.images import ImageSet


def fill(folder: Path, count: int, shade: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (8, 8), (i, shade, 9)).save(folder / f"{i}.png")


def of_classes(*labels: str, names: tuple[str, ...]) -> ImageSet:
    """Return plain images of these classes among some."""
    return ImageSet(
        names=tuple(map(str, range(len(labels)))),
        labels=np.array([names.index(label) for label in labels]),
        class_names=names,
        open_image=lambda index: Image.new("RGB", (8, 8), (index, 0, 0)),
        read_bytes=lambda index: bytes([index]),
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes: enough, few and one; a damaged file; the same picture in two classes."""
    root = tmp_path / "my photos"
    fill(root / "grand_piano", 30, 1)
    fill(root / "cat 10", 3, 2)
    fill(root / "cat 9", 1, 3)
    (root / "grand_piano" / "7.png").write_bytes(b"no image")
    (root / "cat 10" / "copy.png").write_bytes((root / "grand_piano" / "2.png").read_bytes())
    return root


def test_the_document_tells_everything(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my photos", "--json"]) == 0
    out = capsys.readouterr().out
    read_document(out, DOCUMENTS["init"])
    document = json.loads(out)
    assert list(document["classes"].items()) == [("cat 9", 1), ("cat 10", 4), ("grand_piano", 30)]
    assert len(document["unusable"]) == 1
    assert "grand_piano/7.png is not one of JPEG" in document["unusable"][0]
    assert document["advice"] == [
        "a class needs at least 2 images; add some or remove the folder: cat 9",
        "fewer than 8 images; 16 and some to test on work better: cat 10 (4)",
        "very unequal: grand_piano has 30, cat 9 1; data.shots takes the same number of each",
        "the same image in two classes; keep it in the right one: cat 10/copy.png and grand_piano/2.png",
    ]


def test_the_recipe_is_commented_and_can_be_read(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my photos"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["cat 9            1", "cat 10           4", "grand_piano     30  (1 cannot be used)"]
    assert lines[-2:] == [
        "p4q.toml  34 usable images of 3 classes",
        "next: repair or remove the files that cannot be used and give each class at least 2 images or remove it, "
        "then: p4q-edge build --recipe p4q.toml --engine out.onnx",
    ]
    text = (tmp_path / "p4q.toml").read_text()
    assert 'train = "my photos"' in text
    assert "in this order: cat 9, cat 10, grand_piano" in text
    recipe = read_recipe(tmp_path / "p4q.toml")
    assert recipe.data == DataSection(train=str(photos))
    assert (recipe.model.name, recipe.model.pretrained) == ("ViT-B-32", "openai")


def test_an_older_recipe_is_kept_unless_forced(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "p4q.toml"
    target.write_text("mine")
    assert main(["init", str(photos), "-o", str(target)]) == 2
    assert "--force" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main(["init", str(photos), "-o", str(target), "--force"]) == 0


def test_train_and_test_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "val"):
        fill(tmp_path / name / "cat", 9, len(name))
    assert find_sets(tmp_path) == (tmp_path / "train", tmp_path / "val")
    assert main(["init", str(tmp_path), "-o", str(tmp_path / "p4q.toml")]) == 0
    recipe = read_recipe(tmp_path / "p4q.toml")
    assert (recipe.data.train, recipe.data.test) == (str(tmp_path / "train"), str(tmp_path / "val"))


def test_images_to_test_on_are_looked_through_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for shade, name in enumerate(("cat", "dog")):
        fill(tmp_path / "photos" / "train" / name, 9, shade)
        fill(tmp_path / "photos" / "test" / name.replace("dog", "cow"), 3, 7 + shade)
    (tmp_path / "photos" / "test" / "cat" / "0.png").write_bytes(b"no image")
    copy = (tmp_path / "photos" / "train" / "dog" / "4.png").read_bytes()
    (tmp_path / "photos" / "test" / "cow" / "copy.png").write_bytes(copy)
    assert main(["init", "photos"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        "cannot be used: photos/test/cat/0.png is not one of JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM, AVIF. "
        "Save it as JPEG or PNG.",
        "advice: photos/test has the class 'cow', which is not one of the 2 known classes (cat, dog); classes are "
        "matched by name: rename it, or remove it from the data",
        "advice: images of photos/test that are also to learn from; keep each in one place: "
        "cow/copy.png (as dog/4.png)",
        "p4q.toml  18 usable images of 2 classes",
        "next: repair or remove the files that cannot be used and follow the advice about the images to test on, then: "
        "p4q-edge build --recipe p4q.toml --engine out.onnx",
    ]


def test_damaged_images_count_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "photos" / "cat", 20, 1)
    fill(tmp_path / "photos" / "dog", 20, 2)
    fill(tmp_path / "photos" / "eel", 2, 3)
    for i in range(14):
        (tmp_path / "photos" / "dog" / f"{i}.png").write_bytes(b"")
    (tmp_path / "photos" / "eel" / "0.png").write_bytes(b"")  # the bytes of damaged dogs, and no copy of a photograph
    assert main(["init", "photos"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["cat     20", "dog     20  (14 cannot be used)", "eel      2  (1 cannot be used)"]
    assert lines[3] == "cannot be used: photos/dog/0.png is empty (0 bytes). Copy it again, or remove it."
    assert lines[13] == "cannot be used: and 5 more images cannot be read"
    assert lines[14:17] == [
        "advice: a class needs at least 2 images; add some or remove the folder: eel",
        "advice: fewer than 8 images; 16 and some to test on work better: dog (6)",
        "advice: very unequal: cat has 20, eel 2; data.shots takes the same number of each",
    ]
    assert lines[17] == "p4q.toml  27 usable images of 3 classes"
    assert "give each class at least 2 images or remove it" in lines[18]


def test_an_empty_class_folder_is_told_of_beside_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = {"train": ("cat", "dog", "eel"), "test": ("cat", "dog", "fox")}
    folders = [tmp_path / "photos" / part / name for part, names in parts.items() for name in names]
    for shade, folder in enumerate(folders):
        fill(folder, 0 if folder.name in ("eel", "fox") else 9 if shade < 3 else 2, shade)
    assert main(["init", "photos"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "cat      9",
        "dog      9",
        "eel      0",
        "advice: a class needs at least 2 images; add some or remove the folder: eel",
        "advice: no images to test on in class folders of photos/test; fill or remove them: fox",
        "advice: photos/test has the class 'fox', which is not one of the 3 known classes (cat, dog, eel); classes are "
        "matched by name: rename it, or remove it from the data",
        "p4q.toml  18 usable images of 3 classes",
        "next: give each class at least 2 images or remove it and follow the advice about the images to test on, then: "
        "p4q-edge build --recipe p4q.toml --engine out.onnx",
    ]


def test_files_that_keep_a_class_empty_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "photos" / "cat", 9, 1)
    fill(tmp_path / "photos" / "dog\nnext: rm", 0, 2)
    for name in ("a.gif9", "b.gif9"):
        (tmp_path / "photos" / "dog\nnext: rm" / name).write_bytes(b"x")
    assert main(["init", "photos"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["cat                9", r"dog\nnext: rm      0"]
    assert r"advice: left out of dog\nnext: rm, which has no other files: 2 .gif9 files" in lines


def test_a_class_of_a_saved_data_set_may_have_no_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        init, "read_images", lambda *_, **__: of_classes("cat", "cat", "dog", names=("cat", "cow", "dog"))
    )
    (tmp_path / "set").mkdir()
    assert main(["init", str(tmp_path / "set"), "-o", str(tmp_path / "p4q.toml")]) == 0
    assert "remove the folder: cow, dog" in capsys.readouterr().out


def test_class_folders_that_are_all_empty_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    assert main(["init", str(tmp_path), "-o", str(tmp_path / "p4q.toml")]) == 2
    assert "class folder " in (err := capsys.readouterr().err)
    assert "cat has no images" in err
    assert "dog has no images" in err
    assert not (tmp_path / "p4q.toml").exists()


def test_names_that_steer_a_terminal_make_no_other_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = 'a "b"\n[learn]\x7f\\é🐢'
    for number, name in enumerate(("cat\nx = 1", "dog")):
        fill(tmp_path / odd / name, 9, number)
    assert main(["init", odd]) == 0
    recipe = read_recipe(tmp_path / "p4q.toml")
    assert recipe.data.train == str(tmp_path / odd)
    assert "cat\\nx = 1, dog" in (tmp_path / "p4q.toml").read_text()


def test_the_recipes_own_name_makes_no_other_recipe_and_can_be_copied(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    assert main(["init", str(photos), "-o", "my\n[learn]\nsteps = 1\n.toml"]) == 0
    assert read_recipe(photos.parent / "my\n[learn]\nsteps = 1\n.toml").learn.steps != 1
    assert main(["init", str(photos), "-o", "my recipe.toml"]) == 0
    assert "p4q-edge build --recipe 'my recipe.toml' --engine out.onnx" in capsys.readouterr().out
    assert "#   p4q-edge build --recipe 'my recipe.toml' --engine" in Path("my recipe.toml").read_text()


def test_one_class_is_advised_to_get_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "photos" / "cat", 9, 1)
    assert main(["init", "photos"]) == 0
    out = capsys.readouterr().out
    assert "advice: one class is told from nothing: add a folder of another, such as 'something else'" in out
    assert "next: add a folder of another class, then: p4q-edge build" in out


def test_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere is not a directory. Put the photographs of each class into"):
        find_sets(tmp_path / "nowhere")


def test_sound_photographs_can_be_built_at_once_and_numbers_in_names_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("10_grand-piano", "7 up", "3d", "cat"):
        fill(tmp_path / "photos" / name, 9, len(name))
    recipe = tmp_path / "p4q.toml"
    assert main(["init", str(tmp_path / "photos"), "-o", str(recipe)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"next: p4q-edge build --recipe {recipe} --engine out.onnx"
    told = "names with a number in front go into prompts as they are; give data.class_names: 7 up, 10_grand-piano"
    assert f"advice: {told}" in lines


def test_names_that_are_numbers_are_told_to_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("7", "08", "1-2", "b12"):
        fill(tmp_path / "photos" / name, 9, len(name))
    assert main(["init", str(tmp_path / "photos"), "-o", str(tmp_path / "p4q.toml")]) == 0
    told = (
        'names that are numbers say nothing in prompts ("a photo of a 1-2."); say in data.class_names what they show: '
    )
    assert f"advice: {told}1-2, 7, 08" in capsys.readouterr().out.splitlines()


def test_a_wrong_folder_is_told_before_an_older_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p4q.toml").write_text("mine")
    assert main(["init", str(tmp_path / "nope"), "-o", str(tmp_path / "p4q.toml")]) == 2
    assert "nope is not a directory" in capsys.readouterr().err
