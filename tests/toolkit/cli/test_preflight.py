"""A build that cannot end well ends before it begins, with all problems in one list."""

import os
from pathlib import Path

import pytest
from PIL import Image

from p4q_edge.cli import preflight
from p4q_edge.cli.preflight import check_build, model_problems, output_problems
from p4q_edge.recipe.schema import DataSection, ModelSection, Recipe
from p4q_edge.recipe.toml import to_toml
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.storage.unchanged import write_record


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (16, 16), (100 * label, i, 9)).save(tmp_path / "photos" / name / f"{i}.png")
    return Recipe(model=ModelSection(name="demo"), data=DataSection(train=str(tmp_path / "photos"), shots=2))


def test_a_sound_build_gets_its_images(recipe: Recipe, tmp_path: Path) -> None:
    split = check_build(recipe, tmp_path / "out.onnx", force=False)
    assert (len(split.train), len(split.test)) == (4, 6)


def test_files_of_another_recipe_are_named_before_anything_is_run(recipe: Recipe, tmp_path: Path) -> None:
    engine = tmp_path / "out.onnx"
    (tmp_path / "out.p4q").touch()
    with pytest.raises(UsageError, match=r"out\.p4q exists already and is of another recipe; add --force"):
        check_build(recipe, engine, force=False)
    check_build(recipe, engine, force=True)
    (tmp_path / "out.run").mkdir()
    (tmp_path / "out.run" / "recipe.toml").write_text(to_toml(recipe))
    (problem,) = output_problems(recipe, engine, force=False)
    assert "out.p4q exists already and was changed since the run" in problem
    assert "out.run wrote it; add --force to replace it" in problem
    assert output_problems(recipe, engine, force=True) == []
    write_record(tmp_path / "out.run" / "bundle.json", "key", [tmp_path / "out.p4q"])
    assert output_problems(recipe, engine, force=False) == []
    (tmp_path / "out.p4q").write_text("changed by hand")
    assert len(output_problems(recipe, engine, force=False)) == 1


def test_all_problems_stand_in_one_list(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "out.onnx").touch()
    (tmp_path / "photos" / "cat" / "1.png").write_bytes(b"no image")
    other = Recipe(model=ModelSection(name="ViT-B-32", pretrained=str(tmp_path / "w.pt")), data=recipe.data)
    with pytest.raises(UsageError) as caught:
        check_build(other, tmp_path / "out.onnx", force=False)
    message = str(caught.value)
    assert message.startswith("3 problems were found before anything was run: (1) ")
    for part in (
        "out.onnx exists already",
        f"(2) model.pretrained: {tmp_path / 'w.pt'} does not exist",
        "(3) ",
        "1.png",
    ):
        assert part in message


def test_beside_empty_class_folders_the_damaged_images_of_the_others_are_named(recipe: Recipe, tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir()
    (tmp_path / "photos" / "dog" / "1.png").write_bytes(b"no image")
    with pytest.raises(UsageError) as caught:
        check_build(recipe, tmp_path / "out.onnx", force=False)
    message = str(caught.value)
    assert message.startswith(
        f"2 problems were found before anything was run: (1) class folder {tmp_path / 'photos' / 'ant'} has no images"
    )
    assert f"; class folder {tmp_path / 'photos' / 'bee'} has no images" in message
    assert f"; (2) {tmp_path / 'photos' / 'dog' / '1.png'} " in message


def test_a_full_disk_is_a_problem(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "w.pt"
    weights.write_bytes(bytes(1 << 20))
    monkeypatch.setattr(preflight, "LEAST_FREE_BYTES", 0)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3 << 20})())
    large = Recipe(model=ModelSection(name="ViT-B-32", pretrained=str(weights)), data=recipe.data)
    assert output_problems(large, tmp_path / "out.onnx", force=False)[0].startswith(
        f"{tmp_path} has 3 MiB free, and a build of this model needs about 4 MiB"
    )
    assert output_problems(recipe, tmp_path / "out.onnx", force=False) == []


def test_a_place_that_cannot_be_written_to(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    expected = f"cannot write {tmp_path / 'new' / 'out.onnx'}: the folder {tmp_path} is not writable. Name a file"
    assert output_problems(recipe, tmp_path / "new" / "out.onnx", force=False)[0].startswith(expected)


def test_a_model_folder_without_its_description(tmp_path: Path) -> None:
    missing = Recipe(model=ModelSection(name=f"local-dir:{tmp_path}"), data=DataSection(train="x"))
    assert "open_clip_config.json does not exist" in model_problems(missing)[0]


def test_the_command_ends_before_learning(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos" / "dog" / "0.png").write_bytes(b"")
    (tmp_path / "p4q.toml").write_text(to_toml(recipe))
    monkeypatch.setattr("p4q_edge.stages.open_source", lambda *_: pytest.fail("it was run"))
    assert main(["build", "--recipe", str(tmp_path / "p4q.toml"), "--engine", str(tmp_path / "out.onnx")]) == 2
    assert "dog/0.png is empty (0 bytes). Copy it again, or remove it." in capsys.readouterr().err
    assert not (tmp_path / "out.run").exists()


def test_wrong_keys_hide_nothing_else(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos" / "dog" / "0.png").write_bytes(b"")
    (tmp_path / "p4q.toml").write_text(to_toml(recipe).replace("\nsteps =", "\nstepz ="))
    (tmp_path / "out.p4q").touch()
    assert main(["build", "--recipe", str(tmp_path / "p4q.toml"), "--engine", str(tmp_path / "out.onnx")]) == 2
    said = capsys.readouterr().err
    assert "3 problems were found before anything was run: (1)" in said
    assert "unknown key 'learn.stepz'; did you mean 'learn.steps'?; (2)" in said
    assert "out.p4q exists already and is of another recipe; add --force to replace it" in said
    assert "dog/0.png is empty (0 bytes)" in said
