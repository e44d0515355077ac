"""Making a CPU engine: the profile's weights, the optimized copy for fast loading, and what it really runs."""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from p4q_edge.runtime.choices import CpuChoice, CpuProfile
from p4q_edge.runtime.engines.onnxruntime import (
    OnnxRuntimeEngine,
    float_weights,
    load_error,
    open_session,
    refuse_external_data,
    session_errors,
    session_options,
    seven_bit_weights,
)
from p4q_edge.runtime.statistics import Rounds, measure_interleaved, paired_ratio, summarize

logger = logging.getLogger(__name__)

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


def cpu_model(
    model: bytes, choice: CpuChoice, *, image: np.ndarray, threads: int | None, name: str
) -> tuple[CpuModel, dict[str, Any]]:
    """Return the model of a profile, and for `auto` what was measured to choose it, for the card.

    Args:
        model: the Q/DQ model of a bundle.
        choice: a profile, or `auto`.
        image: (1, 3, H, W) uint8 to measure with.
        threads: threads of the engine; None lets ONNX Runtime choose.
        name: what errors call the engine.

    Raises:
        EnvironmentNotAbleError: the profile needs the package `onnx`, which is not installed.
    """
    if choice != "auto":
        return _of_profile(model, choice, name=name), {}
    candidates = {profile: _of_profile(model, profile, name=name) for profile in AUTO_PROFILES}
    engines = {profile: built.load(threads=threads, name=name) for profile, built in candidates.items()}
    times = measure_interleaved(
        {profile: partial(engine.run, image) for profile, engine in engines.items()}, MEASURED_ROUNDS
    )
    ratio = paired_ratio(times["float"], times["exact"], generator=np.random.default_rng(_SEED))
    for engine in engines.values():
        engine.close()
    kept: CpuProfile = "exact" if ratio.value >= 1.0 else "float"
    logger.info("INT8 is %.2f times as fast as FP32 here, n = %d: %s is kept", ratio.value, ratio.n, kept)
    rows = {profile: asdict(summarize(values)) for profile, values in times.items()}
    return candidates[kept], {"rows": rows, "float_over_exact_time": asdict(ratio)}


def _of_profile(model: bytes, profile: CpuProfile, *, name: str) -> CpuModel:
    if profile == "fast":
        model = seven_bit_weights(model)
    elif profile == "float":
        model = float_weights(model)
    return CpuModel(profile=profile, model=model, optimized=optimized_model(model, profile, name=name))


def optimized_model(model: bytes, profile: CpuProfile, *, name: str) -> bytes:
    """Return a model as ONNX Runtime rewrites it for this processor, so that loading it rewrites nothing.

    Raises:
        CorruptArtifactError: it is not an ONNX model.
        IncompatibleEngineError: this version of ONNX Runtime cannot run it.
    """
    refuse_external_data(model, name=name)
    options = session_options(profile, threads=1)
    with tempfile.TemporaryDirectory(prefix="p4q-edge-") as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        try:
            open_session(model, options)
        except session_errors() as error:
            raise load_error(error, name=name) from error
        return path.read_bytes()


def inspect_kernels(model: bytes, profile: CpuProfile, image: np.ndarray) -> dict[str, Any]:
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
        events = json.loads(Path(session.end_profiling()).read_text())
    counts = Counter(
        event["args"]["op_name"]
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    )
    return {
        "kernels": dict(sorted(counts.items())),
        "integer_products": sum(count for kernel, count in counts.items() if kernel in INTEGER_PRODUCTS),
        "float_products": sum(count for kernel, count in counts.items() if kernel in FLOAT_PRODUCTS),
    }
