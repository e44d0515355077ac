"""Making a CPU engine: the profile's weights, the optimized copy for fast loading, and what it really runs."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from p4q_edge.runtime.engines.onnxruntime import load_error, open_session, session_errors, session_options
from p4q_edge.runtime.options import CpuProfile

INTEGER_PRODUCTS = frozenset({"MatMulIntegerToFloat", "MatMulInteger", "QLinearMatMul", "QGemm", "QLinearConv"})
FLOAT_PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv"})


def optimized_model(model: bytes, profile: CpuProfile, *, name: str) -> bytes:
    """Return a model as ONNX Runtime rewrites it for this processor, so that loading it rewrites nothing.

    Raises:
        CorruptArtifactError: it is not an ONNX model.
        IncompatibleEngineError: this version of ONNX Runtime cannot run it.
    """
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
