"""Quantized convolutions on a CPU: when they are tried, who may ask for them, and what the card says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from machines import OVERFLOWS, processor

from p4q_edge.runtime.artifacts import NOISE_OF_PROFILE, GraphParity, Precision
from p4q_edge.runtime.artifacts.bundle import Bundle, read_bundle
from p4q_edge.runtime.builders import candidates as candidates_module
from p4q_edge.runtime.builders import cpu_engine
from p4q_edge.runtime.builders.candidates import Candidates, CpuRequest, cpu_candidates, require_cpu_libraries
from p4q_edge.runtime.builders.cpu_engine import candidates_of
from p4q_edge.runtime.choices import CONVOLUTION_PROFILES, CpuBackend
from p4q_edge.runtime.errors import ArtifactError, EnvironmentNotAbleError, UsageError
from p4q_edge.runtime.statistics import NoiseFloor


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the graphs of these profiles, by names alone."""
    monkeypatch.setattr(candidates_module, "import_openvino", lambda: None)
    monkeypatch.setattr(candidates_module, "integer_convolutions", lambda half, single: half + single)
    monkeypatch.setattr(candidates_module, "without_overflow", lambda graph: graph + b" narrow")
    monkeypatch.setattr(candidates_module, "flavour_of", lambda _: "int8")
    monkeypatch.setattr(candidates_module, "_CHANGE", dict.fromkeys(("float", "fast"), bytes))


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    ("kind", "backend", "expected"),
    [
        ({"openvino_is": False}, None, ["exact", "float"]),
        (
            {"openvino_is": True},
            None,
            ["exact", "openvino-f32", "float", "openvino-convolutions-f32", "openvino-bf16"],
        ),
        (OVERFLOWS, None, ["exact", "float", "openvino-float-f32", "fast", "openvino-fast-convolutions-f32"]),
        (OVERFLOWS, "openvino", ["openvino-float-f32", "openvino-fast-f32", "openvino-fast-convolutions-f32"]),
        (OVERFLOWS, "onnxruntime", ["exact", "float", "fast"]),
    ],
)
def test_they_are_tried_in_openvino(
    monkeypatch: pytest.MonkeyPatch, kind: dict[str, bool], backend: CpuBackend | None, expected: list[str]
) -> None:
    processor(monkeypatch, **kind)
    found = cpu_candidates(b"single", CpuRequest(choice="auto", backend=backend), half=b"half ")
    assert [candidate.name for candidate in found.tried] == expected
    models = {"convolutions": b"half single", "fast-convolutions": b"half single narrow"}
    assert {name: data for name, data in found.models.items() if name in models}.items() <= models.items()


@pytest.mark.usefixtures("made")
def test_who_asks_for_them_gets_them_or_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, openvino_is=True)
    found = cpu_candidates(b"single", CpuRequest(choice="convolutions"), half=b"half ")
    assert [candidate.name for candidate in found.tried] == ["openvino-convolutions-f32"]
    with pytest.raises(ArtifactError, match="convolutions needs a bundle with quantized convolutions.* Leave it out"):
        cpu_candidates(b"single", CpuRequest(choice="convolutions"))
    with pytest.raises(UsageError, match=r"convolutions is OpenVINO's: .* Leave --backend out, or name --backend open"):
        require_cpu_libraries(CpuRequest(choice="convolutions", backend="onnxruntime"))
    with pytest.raises(UsageError, match=r"computes what is not quantized in f32 alone\. Leave --remainder out"):
        require_cpu_libraries(CpuRequest(choice="convolutions", remainder="bf16"))
    processor(monkeypatch, **OVERFLOWS)
    with pytest.raises(EnvironmentNotAbleError, match=r"overflow\. Take `--cpu-profile fast-convolutions`"):
        require_cpu_libraries(CpuRequest(choice="convolutions"))


