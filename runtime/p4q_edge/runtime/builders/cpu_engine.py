"""From a bundle to a proved CPU engine with its card and what lies beside it."""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from p4q_edge.runtime.artifacts import (
    GRAPH_FP32,
    NOISE_OF_PROFILE,
    WEIGHTS,
    Build,
    Bundle,
    Card,
    CpuMachine,
    CpuOptions,
    Golden,
    OnnxRuntimeBuild,
    OpenVINOBuild,
    OpenVINOMachine,
    OpenVINOOptions,
    OptimizedCopy,
    Precision,
)
from p4q_edge.runtime.builders.candidates import (
    Candidates,
    CpuCandidate,
    CpuRequest,
    cpu_candidates,
    tries_convolutions,
    without_bf16,
)
from p4q_edge.runtime.builders.card_parts import card_of, part_of
from p4q_edge.runtime.builders.consistency import check_outputs
from p4q_edge.runtime.builders.cpu import ProofSetting, ProvedModel
from p4q_edge.runtime.builders.cpu_worker_process import prove_apart
from p4q_edge.runtime.choices import (
    CONVOLUTION_PROFILES,
    SEVEN_BIT_PROFILES,
    CpuProfile,
    Remainder,
    RemainderChoice,
)
from p4q_edge.runtime.engines.onnxruntime import OPTIMIZED, import_onnxruntime
from p4q_edge.runtime.engines.onnxruntime import fingerprint as of_onnxruntime
from p4q_edge.runtime.engines.openvino import COMPILED
from p4q_edge.runtime.engines.openvino import fingerprint as of_openvino
from p4q_edge.runtime.machine import give_back_memory
from p4q_edge.runtime.progress import task
from p4q_edge.runtime.statistics import RoundingLimits, rounding_limits_of
from p4q_edge.runtime.storage import sha256_bytes

logger = logging.getLogger(__name__)

