"""Options that override keys of a recipe: printed, part of every stage's digest, refused where they do nothing."""

import json
from dataclasses import replace
from importlib import metadata
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from p4q_edge.recipe.defaults import demo_recipe
from p4q_edge.recipe.toml import parse_recipe, to_toml
from p4q_edge.runtime.artifacts.card import read_card
from p4q_edge.runtime.cli.main import main
from p4q_edge.stages.pipeline import CALIBRATE
from p4q_edge.stages.source import open_source


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
    assert source.key(CALIBRATE, recipe=section) != source.key(CALIBRATE, recipe=changed)
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


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        "calibrate": ("learn:CALIBRATE", "p4q_edge.commands"),
        "bundle_from_recipe": ("from_recipe:bundle_from_recipe", "p4q_edge.toolkit"),
        "build_summary": ("build_summary:build_summary", "p4q_edge.toolkit"),
        "lint_artifact": ("lint_graph:lint_artifact", "p4q_edge.toolkit"),
    }
    entries = EntryPoints(
        EntryPoint(name=name, value=f"p4q_edge.cli.{value}", group=group) for name, (value, group) in names.items()
    )
    # By group too: networkx, which torch may load here for the first time, asks for its own.
    monkeypatch.setattr(metadata, "entry_points", lambda **wanted: entries.select(**wanted))


@pytest.mark.usefixtures("commands")
def test_quantized_attention_from_the_option_to_the_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo, not learned: what the option asks for is in the bundle, passes lint, runs, and is told of."""
    recipe = demo_recipe()
    plain = msgspec.structs.replace(recipe.learn, prompts=False, adapter=False, class_residual=False)
    (tmp_path / "p4q.toml").write_text(to_toml(msgspec.structs.replace(recipe, learn=plain)))
    source, engine = str(tmp_path / "p4q.toml"), tmp_path / "out.onnx"
    run = ["calibrate", "--recipe", source, "--quantize-attention", "-o", str(engine.with_suffix(".run")), "--json"]
    assert main(run) == 0
    inner = [f"trunk.transformer.resblocks.{block}.attn" for block in range(3)]  # the last reads the class token alone
    assert json.loads(capsys.readouterr().out)["quantized_attentions"] == inner
    assert main(["build", "--recipe", source, "--quantize-attention", "--engine", str(engine)]) == 0
    assert main(["inspect", "--lint", str(engine.with_suffix(".p4q"))]) == 0
    assert main(["inspect", "--lint", str(engine)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(engine)]) == 0
    assert "W8A8 executed, fp32 remainder, 17 linears and the products of 3 attentions (" in capsys.readouterr().out
    card = read_card(engine)
    assert card.precision.quantized_attentions == 3
    assert card.precision.int8_mac_share == pytest.approx(0.9, abs=0.1)
    assert card.build.inspection.integer_products == 17 + 2 * 3


@pytest.mark.slow
@pytest.mark.usefixtures("commands")
def test_widths_of_weights_from_the_recipe_to_the_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo, not learned: the graph passes lint and parity, and its card names the mean."""
    recipe = demo_recipe()
    plain = msgspec.structs.replace(recipe.learn, prompts=False, adapter=False, class_residual=False)
    grid = msgspec.structs.replace(recipe.quantization, weight_bits=4, mean_weight_bits=4.75)
    source, engine = tmp_path / "p4q.toml", tmp_path / "out.onnx"
    source.write_text(to_toml(msgspec.structs.replace(recipe, learn=plain, quantization=grid)))
    assert main(["build", "--recipe", str(source), "--engine", str(engine)]) == 0
    assert main(["inspect", "--lint", str(engine.with_suffix(".p4q"))]) == 0
    assert main(["inspect", "--lint", str(engine)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(engine)]) == 0
    precision = read_card(engine).precision
    assert precision.mean_weight_bits is not None
    assert 4.0 < precision.mean_weight_bits <= 4.75
    label = f"W4A8 (weights {precision.mean_weight_bits:.2f} bits on average) carried"
    assert f"{label}, fp32 remainder, 17 linears" in capsys.readouterr().out
    weights = {int(abs(array).max()) for array in _int8_weights(engine)}
    assert any(largest <= 7 for largest in weights)
    assert any(7 < largest <= 63 for largest in weights)


def _int8_weights(engine: Path) -> list[np.ndarray]:
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(engine).graph.initializer]
    return [array for array in arrays if array.dtype == np.int8 and array.ndim == 2]