@pytest.mark.usefixtures("made")
def test_a_bundle_that_does_not_tell_their_noise_leaves_them_out(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    processor(monkeypatch, openvino_is=True, bf16=False)
    bundle = read_bundle(tiny_bundle)
    stored = msgspec.structs.replace(bundle.manifest.precision, quantized_convolutions=2)

    def tried(parity: GraphParity, precision: Precision = stored, unsound: str = "") -> Candidates:
        problems = {"fp16": unsound} if unsound else {}
        manifest = msgspec.structs.replace(bundle.manifest, parity=parity, precision=precision, unsound=problems)
        return candidates_of(replace(bundle, manifest=manifest), CpuRequest(choice="auto"))

    noise = dict.fromkeys(NOISE_OF_PROFILE.values(), NoiseFloor(worst_loss=1e-4, median_loss=1e-5, margin=1e-3))
    known = GraphParity(noise=noise)
    name = "openvino-convolutions-f32"
    assert name in {one.name for one in tried(known).tried}
    left_out = {
        "does not record what it may differ by; export it again": tried(GraphParity()),
        "graph for GPUs is not sound": tried(known, unsound="it is off"),
    }
    for reason, found in left_out.items():
        assert name not in {one.name for one in found.tried}
        assert any("convolutions in INT8: the bundle" in one and reason in one for one in found.not_measured)
    without = tried(known, bundle.manifest.precision)
    assert name not in {one.name for one in without.tried}
    assert not any("convolutions" in one for one in without.not_measured)


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    ("openvino_is", "asked", "read"),
    [
        (True, CpuRequest(choice="auto"), ["fp16", "fp32"]),
        (True, CpuRequest(choice="convolutions"), ["fp16", "fp32"]),
        (True, CpuRequest(choice="exact"), ["fp32"]),
        (True, CpuRequest(choice="float", backend="openvino"), ["fp32"]),
        (True, CpuRequest(choice="auto", backend="onnxruntime"), ["fp32"]),
        (False, CpuRequest(choice="auto"), ["fp32"]),
    ],
)
def test_the_graph_for_gpus_is_read_where_it_is_tried_alone(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, openvino_is: bool, asked: CpuRequest, read: list[str]
) -> None:
    processor(monkeypatch, openvino_is=openvino_is)
    bundle = read_bundle(tiny_bundle)
    seen: list[str] = []

    def model(_: Bundle, remainder: str) -> bytes:
        seen.append(remainder)
        return b"graph"

    monkeypatch.setattr(Bundle, "model", model)
    noise = dict.fromkeys(NOISE_OF_PROFILE.values(), NoiseFloor(worst_loss=1e-4, median_loss=1e-5, margin=1e-3))
    stored = msgspec.structs.replace(bundle.manifest.precision, quantized_convolutions=2)
    manifest = msgspec.structs.replace(bundle.manifest, parity=GraphParity(noise=noise), precision=stored)
    candidates_of(replace(bundle, manifest=manifest), asked)
    assert seen == read


def test_each_profile_is_compared_with_the_module_quantized_as_it_is(tiny_bundle: Path) -> None:
    golden = read_bundle(tiny_bundle).golden()
    other = {name: getattr(golden, name) + 1 for name in ("features", "embedding", "logits")}
    golden = replace(golden, on_cpu=other)
    for profile in NOISE_OF_PROFILE:
        found = golden.for_profile(profile)
        expected = golden.logits if profile in CONVOLUTION_PROFILES else other["logits"]
        assert np.array_equal(found.logits, expected)
        assert not found.on_cpu


def test_what_the_card_says_is_executed() -> None:
    whole = Precision(
        weight_bits=8,
        activation_bits=8,
        execution="executed",
        remainder="fp16",
        quantized_linears=5,
        quantized_convolutions=54,
        int8_mac_share=0.998,
        linear_mac_share=0.073,
    )
    linears = msgspec.structs.replace(whole.with_float_convolutions(), remainder="fp32")
    said = {
        profile: cpu_engine._precision(linears, whole, candidates_module.CpuCandidate(profile=profile))
        for profile in NOISE_OF_PROFILE
    }
    assert said["exact"].label == "W8A8 executed in 7.3 % of multiply-accumulates"
    assert said["convolutions"].label == "W8A8 executed"
    assert said["fast-convolutions"].label == "W7A8 carried"
    assert said["fast-convolutions"].parts == "5 linears and 54 convolutions (99.8 % of multiply-accumulates)"
    assert {one.remainder for one in said.values()} == {"fp32"}
