"""`--device`: into the request, over the recipe's key, and refused early where there is no such device."""

import json
from pathlib import Path

import pytest
import torch

from p4q_edge.cli import export, learn, team_work
from p4q_edge.cli.common import choose_recipe
from p4q_edge.evaluation import torch_reference
from p4q_edge.recipe.defaults import demo_recipe
from p4q_edge.recipe.schema import Recipe
from p4q_edge.recipe.toml import on_device, to_toml
from p4q_edge.runtime.builders import RecipeRequest
from p4q_edge.runtime.cli.main import main, parse
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.evaluation import ValidateRequest


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


def test_the_device_is_part_of_every_request() -> None:
    words = {
        "build": ["build", "--engine", "x.onnx", "--device", "cuda:1"],
        "calibrate": ["calibrate", "-o", "run", "--device", "cuda:1"],
        "learn": ["learn", "-o", "run", "--device", "cuda:1"],
    }
    for given in words.values():
        assert parse(given)[1].recipe.device == "cuda:1"
    assert parse(["export", "run", "-o", "m.p4q", "--device", "cuda:1"])[1].device == "cuda:1"
    assert parse(["validate", "x.onnx", "--device", "cpu"])[1].device == "cpu"
    assert parse(["build", "--engine", "x.plan", "--gpu", "1", "--device", "cpu"])[1].recipe.device == "cpu"


@pytest.mark.usefixtures("here")
def test_the_option_overrides_the_recipes_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--engine", "x.onnx", "--print-config", "--json", "--device", "cuda:2"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["compute"]["device"] == "cuda:2"
    assert choose_recipe(RecipeRequest()).compute.device == "auto"


@pytest.mark.usefixtures("here")
def test_a_name_of_no_device_is_a_wrong_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--engine", "x.onnx", "--device", "gpu"]) == 2
    assert "--device: device must be auto, cpu, cuda or cuda:N, got 'gpu'" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["build", "--engine", "x.onnx"], ["learn", "-o", "x"], ["calibrate", "-o", "x"]])
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    command: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--device", "cuda"]) == 3
    told = capsys.readouterr().err
    assert "expected the device 'cuda', and PyTorch" in told
    assert "finds here: cpu" in told
    assert "Name one of these with --device or compute.device" in told
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("command", ["learn", "calibrate"])
@pytest.mark.usefixtures("here")
def test_memory_that_ran_out_is_told_of_with_what_to_do(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")

    monkeypatch.setattr(team_work, "open_source", full)
    assert main([command, "-o", "run"]) == 3
    told = capsys.readouterr().err
    assert "the device ran out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.)" in told
    assert "set compute.batch_size lower, or take --device cpu" in told
    assert "more lines" not in told


def test_an_export_may_run_elsewhere_than_its_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "run").mkdir()
    (here / "run" / "recipe.toml").write_text(to_toml(on_device(demo_recipe(), "cuda:3")))
    seen: list[Recipe] = []

    def stages(recipe: Recipe, folder: Path, *, split: object) -> None:
        seen.append(recipe)
        raise UsageError("enough")

    monkeypatch.setattr(export, "run_stages", stages)
    assert main(["export", "run", "-o", "m.p4q"]) == 2
    assert main(["export", "run", "-o", "m.p4q", "--device", "cpu"]) == 2
    assert [recipe.compute.device for recipe in seen] == ["cuda:3", "cpu"]
    assert learn.LearnRequest(recipe=RecipeRequest(), run_folder=here).recipe.device is None


@pytest.mark.parametrize(("device", "expected"), [("auto", "cuda:3"), ("cpu", "cpu")])
def test_the_reference_of_a_validation_follows_its_device(
    device: str, expected: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "x.run").mkdir()
    (here / "x.run" / "recipe.toml").write_text(to_toml(on_device(demo_recipe(), "cuda:3")))
    seen: list[str] = []

    def opened(recipe: Recipe, split: object) -> None:
        seen.append(recipe.compute.device)
        raise UsageError("enough")

    monkeypatch.setattr(torch_reference, "open_source", opened)
    monkeypatch.setattr(torch_reference, "require_device", lambda _: None)
    with pytest.raises(UsageError, match="enough"):
        torch_reference.open_torch_reference(ValidateRequest(engine=here / "x.onnx", device=device), None)  # type: ignore[arg-type]
    assert seen == [expected]


def test_a_seed_that_is_none_is_told(here: Path) -> None:
    assert choose_recipe(RecipeRequest(seed=7)).seed == 7
    with pytest.raises(UsageError, match="--seed: seed must be between 0 and 9223372036854775807, got -1"):
        choose_recipe(RecipeRequest(seed=-1))
