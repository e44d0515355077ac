"""Making a CPU engine: the profile's weights, the optimized copy for fast loading, and what it really runs."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from p4q_edge.runtime.artifacts import CpuInspection, Golden, check_model
from p4q_edge.runtime.choices import CpuChoice, CpuProfile
from p4q_edge.runtime.engines.onnxruntime import (
    OnnxRuntimeEngine,
    float_weights,
    load_error,
    open_session,
    session_errors,
    session_options,
    seven_bit_weights,
)
from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.statistics import Estimate, Latency, Rounds, measure_interleaved, paired_ratio, summarize
from p4q_edge.runtime.verification import run_golden

AUTO_PROFILES: tuple[CpuProfile, ...] = ("exact", "float")
MEASURED_ROUNDS = Rounds(warmup=3, minimum=15, maximum=200, seconds=3.0)
_SEED = 0  # of the bootstrap; fixed so that the same times say the same

INTEGER_PRODUCTS = frozenset({"MatMulIntegerToFloat", "MatMulInteger", "QLinearMatMul", "QGemm", "QLinearConv"})
FLOAT_PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv"})


@dataclass(frozen=True, kw_only=True)
class CpuModel:
    """A model of one profile, as it is kept and as ONNX Runtime rewrites it for this processor."""

    profile: CpuProfile
    model: bytes
    optimized: bytes

    def load(self, *, threads: int | None, name: str) -> OnnxRuntimeEngine:
        """Load the optimized form."""
        return OnnxRuntimeEngine(self.optimized, profile=self.profile, threads=threads, optimized=True, name=name)


@dataclass(frozen=True, kw_only=True, eq=False)
class ProvedModel:
    """A CPU engine and what it did on the golden samples.

    Attributes:
        built: the engine.
        outputs: all outputs by name, float32, a row for each golden image.
        input_shape: (N, 3, H, W) of its input.
        inspection: kernels that run, and of several profiles what was measured to choose between them; for the card.
    """

    built: CpuModel
    outputs: dict[str, np.ndarray]
    input_shape: tuple[int, ...]
    inspection: CpuInspection


def models_of(model: bytes, choice: CpuChoice) -> dict[CpuProfile, bytes]:
    """Return the Q/DQ model of a bundle as each profile keeps it that `choice` leaves open.

    Raises:
        EnvironmentNotAbleError: a profile needs the package `onnx`, which is not installed.
    """
    change: Mapping[str, Callable[[bytes], bytes]] = {"fast": seven_bit_weights, "float": float_weights}
    profiles = AUTO_PROFILES if choice == "auto" else (choice,)
    return {profile: change[profile](model) if profile in change else model for profile in profiles}


def prove(models: Mapping[CpuProfile, bytes], golden: Golden, *, threads: int | None, name: str) -> ProvedModel:
    """Rewrite models for this processor, keep the fastest, and run the golden samples through it.

    Args:
        models: one a profile; of several, that which is faster here is kept.
        golden: samples to run and to measure with.
        threads: threads of the engine; None lets ONNX Runtime choose.
        name: what errors call the engine.

    Raises:
        CorruptArtifactError, IncompatibleEngineError, P4QEdgeError: ONNX Runtime cannot read or run a model.
    """
    candidates = {
        profile: CpuModel(profile=profile, model=model, optimized=optimized_model(model, profile, name=name))
        for profile, model in models.items()
    }
    image = golden.image[:1]
    kept, rows, ratio = _fastest(candidates, image=image, threads=threads, name=name)
    engine = kept.load(threads=threads, name=name)
    outputs = run_golden(engine, golden)
    shape = engine.input_shape
    engine.close()
    inspection = msgspec.structs.replace(
        inspect_kernels(kept.optimized, kept.profile, image), rows=rows, float_over_exact_time=ratio
    )
    return ProvedModel(built=kept, outputs=outputs, input_shape=shape, inspection=inspection)


def _fastest(
    candidates: Mapping[CpuProfile, CpuModel], *, image: np.ndarray, threads: int | None, name: str
) -> tuple[CpuModel, dict[CpuProfile, Latency], Estimate | None]:
    """Return the fastest model, and where there are two their latencies and how many times faster INT8 is."""
    if len(candidates) == 1:
        return next(iter(candidates.values())), {}, None
    engines = {profile: built.load(threads=threads, name=name) for profile, built in candidates.items()}
    times = measure_interleaved(
        {profile: partial(engine.run, image) for profile, engine in engines.items()}, MEASURED_ROUNDS
    )
    ratio = paired_ratio(times["float"], times["exact"], generator=np.random.default_rng(_SEED))
    for engine in engines.values():
        engine.close()
    kept: CpuProfile = "exact" if ratio.value >= 1.0 else "float"
    return candidates[kept], {profile: summarize(times[profile]) for profile in candidates}, ratio


def optimized_model(model: bytes, profile: CpuProfile, *, name: str) -> bytes:
    """Return a model as ONNX Runtime rewrites it for this processor, so that loading it rewrites nothing.

    Raises:
        CorruptArtifactError: it is not an ONNX model.
        IncompatibleEngineError: this version of ONNX Runtime cannot run it.
    """
    check_model(model, name=name)
    options = session_options(profile, threads=1)
    with tempfile.TemporaryDirectory(prefix="p4q-edge-") as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        try:
            open_session(model, options)
        except session_errors() as error:
            raise load_error(error, name=name) from error
        return path.read_bytes()


def inspect_kernels(model: bytes, profile: CpuProfile, image: np.ndarray) -> CpuInspection:
    """Return what runs when the model does: kernels, their counts, and how many products are integer.

    Args:
        model: an engine's optimized copy.
        profile: the profile that it was built with.
        image: (1, 3, H, W) uint8.
    """
    options = session_options(profile, threads=1, optimized=True)
    with tempfile.TemporaryDirectory(prefix="p4q-edge-") as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = open_session(model, options)
        session.run(None, {"image": image})
        text = Path(session.end_profiling()).read_text(encoding="utf-8", errors="replace")
    try:
        counts = Counter(
            event["args"]["op_name"]
            for event in json.loads(text)
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        )
    except (ValueError, KeyError) as error:
        # ONNX Runtime writes the names of nodes as they are, quotes included.
        raise CorruptArtifactError(
            f"what ONNX Runtime says of the model's kernels cannot be read ({error}): its nodes have names that the "
            "exporter does not give. Export the bundle again."
        ) from error
    return CpuInspection(
        kernels=dict(sorted(counts.items())),
        integer_products=sum(count for kernel, count in counts.items() if kernel in INTEGER_PRODUCTS),
        float_products=sum(count for kernel, count in counts.items() if kernel in FLOAT_PRODUCTS),
    )
