"""Making a CPU engine: candidates are proved on the golden samples, timed in turns, and the fastest is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import msgspec
import numpy as np

from p4q_edge.runtime.artifacts import CpuInspection, CpuRow, Golden, GoldenResult, check_model
from p4q_edge.runtime.builders.candidates import Candidates, CpuCandidate
from p4q_edge.runtime.builders.onnxruntime import inspect_kernels, optimized_model
from p4q_edge.runtime.builders.openvino import inspect_operators
from p4q_edge.runtime.choices import CpuProfile
from p4q_edge.runtime.engines import Engine
from p4q_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine
from p4q_edge.runtime.engines.openvino import OpenVINOEngine, model_source
from p4q_edge.runtime.errors import P4QEdgeError
from p4q_edge.runtime.statistics import (
    Estimate,
    RoundingLimits,
    Rounds,
    measure_interleaved,
    paired_ratio,
    summarize,
)
from p4q_edge.runtime.verification import compare_golden, run_golden

MEASURED_ROUNDS = Rounds(warmup=3, minimum=15, maximum=200, seconds=3.0)
TIE = 1.02
"""A candidate counts as equally fast where the interval of the ratio of their times reaches below this."""
_SEED = 0  # of the bootstrap; fixed so that the same times say the same


@dataclass(frozen=True, kw_only=True)
class CpuModel:
    """A model of one candidate, as it is kept and as its library rewrites it for this processor."""

    candidate: CpuCandidate
    model: bytes
    optimized: bytes

    @property
    def profile(self) -> CpuProfile:
        """The profile of its weights."""
        return self.candidate.profile


@dataclass(frozen=True, kw_only=True)
class ProofSetting:
    """How candidates are judged.

    Attributes:
        threads: threads of a run; None takes one a core.
        batch: images of a timed run.
        logit_scale: factor between cosines and logits.
        limits: how far roundings may take a profile from the reference; a profile without takes those of 8 bits.
        name: what errors call the engine.
    """

    threads: int | None = None
    batch: int = 1
    logit_scale: float = 1.0
    limits: Mapping[CpuProfile, RoundingLimits] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class ProvedModel:
    """A CPU engine and what it did on the golden samples.

    Attributes:
        built: the engine.
        outputs: all outputs by name, float32, a row for each golden image.
        input_shape: (N, 3, H, W) of its input.
        inspection: kernels that run, and of several candidates what was measured to choose between them; for the card.
    """

    built: CpuModel
    outputs: dict[str, np.ndarray]
    input_shape: tuple[int, ...]
    inspection: CpuInspection


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tried:
    """A loaded candidate with its answers to the golden samples, one image at a time."""

    built: CpuModel
    engine: Engine
    outputs: dict[str, np.ndarray]
    result: GoldenResult
    problem: str | None


def prove_candidates(candidates: Candidates, golden: Golden, setting: ProofSetting) -> ProvedModel:
    """Load candidates, run the golden samples through them, and keep the fastest of those that compute the right thing.

    Args:
        candidates: of several, that which is faster here is kept; where none is right, the first.
        golden: samples to run and to measure with.
        setting: threads, batch and limits.

    Raises:
        CorruptArtifactError, IncompatibleEngineError, P4QEdgeError: no library can read or run a model, or ONNX Runtime
            cannot; what OpenVINO cannot is left out where others are.
    """
    tried, not_measured = _run_all(candidates, golden, setting)
    try:
        kept, chosen = _chosen(tried, golden.image, setting)
        built = _with_compiled(kept, batch=setting.batch)
        inspection = _inspect(kept, golden.image[:1], batch=setting.batch)
        shape = kept.engine.input_shape
    finally:
        for one in tried:
            one.engine.close()
    if len(tried) > 1:
        inspection = msgspec.structs.replace(
            inspection,
            rows=chosen.rows,
            batch=setting.batch,
            threads=setting.threads,
            float_over_exact_time=chosen.float_over_exact_time,
            faster_than=chosen.faster_than,
        )
    inspection = msgspec.structs.replace(inspection, not_measured=not_measured)
    return ProvedModel(built=built, outputs=kept.outputs, input_shape=shape, inspection=inspection)


def _run_all(candidates: Candidates, golden: Golden, setting: ProofSetting) -> tuple[list[_Tried], tuple[str, ...]]:
    """Return the candidates that could be run, and in words what was not measured."""
    tried: list[_Tried] = []
    failed: dict[str, P4QEdgeError] = {}
    for candidate in candidates.tried:
        try:
            tried.append(_try(candidate, candidates.models[candidate.profile], golden, setting))
        except P4QEdgeError as error:
            if candidate.backend != "openvino":
                raise
            failed[candidate.name] = error
    if not tried:
        raise next(iter(failed.values()))
    return tried, (*candidates.not_measured, *(f"{name}: {error}" for name, error in failed.items()))


def _try(candidate: CpuCandidate, model: bytes, golden: Golden, setting: ProofSetting) -> _Tried:
    check_model(model, name=setting.name)
    engine: Engine
    if candidate.backend == "openvino":
        # What it compiled is as large as the weights: it is asked for once it is kept.
        optimized = b""
        engine = OpenVINOEngine(
            model_source(model),
            remainder=candidate.remainder,
            threads=setting.threads,
            batch=setting.batch,
            name=setting.name,
        )
    else:
        optimized = optimized_model(model, candidate.profile, name=setting.name)
        engine = OnnxRuntimeEngine(
            optimized, profile=candidate.profile, threads=setting.threads, optimized=True, name=setting.name
        )
    try:
        return _answered(CpuModel(candidate=candidate, model=model, optimized=optimized), engine, golden, setting)
    except BaseException:
        engine.close()  # others are timed beside it
        raise


def _answered(built: CpuModel, engine: Engine, golden: Golden, setting: ProofSetting) -> _Tried:
    """Run the golden samples."""
    profile, outputs = built.profile, run_golden(engine, golden)
    results = [_compare(outputs, golden, profile, setting)]
    if setting.batch > 1:
        # What runs several images at once may be another program than what runs one.
        several = engine.run(_repeated(golden.image, setting.batch), None)
        together = {name: values[: len(golden.image)] for name, values in several.items()}
        results.append(_compare(together, golden, profile, setting))
    problem = next((found for result in results if (found := result.problem()) is not None), None)
    return _Tried(built=built, engine=engine, outputs=outputs, result=results[0], problem=problem)


def _with_compiled(kept: _Tried, *, batch: int) -> CpuModel:
    """Return what is kept with the model as its library has it."""
    if isinstance(kept.engine, OpenVINOEngine):
        return replace(kept.built, optimized=kept.engine.compiled(batch))
    return kept.built


def _compare(
    outputs: dict[str, np.ndarray], golden: Golden, profile: CpuProfile, setting: ProofSetting
) -> GoldenResult:
    expected = golden.for_profile(profile)
    return compare_golden(outputs, expected, logit_scale=setting.logit_scale, limits=setting.limits.get(profile))


def _repeated(images: np.ndarray, batch: int) -> np.ndarray:
    """Return all images, repeated up to a multiple of the batch: (n, 3, H, W)."""
    total = -(-len(images) // batch) * batch
    return np.ascontiguousarray(images[np.arange(total) % len(images)])


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    rows: dict[str, CpuRow] = {}
    float_over_exact_time: Estimate | None = None
    faster_than: dict[str, Estimate] = {}


def _chosen(tried: Sequence[_Tried], images: np.ndarray, setting: ProofSetting) -> tuple[_Tried, _Choice]:
    """Return what is kept, and what was measured where there is a choice."""
    if len(tried) == 1:
        return tried[0], _Choice()
    sound = {one.built.candidate.name: one for one in tried if one.problem is None}
    batch = np.ascontiguousarray(_repeated(images, setting.batch)[: setting.batch])
    times = (
        measure_interleaved({name: partial(one.engine.run, batch) for name, one in sound.items()}, MEASURED_ROUNDS)
        if len(sound) > 1
        else {}
    )
    rows = {}
    for one in tried:
        name = one.built.candidate.name
        measured = asdict(summarize(times[name])) if name in times else {}
        rows[name] = CpuRow(**measured, cosine_min=one.result.cosine_min, problem=one.problem)
    kept = fastest(times) if times else next(iter(sound), tried[0].built.candidate.name)
    both = {"exact", "float"} <= times.keys()
    return next(one for one in tried if one.built.candidate.name == kept), _Choice(
        rows=rows,
        float_over_exact_time=_ratio(times["float"], times["exact"]) if both else None,
        faster_than={name: _ratio(times[name], times[kept]) for name in times if name != kept},
    )


def fastest(times: Mapping[str, np.ndarray]) -> str:
    """Return the name of the fastest: of those that are equally fast, the first.

    Args:
        times: (rounds,) milliseconds by name, from one `measure_interleaved`.
    """
    best = min(times, key=lambda name: float(np.median(times[name])))
    ties = [name for name in times if name == best or _ratio(times[name], times[best]).low < TIE]
    return ties[0]


def _ratio(baseline: np.ndarray, candidate: np.ndarray) -> Estimate:
    return paired_ratio(baseline, candidate, generator=np.random.default_rng(_SEED))


def _inspect(kept: _Tried, image: np.ndarray, *, batch: int) -> CpuInspection:
    if isinstance(kept.engine, OpenVINOEngine):
        return inspect_operators(kept.engine, batch=batch)
    return inspect_kernels(kept.built.optimized, kept.built.profile, image)
