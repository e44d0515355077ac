"""From a bundle to an engine for this machine, with its card. Needs no torch and no onnx."""

from __future__ import annotations

import base64
import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from p4q_edge.runtime.artifacts import (
    GOLDEN,
    LEAST_MAC_SHARE,
    Bundle,
    Card,
    Golden,
    MeasuredGolden,
    PlanChoice,
    Precision,
    RtxBuild,
    RtxMachine,
    RtxOptions,
    TensorRTBuild,
    TensorRTOptions,
    card_path,
    read_bundle,
    write_deployment,
)
from p4q_edge.runtime.builders.candidates import PROFILE_VARIABLE, CpuRequest, default_choice
from p4q_edge.runtime.builders.card_parts import card_of, precision_on
from p4q_edge.runtime.builders.consistency import check_consistent, check_folded_head
from p4q_edge.runtime.builders.cpu_engine import candidates_of, make_cpu_engine
from p4q_edge.runtime.builders.dry_run import CpuDryRun, RtxDryRun, TensorRTDryRun
from p4q_edge.runtime.choices import CPU_BACKENDS, BackendName, CpuBackend, CpuChoice, GraphKind, RemainderChoice
from p4q_edge.runtime.engines.onnxruntime import fingerprint as of_onnxruntime
from p4q_edge.runtime.engines.onnxruntime import optimized_path
from p4q_edge.runtime.engines.openvino import compiled_path
from p4q_edge.runtime.engines.openvino import fingerprint as of_openvino
from p4q_edge.runtime.errors import EnvironmentNotAbleError, QualityGateError, UsageError
from p4q_edge.runtime.machine import advice
from p4q_edge.runtime.machine import cpu as machine
from p4q_edge.runtime.statistics import rounding_limits_of
from p4q_edge.runtime.storage import complete_switch, require_writable, sha256_file
from p4q_edge.runtime.verification import compare_golden, require

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from p4q_edge.runtime.builders.tensorrt.contest import Contest
    from p4q_edge.runtime.builders.tensorrt.worker_process import ShowProgress

logger = logging.getLogger(__name__)

BACKEND_OF_SUFFIX: dict[str, BackendName] = {
    ".onnx": "onnxruntime",
    ".plan": "tensorrt",
    ".engine": "tensorrt",
    ".rtx": "tensorrt-rtx",
}
_MAX_DEADLINE_S = 24 * 3600.0
FP16 = Precision(weight_bits=16, activation_bits=16, execution="executed", remainder="fp16", quantized_linears=0)
"""Precision of a TensorRT engine for which FP16 turned out to be better than INT8."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        cpu_profile: a `CpuProfile`, or `auto` (the fastest here of these, in ONNX Runtime and, where it is installed,
            in OpenVINO); None: see `builders.candidates.default_choice`; CPU engines.
        remainder: precision of what is not quantized, in OpenVINO: `f32`, `bf16`, or `auto` (the faster one here).
        threads: threads of the CPU engine while it is checked and measured; None takes one a core.
        batch: images of a run that candidates of `auto` are measured with, and OpenVINO's fixed shape is made for.
        deadline_s: seconds after which the check of a CPU engine is stopped.
        tensorrt: options of the TensorRT builder; None takes its defaults.
        rtx: options of the builder of TensorRT for RTX; None takes its defaults.
    """

    cpu_profile: CpuChoice | None = None
    remainder: RemainderChoice = "auto"
    threads: int | None = None
    batch: int = 1
    deadline_s: float = 600.0
    tensorrt: TensorRTOptions | None = None
    rtx: RtxOptions | None = None

    def __post_init__(self) -> None:
        if not 0 < self.deadline_s <= _MAX_DEADLINE_S:
            raise UsageError(f"the deadline must be positive and at most a day, got {self.deadline_s:g} s.")

    def cpu_request(self, backend: CpuBackend | None, *, has_forms: bool) -> CpuRequest:
        """Return what is asked of a CPU engine; `backend` is the library that was named, if one was.

        Raises:
            UsageError: a number is out of range, or the environment names no profile.
        """
        return CpuRequest(
            choice=self.cpu_profile or default_choice(backend, has_forms=has_forms),
            backend=backend,
            remainder=self.remainder,
            threads=self.threads,
            batch=self.batch,
        )


