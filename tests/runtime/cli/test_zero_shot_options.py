"""The options of an engine without labelled images, and what they are told where they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from p4q_edge.runtime.cli.main import main, parse

BUILD = ["build", "--engine", "out.onnx"]


def test_the_options_make_a_request() -> None:
    _, request, _ = parse([*BUILD, "--class-names", "cup, plate", "--model", "ViT-B-32", "--pretrained", "openai"])
    zero_shot = request.recipe.zero_shot
    assert zero_shot.class_names == ("cup", "plate")
    assert (zero_shot.calibration, zero_shot.model, zero_shot.pretrained) == (None, "ViT-B-32", "openai")
    _, request, _ = parse([*BUILD, "--class-names", "names.txt", "--calibration-images", "photos"])
    assert request.recipe.zero_shot.class_names == Path("names.txt")
    assert request.recipe.zero_shot.calibration == "photos"


def test_without_names_nothing_is_asked_for() -> None:
    _, request, _ = parse(BUILD)
    assert request.recipe.zero_shot is None
    assert request.recipe.empty


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--class-names", "cup"], "takes at least 2 names between commas, such as \"cup,plate\"; got 'cup'"),
        (["--class-names", "cup,,plate"], "Names with commas go into a .txt file"),
        (["--calibration-images", "x"], "--calibration-images is for an engine of classes without labelled images"),
        (["--model", "x"], "--model is for an engine of classes without labelled images"),
        (["--class-names", "a,b", "--pretrained", "x"], "--pretrained names the weights of --model, which is missing"),
        (["--class-names", "a,b", "--log-dir", "x"], "--log-dir has no effect beside --class-names"),
        (["--class-names", "a,b", "model.p4q"], "a bundle and an option for recipes were both given"),
    ],
)
def test_options_that_do_not_fit(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BUILD, *options]) == 2
    assert message in capsys.readouterr().err
