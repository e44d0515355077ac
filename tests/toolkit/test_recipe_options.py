"""Options that override keys of a recipe: printed, part of every stage's digest, refused where they do nothing."""

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from p4q_edge.command.common import demo_recipe
from p4q_edge.pipeline import open_source
from p4q_edge.recipe import parse_recipe, to_toml
from p4q_edge.runtime.cli import main


@pytest.mark.parametrize(
    ("options", "expected"),
    [([], False), (["--quantize-attention"], True), (["--no-quantize-attention"], False)],
)
def test_print_config_shows_the_override(
    options: list[str],
    expected: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["build", "--engine", "x.onnx", "--print-config", "--json", *options]) == 0
    recipe = json.loads(capsys.readouterr().out)["recipe"]
    assert recipe["quantization"]["quantize_attention"] is expected


def test_an_option_overrides_the_recipes_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = demo_recipe()
    section = msgspec.structs.replace(recipe.quantization, quantize_attention=True, attention_bits=8)
    (tmp_path / "p4q.toml").write_text(to_toml(msgspec.structs.replace(recipe, quantization=section)))
    monkeypatch.chdir(tmp_path)
    for options, expected in (([], "true"), (["--no-quantize-attention"], "false")):
        assert main(["build", "--engine", "x.onnx", "--print-config", *options]) == 0
        shown = capsys.readouterr().out
        assert f"quantize_attention = {expected}" in shown
        assert "attention_bits = 8" in shown


@pytest.mark.parametrize("option", ["--quantize-attention", "--no-quantize-attention"])
def test_a_bundle_is_quantized_already(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "model.p4q", "--engine", "x.onnx", option]) == 2
    assert "a bundle and an option for recipes were both given" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"quantize_attention": True}, {"attention_bits": 4}])
def test_stages_are_run_again(change: dict[str, object]) -> None:
    source = open_source(demo_recipe())
    section = source.recipe.quantization
    changed = msgspec.structs.replace(section, **change)
    assert source.key("calibrate", msgspec.to_builtins(section)) != source.key(
        "calibrate", msgspec.to_builtins(changed)
    )
    other = replace(source, recipe=msgspec.structs.replace(source.recipe, quantization=changed))
    assert to_toml(other.recipe) != to_toml(source.recipe)


def test_absent_attention_bits_follow_the_others() -> None:
    text = to_toml(demo_recipe())
    assert "attention_bits" not in text
    section = parse_recipe(
        {"model": {"name": "demo"}, "data": {"train": "demo:digits"}, "quantization": {"weight_bits": 4}}, source="r"
    ).quantization
    assert section.scheme().for_attention().weight_bits == 4
    assert section.scheme().label == "W4A8"