def backend_of(engine: str | Path, backend: BackendName | None = None) -> BackendName:
    """Return the backend that an engine's suffix names, unless one is given.

    Raises:
        UsageError: the suffix names none.
    """
    if backend is not None:
        return backend
    suffix = Path(engine).suffix.lower()
    if suffix not in BACKEND_OF_SUFFIX:
        raise UsageError(
            f"the suffix of {engine} names no backend; expected .onnx (ONNX Runtime, CPU), .plan/.engine "
            "(TensorRT) or .rtx (TensorRT for RTX). Rename the engine, or add --backend."
        )
    return BACKEND_OF_SUFFIX[suffix]


def build_engine(
    bundle: str | Path,
    engine: str | Path,
    *,
    backend: BackendName | None = None,
    force: bool = False,
    options: BuildOptions = BuildOptions(),
    progress: ShowProgress | None = None,
) -> Card:
    """Build an engine from a bundle, prove it on the golden samples, and write it with its card.

    Args:
        bundle: the bundle's file.
        engine: the engine to make; its suffix names the backend.
        backend: overrides the suffix.
        force: replace an existing engine and card.
        options: how to build.
        progress: is shown how far a TensorRT build is; other builds take seconds.

    Raises:
        UsageError: the suffix names no backend, or the engine exists and `force` is false.
        CorruptArtifactError: the bundle is damaged, or its members contradict each other.
        EnvironmentNotAbleError: the backend is not installed.
        QualityGateError: the engine does not compute what the reference computes; nothing is written.
    """
    engine = Path(engine)
    chosen = backend_of(engine, backend)
    complete_switch(engine)
    _require_writable(engine, force=force)
    opened = read_bundle(bundle)
    check_consistent(opened)
    if chosen not in CPU_BACKENDS:
        _warn_of_small_share(opened, precision_on(chosen, opened.manifest.precision))
    if chosen == "tensorrt":
        return _build_tensorrt(opened, engine, force=force, options=options, progress=progress)
    if chosen == "tensorrt-rtx":
        return _build_rtx(opened, engine, force=force, options=options.rtx or RtxOptions(), progress=progress)
    return _build_cpu(opened, engine, backend=cpu_backend(backend), force=force, options=options)


def cpu_backend(backend: BackendName | None) -> CpuBackend | None:
    """Return the library for CPUs that was named; None where the suffix of the engine only says that it is for one."""
    return next((one for one in CPU_BACKENDS if one == backend), None)


def _require_writable(engine: Path, *, force: bool) -> None:
    for path in (engine, card_path(engine)):
        require_writable(path, force=force)


def _warn_of_small_share(bundle: Bundle, precision: Precision) -> None:
    share = precision.int8_mac_share
    if share is not None and share < LEAST_MAC_SHARE:
        logger.warning(
            "only %.1f %% of the multiply-accumulates of %s are quantized, the rest runs in floating point: expect "
            "little of the speed and size of INT8. Compare with `p4q-edge bench`",
            100 * share,
            bundle.manifest.model.name,
        )


def _build_cpu(bundle: Bundle, engine: Path, *, backend: CpuBackend | None, force: bool, options: BuildOptions) -> Card:
    refuse_unsound(bundle, "fp32", engine=engine)
    asked = options.cpu_request(backend, has_forms=bundle.manifest.precision.has_forms_on_cpus)
    made = make_cpu_engine(bundle, engine, asked, deadline_s=options.deadline_s)
    _warn_of_small_share(bundle, made.card.precision)
    card = _compared(made.card, made.outputs, made.golden, engine=engine)
    _require_writable(engine, force=force)
    write_deployment(engine, card, made.files)
    written = {engine.with_name(engine.name + suffix) for suffix in made.files}
    for stale in {optimized_path(engine), compiled_path(engine)} - written:
        stale.unlink(missing_ok=True)  # of an engine of the other library, which this one replaced
    return card


def _compared(card: Card, outputs: Mapping[str, np.ndarray], golden: Golden, *, engine: Path) -> Card:
    """Return a card with what its engine gives on the golden samples; raise where that is wrong."""
    result = compare_golden(dict(outputs), golden, logit_scale=card.logit_scale, limits=card.limits)
    if card.on_cpu:
        # The worker of a TensorRT build has judged its plans, each by its own gate.
        require(result, engine=str(engine))
        logger.info("golden samples: cosine %.6f, n = %d", result.cosine_min, result.samples)
    rows = tuple(tuple(row) for row in outputs["embedding"].tolist())
    return msgspec.structs.replace(card, measured=MeasuredGolden(embedding=rows, golden=result))


