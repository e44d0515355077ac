"""What built an engine, as its card records it: one record for each backend."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from p4q_edge.runtime.artifacts.rtx_options import RtxOptions
from p4q_edge.runtime.artifacts.tensorrt_options import TensorRTOptions
from p4q_edge.runtime.choices import BackendName, CpuChoice, CpuProfile, PlanFlavour, Remainder, RemainderChoice
from p4q_edge.runtime.statistics import Estimate


class OptimizedCopy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The copy of a CPU engine that loads faster, and the engine that it was made from."""

    size_bytes: int
    sha256: str
    engine_sha256: str


class CpuMachine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine for CPUs was built with: version of ONNX Runtime and name of the processor."""

    onnxruntime: str
    cpu: str


class CpuOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The profile that was asked for, and the one that is kept: another one only where `auto` was asked for."""

    cpu_profile: CpuChoice
    kept_profile: CpuProfile


class OpenVINOMachine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine for OpenVINO was built with: version of OpenVINO and name of the processor."""

    openvino: str
    cpu: str


class OpenVINOOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was asked for, and what is kept: another one only where `auto` was asked for.

    Attributes:
        batch: images for which the model beside the engine is compiled; other numbers run in shapes of their own.
    """

    cpu_profile: CpuChoice
    kept_profile: CpuProfile
    remainder: RemainderChoice
    kept_remainder: Remainder
    batch: int = 1


class CpuRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One candidate of `auto` as it was measured where the engine was built, in milliseconds.

    Attributes:
        n: timed runs; 0 where it was not timed because of its problem.
        cosine_min: smallest cosine of its embeddings to the fake-quantized reference; None in older cards.
        problem: why it could not be kept, or None.
    """

    n: int = 0
    p50_ms: float = 0.0
    p90_ms: float = 0.0
    p99_ms: float = 0.0
    mean_ms: float = 0.0
    min_ms: float = 0.0
    max_ms: float = 0.0
    cosine_min: float | None = None
    problem: str | None = None


class CpuInspection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What runs when the engine does.

    Attributes:
        kernels: runs of each kernel for one image.
        integer_products: how many of them are matrix products or convolutions of integers.
        float_products: how many of them are such products of floating-point numbers.
        rows: of a build with `auto`, each candidate by name: a profile of ONNX Runtime, or `openvino-` with the
            precision of the remainder.
        batch, threads: how many images and threads these were measured with; threads are null for the default.
        float_over_exact_time: likewise how many times faster INT8 is here, in ONNX Runtime.
        faster_than: how many times faster the kept candidate is than each other one.
        not_measured: what `auto` could not look at, and why.
    """

    kernels: dict[str, int]
    integer_products: int
    float_products: int
    rows: dict[str, CpuRow] = {}
    batch: int = 1
    threads: int | None = None
    float_over_exact_time: Estimate | None = None
    faster_than: dict[str, Estimate] = {}
    not_measured: tuple[str, ...] = ()

    @property
    def int8_share(self) -> float | None:
        """Share of the products that is INT8, by number; None without any."""
        products = self.integer_products + self.float_products
        return self.integer_products / products if products else None

    @property
    def counts(self) -> dict[str, int]:
        """Kernels with the number of their runs."""
        return self.kernels


class PlanMachine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a plan was built with and how, in words.

    Attributes:
        tensorrt: version.
        gpu: its name.
        platform: for example `linux-aarch64`.
        l4t: release of Jetson Linux; empty elsewhere.
        precision: flavour of the plan that is kept.
        typing: `strong`, `weak`, or why the one was tried after the other.
        batches: smallest, tuned and largest batch.
        timing_cache: what came of it.
        trtexec: the command that builds the same plan from `unzip -p BUNDLE graph.fp16.onnx weights.onnx > model.onnx`;
            empty where there is none, as no command leaves Q/DQ pairs out.
    """

    tensorrt: str
    gpu: str
    compute_capability: str
    platform: str
    cuda_driver: str = ""
    cuda_runtime: str = ""
    l4t: str = ""
    precision: PlanFlavour
    typing: str = ""
    batches: str = ""
    workspace_bytes: str = ""
    optimization_level: str = ""
    timing_cache: str = ""
    version_compatible: str = "false"
    hardware_compatibility: str = "none"
    trtexec: str = ""


class RtxMachine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine of TensorRT for RTX was compiled with, for which GPUs, and how.

    Attributes:
        tensorrt_rtx: version of the library, to which the engine is bound.
        platform: for example `linux-x86_64`.
        compute_capability: of the GPUs that it is for: `8.6,8.9`, or `8.0+` for all from one on.
        precision: flavour of the engine.
        batches: smallest, tuned and largest batch.
        gpu: on which it was measured; empty where it was only compiled.
    """

    tensorrt_rtx: str
    platform: str
    compute_capability: str
    precision: PlanFlavour
    batches: str
    optimization_level: str
    gpu: str = ""


class PlanRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One plan as it was measured on the device that built it, from host memory to host memory.

    Attributes:
        batch: images of a timed run: as many as the plan is tuned for.
        n: timed runs.
        p50_ms, p90_ms: latency of a batch.
        one_image_p50_ms: latency of a call with one image, padded where the plan takes no single one; None: not timed.
        size_bytes: size of the plan.
        samples: golden images.
        cosine_min: smallest cosine of embeddings to the fake-quantized reference.
        float_cosine_min: likewise to the full-precision model.
        float_top1_agreement: share of golden images with the best class of the full-precision model.
        problem: why the plan fails its accuracy gate, or None.
    """

    precision: PlanFlavour
    batch: int = 1
    n: int
    p50_ms: float
    p90_ms: float
    one_image_p50_ms: float | None = None
    size_bytes: int
    samples: int
    cosine_min: float
    float_cosine_min: float
    float_top1_agreement: float
    problem: str | None


class PlanChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The plan that is kept, and why."""

    kept: PlanFlavour
    reason: str


class PlanInspection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was read from a plan by TensorRT's inspector, and what was measured to choose it.

    Attributes:
        dialect: of the inspector, `10` or `11`.
        detailed: false where the plan names its layers only.
        kernels: layers that run on the GPU.
        pseudo_layers: those that do not.
        kinds: layers by type.
        gemms: matrix products by the precision of their operands; `int4`: of weights, with FP16 activations.
        gemm_share: the same by multiply-accumulates; a dynamic batch counts as one.
        runtime_fusions: how many of the products are generated kernels instead of library ones.
        fused_attention: how many attentions are one kernel.
        attentions, convolutions: by precision.
        convolution_share: convolutions by multiply-accumulates.
        reformats: kernels that only change a layout.
        io: type of each input and output.
        rows: the measured plans by flavour.
        choice: which was kept.
        ratio: how many times faster INT8 is than FP16; None where not both were built.
        ratios: the same for each flavour but FP16.
        build_seconds: time of each build.
    """

    dialect: str
    detailed: bool
    kernels: int
    pseudo_layers: int = 0
    kinds: dict[str, int] = {}
    gemms: dict[str, int] = {}
    gemm_share: dict[str, float] = {}
    runtime_fusions: int = 0
    fused_attention: int = 0
    attentions: dict[str, int] = {}
    convolutions: dict[str, int] = {}
    convolution_share: dict[str, float] = {}
    reformats: int = 0
    io: dict[str, str] = {}
    rows: dict[PlanFlavour, PlanRow] = {}
    choice: PlanChoice | None = None
    ratio: Estimate | None = None
    ratios: dict[PlanFlavour, Estimate] = {}
    build_seconds: dict[PlanFlavour, float] = {}

    @property
    def int8_share(self) -> float | None:
        """Share of the matrix products that is INT8, by multiply-accumulates; None where it was not read."""
        return self.gemm_share.get("int8", 0.0) if self.gemm_share else None

    @property
    def counts(self) -> dict[str, int]:
        """Layer kinds and how often each occurs."""
        return self.kinds


class OnnxRuntimeBuild(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="backend", tag="onnxruntime"
):
    """How an engine for ONNX Runtime on a CPU was built.

    Attributes:
        optimized: the copy beside the engine that loads faster where `built_with` fits; None if there is none.
    """

    built_with: CpuMachine
    options: CpuOptions
    inspection: CpuInspection
    optimized: OptimizedCopy | None = None


class OpenVINOBuild(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="backend", tag="openvino"
):
    """How an engine for OpenVINO on a CPU was built.

    Attributes:
        optimized: the compiled model beside the engine, which loads faster where `built_with` fits; None if there is
            none.
    """

    built_with: OpenVINOMachine
    options: OpenVINOOptions
    inspection: CpuInspection
    optimized: OptimizedCopy | None = None


class TensorRTBuild(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="backend", tag="tensorrt"
):
    """How a plan for TensorRT was built."""

    built_with: PlanMachine
    options: TensorRTOptions
    inspection: PlanInspection


class RtxBuild(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="backend", tag="tensorrt-rtx"
):
    """How an engine for TensorRT for RTX was built."""

    built_with: RtxMachine
    options: RtxOptions
    inspection: PlanInspection


Build: TypeAlias = OnnxRuntimeBuild | OpenVINOBuild | TensorRTBuild | RtxBuild


def backend_of_build(build: Build) -> BackendName:
    """Return the library that runs what a build made."""
    if isinstance(build, OnnxRuntimeBuild):
        return "onnxruntime"
    if isinstance(build, OpenVINOBuild):
        return "openvino"
    return "tensorrt" if isinstance(build, TensorRTBuild) else "tensorrt-rtx"
