"""What a CPU engine can be: a profile of the model's weights, and the library that runs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import cast, get_args

import msgspec

from p4q_edge.runtime.builders.tensorrt.narrow_weights import flavour_of
from p4q_edge.runtime.choices import (
    CONVOLUTION_PROFILES,
    MAX_BATCH,
    CpuBackend,
    CpuChoice,
    CpuProfile,
    Remainder,
    RemainderChoice,
)
from p4q_edge.runtime.engines.onnxruntime import (
    float_weights,
    integer_convolutions,
    seven_bit_weights,
    without_overflow,
)
from p4q_edge.runtime.engines.openvino import import_openvino, installed, remainders
from p4q_edge.runtime.errors import ArtifactError, CorruptArtifactError, EnvironmentNotAbleError, UsageError
from p4q_edge.runtime.machine import advice
from p4q_edge.runtime.machine import cpu as machine

_CHANGE: Mapping[CpuProfile, Callable[[bytes], bytes]] = {"fast": seven_bit_weights, "float": float_weights}


PROFILE_VARIABLE = "P4Q_EDGE_CPU_PROFILE"
"""Environment variable with the profile of builds that name none, as where many machines are to build the same."""


def default_choice(backend: CpuBackend | None, *, has_forms: bool) -> CpuChoice:
    """Return the profile where none is named: that of the environment, or else whether there is anything to choose.

    `auto` where OpenVINO is installed or the model has several forms, and no library was named, and where OpenVINO was
    named on a processor on which it cannot run `exact`; elsewhere `exact`.

    Args:
        backend: the library that was named.
        has_forms: whether the model has quantized convolutions or INT4 weights, see `Precision.has_forms_on_cpus`.

    Raises:
        UsageError: the environment names no profile.
    """
    named = os.environ.get(PROFILE_VARIABLE, "")
    known = get_args(CpuChoice)
    if named and named not in known:
        raise UsageError(f"{PROFILE_VARIABLE}={named}: expected one of {', '.join(known)}. Correct or unset it.")
    if named:
        return cast(CpuChoice, named)
    if backend == "openvino":
        return "auto" if machine.saturates() else "exact"
    return "auto" if backend is None and (has_forms or installed()) else "exact"


class CpuCandidate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to run a bundle's graph on a CPU; `remainder` is OpenVINO's."""

    profile: CpuProfile
    backend: CpuBackend = "onnxruntime"
    remainder: Remainder = "f32"

    @property
    def name(self) -> str:
        """How cards and logs call it: `exact`, `openvino-bf16`, `openvino-fast-f32`."""
        if self.backend == "onnxruntime":
            return self.profile
        return "-".join(["openvino", *(() if self.profile == "exact" else (self.profile,)), self.remainder])