def _build_tensorrt(
    bundle: Bundle, engine: Path, *, force: bool, options: BuildOptions, progress: ShowProgress | None
) -> Card:
    refuse_unsound(bundle, "fp16", engine=engine)
    require_tensorrt(engine)
    from p4q_edge.runtime.builders.tensorrt.builder import build_plan, refuse_old_parser

    refuse_old_parser(bundle)
    plan = build_plan(
        bundle.model("fp16"),
        engine=engine,
        options=_gated(options.tensorrt or TensorRTOptions(), bundle),
        golden=bundle.read(GOLDEN),
        force=force,
        progress=progress,
    )
    build = TensorRTBuild(
        built_with=plan.built_with,
        options=options.tensorrt or TensorRTOptions(),
        inspection=plan.contest.inspection,
    )
    card = card_of(bundle, build)
    card = msgspec.structs.replace(
        card,
        engine_sha256=plan.sha256,
        engine_size_bytes=plan.size_bytes,
        noise=bundle.manifest.parity.noise.get("fp16"),
    )
    card = _with_contest(card, plan.contest, bundle, engine=engine)
    try:
        _require_writable(engine, force=force)
        write_deployment(engine, card, {"": plan.plan})
    finally:
        plan.plan.unlink(missing_ok=True)
    return card


def _with_contest(card: Card, contest: Contest, bundle: Bundle, *, engine: Path) -> Card:
    """Return the card of the plan that a contest on this GPU kept: its precision, its samples and what it gave."""
    check_folded_head(bundle, contest.outputs)
    golden = base64.b64encode(contest.golden.to_bytes()).decode("ascii")
    card = msgspec.structs.replace(card, precision=_of_flavour(card.precision, contest.choice.kept), golden=golden)
    return _compared(card, contest.outputs, contest.golden, engine=engine)


def _build_rtx(
    bundle: Bundle, engine: Path, *, force: bool, options: RtxOptions, progress: ShowProgress | None
) -> Card:
    refuse_unsound(bundle, "fp16", engine=engine)
    from p4q_edge.runtime.builders.tensorrt.rtx import build_rtx

    gated = replace(options, min_cosine=_gated(options.as_tensorrt(), bundle).min_cosine)
    built = build_rtx(
        bundle.model("fp16"), engine=engine, options=gated, golden=bundle.read(GOLDEN), force=force, progress=progress
    )
    card = card_of(bundle, RtxBuild(built_with=built.built_with, options=options, inspection=built.inspection))
    card = msgspec.structs.replace(
        card,
        engine_sha256=sha256_file(built.plan),
        engine_size_bytes=built.plan.stat().st_size,
        noise=bundle.manifest.parity.noise.get("fp16"),
    )
    if built.contest is not None:
        card = _with_contest(card, built.contest, bundle, engine=engine)
    try:
        _require_writable(engine, force=force)
        write_deployment(engine, card, {"": built.plan})
    finally:
        built.plan.unlink(missing_ok=True)
    _say_what_is_known(engine, built.inspection.choice, built.built_with)
    return card


def _say_what_is_known(engine: Path, choice: PlanChoice | None, built_with: RtxMachine) -> None:
    """Log that an engine of TensorRT for RTX is experimental, and how it came to its precision."""
    reason = "" if choice is None else choice.reason
    if built_with.gpu:
        known = f"On {built_with.gpu} it passed its golden samples; kept {choice and choice.kept}: {reason}"
    else:
        known = (
            f"It was not run here ({reason}); the first load on an RTX GPU proves it on its golden samples, or refuses "
            "it. Built on a machine with that GPU it is timed against FP16"
        )
    in_int8 = built_with.precision in ("int8", "int8-linears")
    promised = ", and NVIDIA promises INT8 of weights only there" if in_int8 else ""
    logger.warning(
        "%s is experimental: its authors ran no engine of this kind on an RTX GPU%s. %s", engine, promised, known
    )


def _of_flavour(precision: Precision, kept: str) -> Precision:
    """Return the precision of a kept plan; see `TensorRTOptions.flavours`."""
    own = {precision.plan_flavour: precision, "int8-linears": precision.with_float_convolutions()}
    return own.get(kept, FP16)


