"""`p4q-edge learn` and `calibrate`: what they refuse before anything is loaded, and what calibrate tells."""

import json
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from torch import Tensor

from p4q_edge.calibration import calibrate_encoder
from p4q_edge.cli import learn, team_work
from p4q_edge.models import LoadedModel
from p4q_edge.quant import quant_linears
from p4q_edge.recipe import demo_recipe, to_toml
from p4q_edge.runtime.builders import RecipeRequest
from p4q_edge.runtime.cli import Output
from p4q_edge.runtime.cli.main import main


@pytest.mark.parametrize("command", [["learn"], ["calibrate"], ["learn", "--ablate", "levers"]])
@pytest.mark.parametrize("named", ["recipe.toml", "linked.toml"])
def test_the_recipe_is_not_replaced_by_the_resolved_one(
    command: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "recipe.toml"
    own.write_text(text := "# mine\n" + to_toml(demo_recipe()))
    (tmp_path / "linked.toml").symlink_to(own)
    assert main([*command, "--recipe", str(tmp_path / named), "-o", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert f"error: -o {tmp_path}: {own} is the recipe itself, and would be replaced by the resolved one; name" in err
    assert str(tmp_path / "model.run") in err
    assert own.read_text() == text


def test_seeds_are_of_an_ablation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["learn", "--seeds", "3", "-o", str(tmp_path / "x.run")]) == 2
    assert "--seeds 3 is for --ablate; one run has one seed: --seed. Leave it out." in capsys.readouterr().err


def test_calibrate_counts_what_a_limit_put_back_into_float(
    toy_clip: LoadedModel,
    toy_pixels: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = demo_recipe()
    grid = msgspec.structs.replace(
        recipe.quantization, weight_bits=3, mean_weight_bits=4.5, max_cosine_loss=1e-5, rotation=False
    )
    made = calibrate_encoder(toy_clip, toy_pixels, grid.scheme())
    assert made.in_float
    linears = len(quant_linears(made.encoder)) - len(made.in_float)
    monkeypatch.setattr(learn, "_recipe_of", lambda _: msgspec.structs.replace(recipe, quantization=grid))
    monkeypatch.setattr(team_work, "calibrated", lambda *_: SimpleNamespace(calibrated=made))
    request = learn.CalibrateRequest(recipe=RecipeRequest(), run_folder=tmp_path)
    for form in (False, True):
        assert learn._calibrate(request, Output(json=form, force=False, quiet=False, verbose=False)) == 0
    text, _, document = capsys.readouterr().out.partition("\n")
    # The mean that was reached is above 4.5, as layers of few bits went back: only what was asked for is told.
    kept = [*made.kept_float, *made.in_float]
    told = f"W3A8 (mean_weight_bits = 4.5) carried, {linears} linears quantized, {len(kept)} kept in float"
    assert told in text
    found = json.loads(document)
    assert len(found["input_scales"]) == linears
    assert found["kept_float"] == kept