@dataclass(frozen=True, kw_only=True)
class CpuRequest:
    """What a CPU engine shall be.

    Attributes:
        choice: profile of the weights.
        backend: library; None leaves it open where `choice` is `auto`, and means ONNX Runtime elsewhere.
        remainder: of OpenVINO.
        threads: threads of a run; None takes one a core.
        batch: images of a run.
    """

    choice: CpuChoice = "exact"
    backend: CpuBackend | None = None
    remainder: RemainderChoice = "auto"
    threads: int | None = None
    batch: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= MAX_BATCH:
            raise UsageError(f"batch must be at least 1 and at most {MAX_BATCH}, got {self.batch}.")
        machine.check_threads(self.threads)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What is tried, in the order in which ties are decided, and what cannot be."""

    tried: tuple[CpuCandidate, ...]
    models: Mapping[CpuProfile, bytes]
    not_measured: tuple[str, ...] = ()


def require_cpu_libraries(request: CpuRequest) -> None:
    """Refuse a request that this machine cannot meet, whatever the model.

    Raises:
        EnvironmentNotAbleError: OpenVINO is not installed, or the processor lacks what its remainder or its 8-bit
            weights need.
    """
    libraries = _libraries(request)
    if request.choice in CONVOLUTION_PROFILES and request.backend == "onnxruntime":
        raise UsageError(
            f"--cpu-profile {request.choice} is OpenVINO's: in ONNX Runtime convolutions in INT8 are slower than in "
            "FP32. Leave --backend out, or name --backend openvino."
        )
    if request.choice in CONVOLUTION_PROFILES and request.remainder == "bf16":
        raise UsageError(
            f"--cpu-profile {request.choice} computes what is not quantized in f32 alone. Leave --remainder out."
        )
    if libraries == ("openvino",):
        import_openvino()
        if request.choice == "convolutions" and machine.saturates():
            raise EnvironmentNotAbleError(f"{advice.OVERFLOW_IN_OPENVINO}. Take `--cpu-profile fast-convolutions`.")
        if request.choice == "exact" and machine.saturates():
            raise EnvironmentNotAbleError(
                f"{advice.OVERFLOW_IN_OPENVINO}. Take `--cpu-profile fast` (7-bit weights), `--cpu-profile float` (of "
                "a bundle with INT4 weights or in FP8, which has no fast one) or `--backend onnxruntime`, which adds "
                "them in 32."
            )
    if request.remainder == "auto":
        return
    if "openvino" not in libraries:
        raise EnvironmentNotAbleError(
            f"--remainder {request.remainder} is OpenVINO's, which is not installed. Run: pip install "
            "'p4q-edge-runtime[openvino]', or leave it out"
        )
    if request.remainder not in remainders():
        raise EnvironmentNotAbleError(
            f"this processor has no instructions for --remainder {request.remainder}. Leave it out, or take f32."
        )


def cpu_candidates(model: bytes, request: CpuRequest, *, half: bytes | None = None) -> Candidates:
    """Return the candidates that a request leaves open, with the Q/DQ model of a bundle as each profile keeps it.

    Of two that are equally fast the first is kept: the reference's own weights before narrower ones, and a remainder in
    32 bits before one in 16.

    Args:
        model: the bundle's graph with FP32 remainder.
        request: what is asked for.
        half: that with FP16 remainder, where convolutions are quantized in it and what they may differ by is known.

    Raises:
        ArtifactError: a profile was asked for that the model does not have.
        EnvironmentNotAbleError: what was asked for needs a package that is not installed.
        CorruptArtifactError: a weight of the model is not as the exporter writes it.
    """
    require_cpu_libraries(request)
    in_fp8 = flavour_of(model) == "fp8"
    if in_fp8 and request.backend == "openvino" and request.choice == "exact":
        raise EnvironmentNotAbleError(
            f"{advice.FP8_IN_OPENVINO}. Take `--cpu-profile float`, which says so, or `--backend onnxruntime`."
        )
    libraries = _libraries(request)
    left_out: list[str] = []
    if request.choice == "auto" and "openvino" not in libraries and request.backend is None:
        left_out.append("OpenVINO: it is not installed")
    models, missing = _models(model, request, half)
    left_out += missing
    tried: list[CpuCandidate] = []
    if "openvino" in libraries:
        profiles, reasons = _openvino_profiles(models, request, in_fp8=in_fp8)
        left_out += reasons
        tried += [
            CpuCandidate(profile=profile, backend="openvino", remainder=remainder)
            for remainder in remainders()
            if request.remainder in ("auto", remainder)
            for profile in profiles
            # What bfloat16 may do beside quantized convolutions is not measured.
            if remainder == "f32" or profile not in CONVOLUTION_PROFILES
        ]
    if "onnxruntime" in libraries:
        tried += [CpuCandidate(profile=profile) for profile in models if profile not in CONVOLUTION_PROFILES]
    if not tried:
        raise EnvironmentNotAbleError(
            f"nothing can be built for OpenVINO here: {'; '.join(left_out)}. Install the package onnx, or take "
            "`--backend onnxruntime`."
        )
    return Candidates(tried=tuple(sorted(tried, key=_rank)), models=models, not_measured=tuple(left_out))


def tries_convolutions(request: CpuRequest) -> bool:
    """Return whether a request leaves engines open whose convolutions are quantized, where a bundle has such."""
    return "openvino" in _libraries(request) and request.choice in ("auto", *CONVOLUTION_PROFILES)


def without_bf16(candidates: Candidates, reason: str) -> Candidates:
    """Return the candidates that compute in 32 bits what is not quantized."""
    tried = tuple(one for one in candidates.tried if one.remainder != "bf16")
    if len(tried) == len(candidates.tried):
        return candidates
    return replace(candidates, tried=tried, not_measured=(*candidates.not_measured, f"bf16: {reason}"))


def _rank(candidate: CpuCandidate) -> tuple[bool, int, bool]:
    return (
        candidate.remainder == "bf16",
        ("exact", "float", "convolutions", "fast", "fast-convolutions").index(candidate.profile),
        candidate.backend == "openvino",
    )


def _libraries(request: CpuRequest) -> tuple[CpuBackend, ...]:
    if request.backend is not None:
        return (request.backend,)
    if request.choice in CONVOLUTION_PROFILES:
        return ("openvino",)
    if request.choice == "auto" and installed():
        return ("onnxruntime", "openvino")
    return ("onnxruntime",)


def _openvino_profiles(
    models: Mapping[CpuProfile, bytes], request: CpuRequest, *, in_fp8: bool
) -> tuple[tuple[CpuProfile, ...], tuple[str, ...]]:
    """Return the profiles that are tried in OpenVINO, and why not the reference's own."""
    if in_fp8:
        reasons = (f"openvino-exact: {advice.FP8_IN_OPENVINO}",) if "exact" in models else ()
        return tuple(name for name in models if name == "float"), reasons
    if not machine.saturates():
        own = ("exact", *CONVOLUTION_PROFILES)
        return tuple(name for name in models if name in own or request.backend == "openvino"), ()
    reasons = (f"openvino-exact: {advice.OVERFLOW_IN_OPENVINO}",) if "exact" in models else ()
    # Its kernels for integers are slower there than ONNX Runtime's for the same weights: 1.4 to 2.3 times.
    wanted = ("float", "fast") if request.backend == "openvino" else ("float",)
    return tuple(name for name in models if name in (*wanted, "fast-convolutions")), reasons