def _gated(options: TensorRTOptions, bundle: Bundle) -> TensorRTOptions:
    """Return the options with the accuracy gate of the bundle's own noise, unless one was asked for."""
    if options.min_cosine is not None:
        return options
    limits = rounding_limits_of(bundle.manifest.rounding_bits, bundle.manifest.parity.noise.get("fp16"))
    return replace(options, min_cosine=limits.least_cosine)


def refuse_unsound(bundle: Bundle, kind: GraphKind, *, engine: Path) -> None:
    """Refuse a graph of which the exporter recorded that it does not compute what the model computes.

    Raises:
        QualityGateError: names what was found and the engine that can be built.
    """
    problem = bundle.manifest.problem(kind)
    if problem is None:
        return
    needs, other = ("TensorRT", ".onnx") if kind == "fp16" else ("CPUs", ".plan")
    raise QualityGateError(
        f"{engine} cannot be built: the graph for {needs} in {bundle.path} is not sound, as its exporter found: "
        f"{problem}. The other graph is: build {engine.with_suffix(other)}, or export again and report this line."
    )


def recorded_options(options: BuildOptions, backend: BackendName) -> dict[str, Any]:
    """Return the options that decide what an engine of a backend is; its card records them."""
    if backend in CPU_BACKENDS:
        profile = options.cpu_profile or os.environ.get(PROFILE_VARIABLE) or "default"
        return {"cpu_profile": profile, "remainder": options.remainder, "batch": options.batch}
    if backend == "tensorrt-rtx":
        return asdict(options.rtx or RtxOptions())
    return asdict(options.tensorrt or TensorRTOptions())


def require_tensorrt(engine: Path) -> None:
    """Raise `EnvironmentNotAbleError` where TensorRT is not installed."""
    try:
        import tensorrt  # noqa: F401
    except ImportError as error:
        named = engine.with_suffix(".onnx")
        other = "leave --backend out" if named == engine else f"name {named} instead"
        raise EnvironmentNotAbleError(
            f"TensorRT is not installed for this Python, and {engine} needs it. {advice.HOW_TO_INSTALL} "
            f"For a CPU engine {other}."
        ) from error


def describe_build(
    bundle: str | Path, engine: str | Path, *, backend: BackendName | None = None, options: BuildOptions
) -> CpuDryRun | TensorRTDryRun | RtxDryRun:
    """Return what `build_engine` would do here, without doing it.

    Raises:
        UsageError, InputError, CorruptArtifactError, EnvironmentNotAbleError, QualityGateError: as `build_engine`.
    """
    engine, opened = Path(engine), read_bundle(bundle)
    chosen = backend_of(engine, backend)
    kind: GraphKind = "fp32" if chosen in CPU_BACKENDS else "fp16"
    refuse_unsound(opened, kind, engine=engine)
    precision = opened.manifest.precision
    convolutions, quantized = precision.quantized_convolutions > 0, precision.plan_flavour
    if chosen == "tensorrt-rtx":
        from p4q_edge.runtime.builders.tensorrt.rtx import describe_rtx

        rtx = options.rtx or RtxOptions()
        size = len(opened.model("fp16"))
        return describe_rtx(size, engine=engine, options=rtx, convolutions=convolutions, quantized=quantized)
    if kind == "fp16":
        require_tensorrt(engine)
        from p4q_edge.runtime.builders.tensorrt import builder as tensorrt_builder

        tensorrt_builder.refuse_old_parser(opened)
        size = len(opened.model("fp16"))
        gated = _gated(options.tensorrt or TensorRTOptions(), opened)
        describe = tensorrt_builder.describe_plan
        return describe(size, engine=engine, options=gated, convolutions=convolutions, quantized=quantized)
    request = options.cpu_request(cpu_backend(backend), has_forms=precision.has_forms_on_cpus)
    candidates = candidates_of(opened, request)
    return CpuDryRun(
        engine=str(engine),
        exists=engine.exists(),
        backend=chosen,
        cpu_profile=request.choice,
        candidates=tuple(candidate.name for candidate in candidates.tried),
        not_measured=candidates.not_measured,
        model_bytes=len(opened.model("fp32")),
        unsigned_kernels=request.choice == "exact" and chosen == "onnxruntime" and machine.saturates(),
        **(of_openvino() if chosen == "openvino" else of_onnxruntime()),
    )
