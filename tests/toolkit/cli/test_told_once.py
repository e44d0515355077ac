"""What a build from a recipe warns of, it warns of once: its summary opens the recipe and the images again."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from p4q_edge.cli import build_summary
from p4q_edge.cli.common import choose_recipe, told_already
from p4q_edge.runtime.builders import BuildOptions, BuildRequest, RecipeRequest

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


def test_warnings_are_told_again_behind_it(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("p4q_edge.some.room")
    with told_already():
        logger.warning("first")
        logger.error("worse")
    logger.warning("second")
    assert [record.message for record in caplog.records] == ["worse", "second"]
