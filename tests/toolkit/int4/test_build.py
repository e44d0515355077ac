"""INT4 weights from the recipe to engines: what is built, what the card says, what is refused and why."""

import json
import shutil
from pathlib import Path

import msgspec
import onnx
import pytest
from toy_exports import refusal_of_jetpack_6

from p4q_edge.recipe.defaults import demo_recipe
from p4q_edge.recipe.toml import to_toml
from p4q_edge.runtime import BuildOptions, build_engine
from p4q_edge.runtime.artifacts import TensorRTOptions
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.card import read_card
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.errors import UsageError

LINEARS = 17
GRID = {"weight_bits": 4, "activation_bits": 16, "weight_block": 128, "calibration_images": 32}
KEPT_LABEL = "W4A32 (weights in blocks of 128) executed"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, not learned, as a CPU engine of whatever profile is faster here, beside its bundle."""
    folder = tmp_path_factory.mktemp("int4")
    recipe = demo_recipe()
    plain = msgspec.structs.replace(recipe.learn, prompts=False, adapter=False, class_residual=False)
    grid = msgspec.structs.replace(recipe.quantization, **GRID)
    source, engine = folder / "p4q.toml", folder / "out.onnx"
    source.write_text(to_toml(msgspec.structs.replace(recipe, learn=plain, quantization=grid)))
    assert main(["build", "--recipe", str(source), "--engine", str(engine), "--cpu-profile", "auto", "-q"]) == 0
    return engine


@pytest.fixture
def bundle(engine: Path) -> Path:
    return engine.with_suffix(".p4q")


def test_the_bundle_says_that_four_bits_are_executed(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precision = read_bundle(bundle).manifest.precision
    assert (precision.weight_bits, precision.activation_bits, precision.weight_block) == (4, 16, 128)
    assert precision.quantized_linears == LINEARS
    assert main(["inspect", "--lint", str(bundle)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(bundle)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"W4A16 (weights in blocks of 128) executed, fp16 remainder, {LINEARS} linears" in shown


def test_the_faster_form_is_kept_and_the_card_says_which(engine: Path) -> None:
    card = read_card(engine)
    inspection = card.build.inspection
    assert {"exact", "float"} <= set(inspection.rows)
    assert all(row.problem is None for name, row in inspection.rows.items() if not name.startswith("openvino"))
    kept = card.build.options.kept_profile
    assert card.precision.label == (KEPT_LABEL if kept == "exact" else "W32A32 executed")


def test_the_exact_engine_reads_four_bits(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = build_engine(bundle, tmp_path / "exact.onnx", options=BuildOptions(cpu_profile="exact"))
    assert card.precision.label == KEPT_LABEL
    assert card.build.inspection.kernels["MatMulNBits"] == LINEARS
    assert card.build.inspection.integer_products == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "exact.onnx")]) == 0
    assert f"matrix products in INT8, {LINEARS} with INT4 weights; " in " ".join(capsys.readouterr().out.split())
    integers = [t for t in onnx.load(tmp_path / "exact.onnx").graph.initializer if t.data_type == onnx.TensorProto.INT4]
    assert len(integers) == LINEARS


def test_the_engine_is_validated_against_the_fake_quantized_module(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = tmp_path / "exact.onnx"
    build_engine(bundle, engine, options=BuildOptions(cpu_profile="exact"))
    shutil.copy(bundle, engine.with_suffix(".p4q"))
    capsys.readouterr()
    assert main(["validate", str(engine), "--data", "demo:digits", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert all(gate["passed"] for gate in report["chain"]["gates"])


def test_a_profile_of_narrower_weights_is_refused_in_words(bundle: Path, tmp_path: Path) -> None:
    told = "INT4 weights, whose products are in FP32, so that it has no fast profile"
    with pytest.raises(Exception, match=told):
        build_engine(bundle, tmp_path / "fast.onnx", options=BuildOptions(cpu_profile="fast"))


@pytest.mark.parametrize("dry", [False, True])
def test_the_parser_of_jetpack_6_is_refused_with_the_reason(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry: bool
) -> None:
    told = refusal_of_jetpack_6(bundle, tmp_path / "out.plan", monkeypatch, dry=dry)
    assert "in a graph of opset 21, and TensorRT 10.3.0 reads older ones: that of JetPack 6 stops at opset 20" in told
    assert "TensorRT 10.13 or later reads it" in told
    assert "export with the recipe int8, or w4a8" in told


def test_a_precision_is_that_of_the_bundle() -> None:
    assert TensorRTOptions().flavours(convolutions=False, quantized="int4") == ("int4", "fp16")
    assert TensorRTOptions(precision="int4").flavours(convolutions=False, quantized="int4") == ("int4",)
    for precision, int4, is_of in (("int8", True, "INT4"), ("int4", False, "INT8")):
        with pytest.raises(UsageError, match=f"--precision {precision}: the bundle is quantized to {is_of}"):
            TensorRTOptions(precision=precision).flavours(convolutions=False, quantized="int4" if int4 else "int8")  # type: ignore[arg-type]