FAST_BITS = 7
"""Weight bits of the profile `fast`: the step of its weights is up to twice that of 8 bits."""
FP32 = Precision(weight_bits=32, activation_bits=32, execution="executed", remainder="fp32", quantized_linears=0)
"""Precision of a CPU engine for which FP32 turned out to be faster than INT8, or was asked for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CpuEngine:
    """A CPU engine before it is written.

    Attributes:
        card: complete but for what the golden samples gave.
        outputs: all outputs by name, a row for each golden image.
        golden: the samples.
        files: contents by suffix of the engine's name.
    """

    card: Card
    outputs: Mapping[str, np.ndarray]
    golden: Golden
    files: Mapping[str, bytes | Path]


def make_cpu_engine(bundle: Bundle, engine: Path, request: CpuRequest, *, deadline_s: float) -> CpuEngine:
    """Prove what a request leaves open in a process of its own, and return the engine that is kept.

    Raises:
        EnvironmentNotAbleError: a library that was asked for is not installed.
        CorruptArtifactError: the graph of the bundle is not what its manifest says.
    """
    golden = bundle.golden()
    if request.backend != "openvino" and request.choice not in CONVOLUTION_PROFILES:
        import_onnxruntime()
    candidates = candidates_of(bundle, request)
    give_back_memory()  # of the graphs that candidates were made of, before they are loaded beside it
    setting = ProofSetting(
        threads=request.threads,
        batch=request.batch,
        logit_scale=bundle.head().logit_scale,
        limits={profile: _limits(bundle, profile, request.remainder) for profile in candidates.models},
        name=str(engine),
    )
    names = [candidate.name for candidate in candidates.tried]
    if len(names) > 1:
        logger.info("build: trying %s on this machine", ", ".join(names))
    with task("build", total=1):
        proved = prove_apart(candidates, golden, setting, deadline_s=deadline_s)
    check_outputs(bundle, proved.outputs, input_shape=proved.input_shape)
    built, profile, parity = proved.built, proved.built.profile, bundle.manifest.parity
    golden = golden.for_profile(profile)
    card = card_of(bundle, _build(proved, request))
    card = msgspec.structs.replace(
        card,
        engine_sha256=sha256_bytes(built.model),
        engine_size_bytes=len(built.model),
        parts=tuple(part_of(bundle, name) for name in (GRAPH_FP32, WEIGHTS)) if profile == "exact" else (),
        precision=_precision(card.precision, bundle.manifest.precision, built.candidate),
        rounding_bits=_rounding_bits(card.rounding_bits, profile),
        noise=parity.noise_of(profile, remainder="f32"),
        noise_bf16=parity.of_remainder(built.candidate.remainder),
        golden=base64.b64encode(golden.to_bytes()).decode("ascii"),
    )
    suffix = COMPILED if built.candidate.backend == "openvino" else OPTIMIZED
    files = {"": built.model, suffix: built.optimized}
    return CpuEngine(card=card, outputs=proved.outputs, golden=golden, files=files)


def candidates_of(bundle: Bundle, request: CpuRequest) -> Candidates:
    """Return the candidates that a request leaves open for a bundle.

    Raises:
        EnvironmentNotAbleError, ArtifactError: as `cpu_candidates`.
    """
    noise, unknown = bundle.manifest.parity.noise, "the bundle does not record what it may differ by; export it again"
    precision = bundle.manifest.precision
    half, reason = None, ""
    if tries_convolutions(request) and precision.quantized_convolutions and precision.plan_flavour == "int8":
        if bundle.manifest.problem("fp16") is not None:
            reason = "the bundle's graph for GPUs is not sound"
        elif request.choice == "auto" and not {NOISE_OF_PROFILE[name] for name in CONVOLUTION_PROFILES} <= noise.keys():
            reason = unknown
        else:
            half = bundle.model("fp16")
    candidates = cpu_candidates(bundle.model("fp32"), request, half=half)
    if reason and any(one.backend == "openvino" for one in candidates.tried):
        candidates = replace(candidates, not_measured=(*candidates.not_measured, f"convolutions in INT8: {reason}"))
    if request.remainder == "auto" and "bf16" not in noise:
        candidates = without_bf16(candidates, unknown)
    return candidates


def _build(proved: ProvedModel, request: CpuRequest) -> Build:
    built, kept = proved.built, proved.built.candidate
    copy = OptimizedCopy(
        size_bytes=len(built.optimized),
        sha256=sha256_bytes(built.optimized),
        engine_sha256=sha256_bytes(built.model),
    )
    if kept.backend == "openvino":
        return OpenVINOBuild(
            built_with=OpenVINOMachine(**of_openvino()),
            options=OpenVINOOptions(
                cpu_profile=request.choice,
                kept_profile=kept.profile,
                remainder=request.remainder,
                kept_remainder=kept.remainder,
                batch=request.batch,
            ),
            inspection=proved.inspection,
            optimized=copy,
        )
    return OnnxRuntimeBuild(
        built_with=CpuMachine(**of_onnxruntime()),
        options=CpuOptions(cpu_profile=request.choice, kept_profile=kept.profile),
        inspection=proved.inspection,
        optimized=copy,
    )


def _limits(bundle: Bundle, profile: CpuProfile, asked: RemainderChoice) -> RoundingLimits:
    """Return what the golden samples are held against: who leaves the remainder open gets one as near as in 32 bits."""
    bits = _rounding_bits(bundle.manifest.rounding_bits, profile)
    remainder: Remainder = "bf16" if asked == "bf16" else "f32"
    return rounding_limits_of(bits, bundle.manifest.parity.noise_of(profile, remainder=remainder))


def _rounding_bits(bits: int, profile: CpuProfile) -> int:
    return min(bits, FAST_BITS) if profile in SEVEN_BIT_PROFILES else bits


def _precision(precision: Precision, of_bundle: Precision, kept: CpuCandidate) -> Precision:
    """Return what an engine computes in, from that of the graph for CPUs and that of the bundle."""
    if kept.profile in CONVOLUTION_PROFILES:
        precision = msgspec.structs.replace(of_bundle, remainder="fp32")
    if kept.profile in SEVEN_BIT_PROFILES:
        narrowed = min(precision.weight_bits, FAST_BITS)
        precision = msgspec.structs.replace(precision, weight_bits=narrowed, execution="carried")
    elif kept.profile == "float":
        precision = FP32
    return msgspec.structs.replace(precision, remainder="bf16") if kept.remainder == "bf16" else precision
