"""What ONNX Runtime makes of a model on this processor: the copy that loads faster, and the kernels that run."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from p4q_edge.runtime.artifacts import CpuInspection, check_model
from p4q_edge.runtime.choices import CpuProfile
from p4q_edge.runtime.engines.onnxruntime import (
    load_error,
    open_optimized,
    open_session,
    session_errors,
    session_options,
)
from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.storage import write_error

INTEGER_PRODUCTS = frozenset({"MatMulIntegerToFloat", "MatMulInteger", "QLinearMatMul", "QGemm", "QLinearConv"})
FLOAT_PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv", "MatMulNBits"})
"""The last one reads INT4 weights and multiplies in FP32."""
_LEAST_ROOM = 1 << 16


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
            _require_room(path, len(model))
            raise load_error(error, name=name) from error
        return path.read_bytes()


def _require_room(path: Path, size_bytes: int) -> None:
    """Raise where a file that a library failed to write has no room: the library does not say so.

    Raises:
        P4QEdgeError: the disk is full.
    """
    if shutil.disk_usage(path.parent).free < size_bytes:
        raise write_error(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


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
        session = open_optimized(model, options)
        session.run(None, {"image": image})
        profile_file = Path(session.end_profiling())
        text = profile_file.read_text(encoding="utf-8", errors="replace")
        if not text.rstrip().endswith("]"):
            _require_room(profile_file, _LEAST_ROOM)
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
