"""FP8 from the recipe to engines: what is built, what the card says, what is refused and why."""

from pathlib import Path

import msgspec
import pytest
from toy_exports import refusal_of_jetpack_6

from p4q_edge.recipe.defaults import demo_recipe
from p4q_edge.recipe.toml import to_toml
from p4q_edge.runtime import BuildOptions, build_engine
from p4q_edge.runtime.artifacts import Precision, RtxMachine, RtxOptions, TensorRTOptions, on_backend
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.card import read_card
from p4q_edge.runtime.builders import candidates as candidates_module
from p4q_edge.runtime.builders.build import _say_what_is_known as say_what_is_known
from p4q_edge.runtime.builders.candidates import CpuRequest, cpu_candidates
from p4q_edge.runtime.builders.tensorrt.options import check_fp8
from p4q_edge.runtime.builders.tensorrt.rtx import FP8_CAPABILITIES
from p4q_edge.runtime.builders.tensorrt.rtx import _capabilities as capabilities_of
from p4q_edge.runtime.choices import PlanFlavour
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.engines.cuda import DeviceFacts
from p4q_edge.runtime.engines.tensorrt import multiplies_fp8
from p4q_edge.runtime.errors import ArtifactError, EnvironmentNotAbleError, UsageError
from p4q_edge.runtime.machine import cpu as machine

LINEARS = 17
CARRIED = "FP8 (E4M3) carried"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, not learned, as a CPU engine of whatever profile is faster here, beside its bundle."""
    folder = tmp_path_factory.mktemp("fp8")
    recipe = demo_recipe()
    small = msgspec.structs.replace(
        recipe,
        data=msgspec.structs.replace(recipe.data, test_limit=16),
        learn=msgspec.structs.replace(recipe.learn, prompts=False, adapter=False, class_residual=False),
        quantization=msgspec.structs.replace(recipe.quantization, number_format="fp8", calibration_images=8),
        export=msgspec.structs.replace(recipe.export, golden_samples=4, reference_images=8),
    )
    source, engine = folder / "p4q.toml", folder / "out.onnx"
    source.write_text(to_toml(small))
    assert main(["build", "--recipe", str(source), "--engine", str(engine), "--cpu-profile", "auto", "-q"]) == 0
    return engine


@pytest.fixture
def bundle(engine: Path) -> Path:
    return engine.with_suffix(".p4q")


def test_the_bundle_says_that_fp8_is_executed(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precision = read_bundle(bundle).manifest.precision
    assert (precision.number_format, precision.execution, precision.quantized_linears) == ("fp8", "executed", LINEARS)
    assert precision.int8_mac_share is not None
    assert precision.int8_mac_share > 0.9
    assert main(["inspect", "--lint", str(bundle)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(bundle)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"FP8 (E4M3) executed, fp16 remainder, {LINEARS} linears" in shown


def test_the_faster_form_is_kept_and_the_card_says_which(engine: Path) -> None:
    card = read_card(engine)
    inspection = card.build.inspection
    assert {"exact", "float"} <= set(inspection.rows)
    assert all(row.problem is None for row in inspection.rows.values())
    kept = card.build.options.kept_profile
    assert card.precision.label == (CARRIED if kept == "exact" else "W32A32 executed")


def test_no_cpu_is_said_to_execute_fp8(bundle: Path, tmp_path: Path) -> None:
    card = build_engine(bundle, tmp_path / "exact.onnx", options=BuildOptions(cpu_profile="exact"))
    assert card.precision.label == CARRIED
    assert card.build.inspection.integer_products == 0
    assert card.build.inspection.kernels["QuantizeLinear"] >= LINEARS
    told = "FP8 weights, whose products are in FP32, so .* has no fast .* --cpu-profile and P4Q_EDGE_CPU_PROFILE out"
    with pytest.raises(ArtifactError, match=told):
        build_engine(bundle, tmp_path / "fast.onnx", options=BuildOptions(cpu_profile="fast"))


def test_openvino_is_not_said_to_round_to_fp8(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves the rounding of inputs out, so that it runs the weights' values in FP32 alone."""
    monkeypatch.setattr(candidates_module, "installed", lambda: True)
    monkeypatch.setattr(candidates_module, "import_openvino", lambda: None)
    monkeypatch.setattr(candidates_module, "remainders", lambda: ("f32",))
    monkeypatch.setattr(machine, "saturates", lambda: False)
    model = read_bundle(bundle).model("fp32")
    found = cpu_candidates(model, CpuRequest(choice="auto"))
    assert [one.name for one in found.tried] == ["exact", "float", "openvino-float-f32"]
    assert any(reason.startswith("openvino-exact: OpenVINO leaves the rounding") for reason in found.not_measured)
    with pytest.raises(EnvironmentNotAbleError, match="so that it computes something else. Take `--cpu-profile float`"):
        cpu_candidates(model, CpuRequest(choice="exact", backend="openvino"))
    plain = cpu_candidates(model, CpuRequest(choice="float", backend="openvino"))
    assert ([one.name for one in plain.tried], plain.not_measured) == (["openvino-float-f32"], ())
    monkeypatch.setattr(machine, "saturates", lambda: True)
    with pytest.raises(EnvironmentNotAbleError, match="INT4 weights or in FP8, which has no fast one"):
        cpu_candidates(model, CpuRequest(choice="exact", backend="openvino"))


