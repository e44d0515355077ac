"""Engines with bfloat16 for what is not quantized are held to the noise of that, and not of other precisions."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.artifacts import GraphParity, NoiseKind, OnnxRuntimeBuild, OpenVINOBuild, on_backend
from p4q_edge.runtime.artifacts.card import read_card, write_card
from p4q_edge.runtime.builders.build import BuildOptions, build_engine
from p4q_edge.runtime.builders.candidates import Candidates, CpuCandidate, without_bf16
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.engines.openvino import installed, remainders
from p4q_edge.runtime.evaluation.report.document import Report, read_report
from p4q_edge.runtime.statistics import EXCESS, NOISE_FACTOR, NoiseFloor, rounding_limits_of, with_remainder

QUIET = NoiseFloor(worst_loss=1e-6, median_loss=1e-14, margin=1e-3)
COARSE = NoiseFloor(worst_loss=1e-4, median_loss=2e-5, margin=1e-2)
with_bf16 = pytest.mark.skipif(
    find_spec("openvino") is None or not installed() or "bf16" not in remainders(),
    reason="OpenVINO on a processor with bfloat16",
)
floors = st.builds(NoiseFloor, **dict.fromkeys(NoiseFloor.__struct_fields__, st.floats(0, 1)))


@pytest.fixture
def without_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [])


@given(floors, floors)
def test_a_remainder_of_its_own_noise_never_narrows_a_limit(weights: NoiseFloor, rest: NoiseFloor) -> None:
    assert with_remainder(weights, None) == weights
    assert with_remainder(None, rest) is None
    both = rounding_limits_of(8, with_remainder(weights, rest))
    each = [rounding_limits_of(8, one) for one in (weights, rest)]
    assert both.least_cosine == min(one.least_cosine for one in each)
    assert both.top1_margin == max(one.top1_margin for one in each)
    assert both.median_loss == max(one.median_loss or 0.0 for one in each)
    assert with_remainder(rest, weights) == with_remainder(weights, rest)


def test_a_bundle_gives_the_noise_of_profile_and_remainder() -> None:
    parity = GraphParity(noise={"fp32": QUIET, "bf16": COARSE})
    assert parity.noise_of("exact", remainder="f32") == QUIET
    assert parity.noise_of("exact", remainder="bf16") == COARSE
    assert parity.noise_of("fast", remainder="bf16") is None  # of its weights nothing is known
    assert GraphParity(noise={"fp32": QUIET}).noise_of("exact", remainder="bf16") == QUIET
    assert (parity.of_remainder("f32"), parity.of_remainder("bf16")) == (None, COARSE)


def test_without_a_record_a_remainder_in_bf16_is_not_tried() -> None:
    plain = Candidates(tried=(CpuCandidate(profile="exact"),), models={"exact": b""})
    assert without_bf16(plain, "why") is plain
    both = msgspec.structs.replace(plain.tried[0], backend="openvino", remainder="bf16")
    found = without_bf16(Candidates(tried=(*plain.tried, both), models=plain.models, not_measured=("one",)), "why")
    assert (found.tried, found.not_measured) == (plain.tried, ("one", "bf16: why"))


def validated_report(engine: Path, images: Path, **card: object) -> Report:
    """Validate the tiny engine under a card that says bfloat16, whatever ran."""
    old = read_card(engine)
    precision = msgspec.structs.replace(old.precision, remainder="bf16")
    write_card(engine, msgspec.structs.replace(old, precision=precision, noise=QUIET, **card), force=True)
    assert main(["validate", str(engine), "--data", str(images), "-q"]) == 0
    return read_report(engine.with_name("tiny.report.json"))


@pytest.mark.usefixtures("without_toolkit")
def test_the_median_is_held_against_the_noise_of_that_precision(engine: Path, validated: Path) -> None:
    report = validated_report(engine, validated, noise_bf16=COARSE)
    assert report.chain is not None
    gates = {gate.name: gate.limit for gate in report.chain.gates}
    assert gates["median loss, fake_quant to engine"] == pytest.approx(EXCESS * COARSE.median_loss)
    assert gates["median loss, fake_quant to onnx"] < 1e-6  # as strict as ever
    assert gates["cosine (p1), fake_quant to engine"] == pytest.approx(1 - NOISE_FACTOR**2 * COARSE.worst_loss)
    assert report.not_checked == ()


@pytest.mark.usefixtures("without_toolkit")
def test_where_it_was_not_measured_that_is_said_and_the_rest_is_held_as_ever(engine: Path, validated: Path) -> None:
    report = validated_report(engine, validated)
    assert report.chain is not None
    gates = {gate.name: gate.limit for gate in report.chain.gates}
    assert "median loss, fake_quant to engine" not in gates
    assert gates["cosine (p1), fake_quant to engine"] == pytest.approx(1 - NOISE_FACTOR**2 * QUIET.worst_loss)
    assert report.not_checked == (
        "the median loss of the engine: its bundle does not record what a bf16 remainder costs; export it again",
    )


@pytest.mark.usefixtures("without_toolkit")
def test_an_engine_in_floating_point_has_no_median_to_miss(engine: Path, validated: Path) -> None:
    precision = read_card(engine).precision
    write_card(
        engine,
        msgspec.structs.replace(
            read_card(engine), precision=msgspec.structs.replace(precision, weight_bits=32, activation_bits=32)
        ),
        force=True,
    )
    assert validated_report(engine, validated).not_checked == ()


def test_in_another_library_the_remainder_is_in_32_bits_and_so_is_the_limit(engine: Path) -> None:
    card = msgspec.structs.replace(read_card(engine), noise=QUIET, noise_bf16=COARSE)
    assert card.noise_with_remainder == COARSE
    assert on_backend(card, "openvino").noise_with_remainder == QUIET


@with_bf16
@pytest.mark.parametrize("recorded", [False, True])
def test_auto_keeps_only_what_it_can_judge(rebundle: Callable[..., Path], tmp_path: Path, recorded: bool) -> None:
    kinds: tuple[NoiseKind, ...] = ("fp32", "float", "bf16") if recorded else ("fp32", "float")
    parity = GraphParity(noise=dict.fromkeys(kinds, COARSE))
    options = BuildOptions(cpu_profile="auto", threads=1)
    card = build_engine(rebundle(parity=parity), tmp_path / "out.onnx", options=options)
    assert isinstance(card.build, OnnxRuntimeBuild | OpenVINOBuild)
    inspection = card.build.inspection
    assert ("openvino-bf16" in inspection.rows) is recorded
    told = [reason for reason in inspection.not_measured if reason.startswith("bf16: ")]
    assert told == ([] if recorded else ["bf16: the bundle does not record what it may differ by; export it again"])


@with_bf16
def test_the_card_of_an_engine_in_bf16_has_its_noise(rebundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = rebundle(parity=GraphParity(noise={"fp32": QUIET, "bf16": COARSE}))
    options = BuildOptions(cpu_profile="exact", remainder="bf16", threads=1)
    card = build_engine(bundle, tmp_path / "out.onnx", backend="openvino", options=options)
    assert isinstance(card.build, OpenVINOBuild)
    assert (card.noise, card.noise_bf16, card.precision.remainder) == (QUIET, COARSE, "bf16")
    options = BuildOptions(cpu_profile="exact", remainder="f32", threads=1)
    card = build_engine(bundle, tmp_path / "out.onnx", backend="openvino", options=options, force=True)
    assert (card.noise, card.noise_bf16, card.precision.remainder) == (QUIET, None, "fp32")
