"""A model of convolutions from a recipe to a CPU engine, validated against the module quantized as its graph is."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.card import read_card
from p4q_edge.runtime.cli.main import main

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
RECIPE = """
schema_version = 1
[model]
name = "local-dir:model"
[data]
train = "demo:digits"
shots = 2
test_limit = 40
[learn]
prompts = false
adapter = false
epochs = 2
[export]
golden_samples = 2
reference_images = 30
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of a small ResNet of CLIP with random weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": preprocess}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = open_clip.CLIP(**CONFIG)
    for name, parameter in clip.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.ones_(parameter)
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def _convolutions_in_int8(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Build and validate an engine whose convolutions OpenVINO multiplies in INT8."""
    bundle, engine = read_bundle(path), path.with_name("int8.onnx")
    arguments = ["--engine", str(engine), "--cpu-profile", "fast-convolutions", "-q"]
    assert main(["build", str(path), *arguments]) == 0
    card, stored = read_card(engine), bundle.manifest.precision
    assert card.backend == "openvino"
    assert (card.golden_samples().logits == bundle.golden().logits).all()
    assert card.noise == bundle.manifest.parity.noise["seven_bit_convolutions"]
    assert card.precision.int8_mac_share == stored.int8_mac_share
    assert card.precision.label == "W7A8 carried"
    assert card.build.inspection.kernels["Convolution u8"] == stored.quantized_convolutions
    capsys.readouterr()
    reference = str(path.with_suffix(".run"))
    assert main(["validate", str(engine), "--json", "--debug", "--reference", reference]) == 0
    report = json.loads(capsys.readouterr().out)
    assert all(gate["passed"] for gate in report["chain"]["gates"])
    assert {gate["name"]: gate["value"] for gate in report["files"]} == {
        "tensors of the engine that differ from the bundle's graph": 0,
        "linears of the bundle's graph that differ from the PyTorch model": 0,
    }
    assert report["debug"]["first"] is None


def test_from_recipe_to_validated_engine(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = recipe.with_name("model.onnx")
    assert main(["build", "--recipe", str(recipe), "--engine", str(engine), "--cpu-profile", "exact", "-q"]) == 0
    bundle = read_bundle(engine.with_suffix(".p4q"))
    golden, recorded = bundle.golden(), bundle.reference()
    assert recorded is not None
    assert golden.on_cpu
    assert not (golden.for_cpu().logits == golden.logits).all()
    assert (recorded.for_cpu().embedding == recorded.cpu_embedding).all()
    stored, built = bundle.manifest.precision, read_card(engine).precision
    assert stored.quantized_convolutions > built.quantized_convolutions == 0
    assert stored.int8_mac_share > built.int8_mac_share == stored.linear_mac_share
    assert built.parts.startswith(f"{built.quantized_linears} linears (")
    assert (read_card(engine).golden_samples().logits == golden.on_cpu["logits"]).all()
    capsys.readouterr()
    assert main(["validate", str(engine), "--json", "--debug"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert all(gate["passed"] for gate in report["chain"]["gates"])
    assert report["debug"]["first"] is None
    _convolutions_in_int8(engine.with_suffix(".p4q"), capsys)
    # Without the run folder the bundle's own results are the reference, and they are the CPU's too.
    engine.with_suffix(".run").rename(recipe.with_name("elsewhere"))
    assert main(["validate", str(engine), "--data", "demo:digits", "--force"]) == 0