def test_an_engine_of_fp8_does_not_run_in_openvino(bundle: Path, tmp_path: Path) -> None:
    """It would pass its golden samples with values that are not those of its card."""
    carried = build_engine(bundle, tmp_path / "exact.onnx", options=BuildOptions(cpu_profile="exact"))
    with pytest.raises(UsageError, match="leaves the rounding .* Leave --backend out, or build for it: p4q-edge build"):
        on_backend(carried, "openvino")
    in_float = build_engine(bundle, tmp_path / "float.onnx", options=BuildOptions(cpu_profile="float"))
    assert on_backend(in_float, "openvino").backend == "openvino"


@pytest.mark.parametrize("dry", [False, True])
def test_jetpack_6_is_refused_with_the_reason(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry: bool
) -> None:
    told = refusal_of_jetpack_6(bundle, tmp_path / "out.plan", monkeypatch, dry=dry)
    assert "is quantized to FP8 (E4M3), which needs strong typing, and TensorRT 10.3.0 types not every layer" in told
    assert (
        "10.12 or later does, on GPUs of compute capability 8.9 and later. JetPack 6 has 10.3, and its Orin 8.7" in told
    )
    assert "export with the recipe int8" in told


def gpu(capability: str) -> DeviceFacts:
    return DeviceFacts(
        index=0,
        name="Orin",
        compute_capability=capability,
        total_memory_bytes=1 << 33,
        integrated=False,
        driver_version="13.0",
        runtime_version="13.0",
    )


@pytest.mark.parametrize(
    ("capability", "able"),
    [("7.5", False), ("8.0", False), ("8.7", False), ("8.9", True), ("9.0", True), ("10.0", True), ("12.1", True)],
)
def test_gpus_before_ada_are_refused_by_name(capability: str, able: bool) -> None:
    assert multiplies_fp8(capability) is able
    if able:
        check_fp8(TensorRTOptions(), gpu(capability))
        return
    told = rf"multiply from compute capability 8\.9 on .* Orin has {capability}\. Export with the recipe int8"
    with pytest.raises(EnvironmentNotAbleError, match=told):
        check_fp8(TensorRTOptions(), gpu(capability))


def test_a_plan_for_older_gpus_too_is_refused() -> None:
    with pytest.raises(UsageError, match="ampere_plus is for GPUs from compute capability 8.0 on, and FP8 needs 8.9"):
        check_fp8(TensorRTOptions(hardware_compatibility="ampere_plus"), gpu("8.9"))


def test_an_engine_for_rtx_is_for_gpus_that_multiply_fp8() -> None:
    assert capabilities_of(RtxOptions(), ("fp8",)) == FP8_CAPABILITIES
    assert capabilities_of(RtxOptions(capabilities=("12.0",)), ("fp8", "fp16")) == ("12.0",)
    assert capabilities_of(RtxOptions(), ("int8", "fp16")) == ()
    assert capabilities_of(RtxOptions(capabilities=("8.6",)), ("fp16",)) == ("8.6",)
    with pytest.raises(UsageError, match=r"--capability 8\.6: the bundle is quantized to FP8"):
        capabilities_of(RtxOptions(capabilities=("8.9", "8.6")), ("fp8",))


@pytest.mark.parametrize(("kept", "told"), [("int8", True), ("int8-linears", True), ("fp8", False), ("fp16", False)])
def test_what_is_promised_of_int8_is_said_of_int8_alone(
    kept: PlanFlavour, told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine = RtxMachine(
        tensorrt_rtx="1.7.1",
        platform="linux-x86_64",
        compute_capability="8.9",
        precision=kept,
        batches="1,1,8",
        optimization_level="3",
    )
    say_what_is_known(tmp_path / "out.rtx", None, machine)
    assert "out.rtx is experimental: its authors ran no engine of this kind on an RTX GPU" in caplog.text
    assert ("INT8" in caplog.text) is told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "integer kernels compute with these widths"),
        ({"execution": "carried"}, "values lie on this grid, 8-bit kernels compute with them"),
        ({"number_format": "fp8"}, "kernels multiply these floating-point numbers of 8 bits"),
        ({"number_format": "fp8", "execution": "carried"}, "values lie on this grid, FP32 kernels compute with them"),
        ({"weight_block": 128}, "kernels read weights of this width, and multiply in floating point"),
        ({"quantized_linears": 0}, "nothing is quantized"),
    ],
)
def test_reports_say_what_computes(changes: dict[str, object], told: str) -> None:
    w8a8 = Precision(weight_bits=8, activation_bits=8, execution="executed", remainder="fp16", quantized_linears=3)
    assert msgspec.structs.replace(w8a8, **changes).computed == told


def test_a_precision_is_that_of_the_bundle() -> None:
    assert TensorRTOptions().flavours(convolutions=False, quantized="fp8") == ("fp8", "fp16")
    assert TensorRTOptions(precision="fp8").flavours(convolutions=False, quantized="fp8") == ("fp8",)
    with pytest.raises(UsageError, match="--precision int8: the bundle is quantized to FP8"):
        TensorRTOptions(precision="int8").flavours(convolutions=False, quantized="fp8")
