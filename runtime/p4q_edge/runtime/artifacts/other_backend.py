"""One `.onnx` engine in another library for CPUs than the one that it was built for."""

from __future__ import annotations

import msgspec

from p4q_edge.runtime.artifacts.builds import (
    CpuInspection,
    CpuMachine,
    CpuOptions,
    OnnxRuntimeBuild,
    OpenVINOBuild,
    OpenVINOMachine,
    OpenVINOOptions,
)
from p4q_edge.runtime.artifacts.card import Card
from p4q_edge.runtime.choices import CpuBackend
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.machine import advice

_NOT_READ = CpuInspection(kernels={}, integer_products=0, float_products=0)
"""The kernels on the card are those of the library that it was built for."""


def on_backend(card: Card, backend: CpuBackend | None) -> Card:
    """Return the card of an engine as that of another library that runs the same file.

    It is built nowhere: it is proved on its golden samples as an engine of another machine, and the part that is not
    quantized computes in 32 bits.

    Args:
        card: of an engine.
        backend: the library; None leaves the card as it is.

    Raises:
        UsageError: the engine is no `.onnx` file for CPUs, or of numbers that the library computes something else of.
    """
    build = card.build
    if backend is None or backend == card.backend:
        return card
    if not isinstance(build, OnnxRuntimeBuild | OpenVINOBuild):
        raise UsageError(
            f"--backend {backend} runs engines for CPUs, and this one was built for {card.backend}. Leave it out, or "
            f"build: p4q-edge build model.p4q --engine out.onnx --backend {backend}"
        )
    if backend == "openvino" and card.precision.number_format == "fp8":
        raise UsageError(
            f"{advice.FP8_IN_OPENVINO}. Leave --backend out, or build for it: p4q-edge build model.p4q --engine "
            "out.onnx --backend openvino --cpu-profile float"
        )
    profile = build.options.kept_profile
    other: OnnxRuntimeBuild | OpenVINOBuild
    if backend == "openvino":
        other = OpenVINOBuild(
            built_with=OpenVINOMachine(openvino="", cpu=""),
            options=OpenVINOOptions(cpu_profile=profile, kept_profile=profile, remainder="f32", kept_remainder="f32"),
            inspection=_NOT_READ,
        )
    else:
        other = OnnxRuntimeBuild(
            built_with=CpuMachine(onnxruntime="", cpu=""),
            options=CpuOptions(cpu_profile=profile, kept_profile=profile),
            inspection=_NOT_READ,
        )
    precision = msgspec.structs.replace(card.precision, remainder="fp32")
    return msgspec.structs.replace(card, build=other, precision=precision, noise_bf16=None, measured=None)