def _models(model: bytes, request: CpuRequest, half: bytes | None) -> tuple[dict[CpuProfile, bytes], list[str]]:
    """Return the model of each profile that is open, and what could not be made."""
    changes: dict[CpuProfile, Callable[[bytes], bytes]] = dict(_CHANGE)
    if half is not None:
        changes["convolutions"] = partial(integer_convolutions, half)
        changes["fast-convolutions"] = lambda single: without_overflow(integer_convolutions(half, single))
    if request.choice != "auto":
        if request.choice in CONVOLUTION_PROFILES and half is None:
            raise ArtifactError(
                f"--cpu-profile {request.choice} needs a bundle with quantized convolutions and a sound graph for "
                "GPUs, and this one has none. Leave it out for the fastest profile that the bundle has."
            )
        change = changes.get(request.choice)
        return {request.choice: model if change is None else change(model)}, []
    models: dict[CpuProfile, bytes] = {"exact": model}
    # Narrower weights are faster only where sums of full ones would overflow.
    profiles: list[CpuProfile] = ["float", "fast"] if machine.saturates() else ["float"]
    if half is not None:
        profiles.append("fast-convolutions" if machine.saturates() else "convolutions")
    missing = []
    for profile in profiles:
        try:
            models[profile] = changes[profile](model)
        except CorruptArtifactError:
            raise
        except ArtifactError:
            continue  # without integers there is nothing to narrow
        except EnvironmentNotAbleError:
            missing.append(f"{profile}: the package onnx is not installed")
    return models, missing
