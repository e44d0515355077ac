"""What a build from a recipe warns of, it warns of once: its summary opens the recipe and the images again."""

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from p4q_edge.cli import build_summary
from p4q_edge.cli.common import choose_recipe
from p4q_edge.cli.preflight import check_build
from p4q_edge.data import read_split, read_split_again, told_already
from p4q_edge.recipe.schema import DataSection, LearnSection, ModelSection, Recipe
from p4q_edge.runtime.builders import BuildOptions, BuildRequest, RecipeRequest
from p4q_edge.stages.source import open_source

RECIPE = """
[model]
name = "demo"
[data]
train = "demo:digits"
shots = 1000
[learn]
prompts = false
anchor_prompts = true
"""
IDLE = "learn.anchor_prompts has no effect"
FEWER = "data.shots = 1000"


@pytest.fixture
def request_of_recipe(tmp_path: Path) -> BuildRequest:
    path = tmp_path / "p4q.toml"
    path.write_text(RECIPE)
    return BuildRequest(engine=tmp_path / "out.onnx", options=BuildOptions(), recipe=RecipeRequest(path=path))


def test_the_summary_of_a_build_warns_of_nothing_again(
    request_of_recipe: BuildRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    index = SimpleNamespace(cross_validated=None, calibrated_on=None)
    bundle = SimpleNamespace(reference=lambda: None, manifest=SimpleNamespace(data_index=index))
    monkeypatch.setattr(build_summary, "read_bundle", lambda _: bundle)
    monkeypatch.setattr(build_summary, "read_card", lambda _: None)
    recipe = choose_recipe(request_of_recipe.recipe)
    build_summary.read_split(recipe.data, seed=recipe.seed)
    assert caplog.text.count(IDLE) == caplog.text.count(FEWER) == 1  # both are told when they are first met

    summary, _ = build_summary.build_summary(request_of_recipe, Path("out.p4q"))

    assert summary.n == 0
    assert caplog.text.count(IDLE) == caplog.text.count(FEWER) == 1


def test_images_of_a_run_are_opened_again_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    section = DataSection(train="demo:digits", shots=1000)
    again = read_split_again(section, seed=0)
    assert not caplog.messages
    assert again.train.names == read_split(section, seed=0).train.names
    assert caplog.text.count(FEWER) == 1


def test_images_without_labels_are_spoken_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="p4q_edge")
    photos = tmp_path / "photos"
    for number in range(8):
        folder = tmp_path / ("more" if number < 3 else f"photos/{'cat' if number % 2 else 'dog'}")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (9 * number, 0, 9)).save(folder / f"{number}.png")
    (tmp_path / "more" / "phone.heic").touch()
    shutil.copy(photos / "cat" / "3.png", tmp_path / "more")
    data = DataSection(train=str(photos), unlabelled=str(tmp_path / "more"), shots=2)
    recipe = Recipe(model=ModelSection(name="demo"), data=data, learn=LearnSection(teacher="learned"))

    source = open_source(recipe, check_build(recipe, tmp_path / "out.onnx", force=False))

    assert source.unlabelled is not None
    assert len(source.unlabelled) == 3
    assert caplog.text.count("left out as copies") == caplog.text.count(".heic") == 1


def test_warnings_are_told_again_behind_it(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("p4q_edge.some.room")
    with told_already():
        logger.warning("first")
        logger.error("worse")
    logger.warning("second")
    assert [record.message for record in caplog.records] == ["worse", "second"]
