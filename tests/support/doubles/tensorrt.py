"""TensorRT of a version, as a module; see `doubles`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from doubles.cuda import RecordingCuda
from doubles.tensorrt_api import (
    CLASSES,
    OUTPUT_SIZES,
    SIDE,
    Builder,
    IBuilderConfig,
    IConstantLayer,
    IDequantizeLayer,
    ILayer,
    ILogger,
    INetworkDefinition,
    IOptimizationProfile,
    IProgressMonitor,
    ITensor,
    ITimingCache,
    Last,
    OnnxParser,
    ParserError,
    Weights,
    make_enum,
    version_key,
)
from doubles.tensorrt_execution import EngineInspector, ICudaEngine, IExecutionContext, Runtime

SURFACE = Path(__file__).with_name("surface.json")

CLASSES_OF_MODULE = (
    ILogger,
    IProgressMonitor,
    Weights,
    IConstantLayer,
    IDequantizeLayer,
    OnnxParser,
    Builder,
    Runtime,
)
CLASSES_BEHIND = (
    ITensor,
    ILayer,
    ParserError,
    INetworkDefinition,
    IOptimizationProfile,
    ITimingCache,
    IBuilderConfig,
    EngineInspector,
    IExecutionContext,
    ICudaEngine,
)


def compute(image: np.ndarray) -> dict[str, np.ndarray]:
    """What the double's engine computes of (N, 3, H, W) uint8."""
    features = image.reshape(len(image), 3, -1).mean(axis=2).astype(np.float32)
    norms = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)
    embedding = (features / norms).astype(np.float32)
    heads = np.linspace(-1, 1, 3 * CLASSES, dtype=np.float32).reshape(3, CLASSES)
    # not `@`: BLAS rounds a row differently when the number of rows differs, and the tests compare bits
    logits = (embedding[:, :, None] * heads).sum(axis=1, dtype=np.float32)
    return {"logits": logits, "embedding": embedding, "features": features}


class TensorRTDouble:
    """Behaviour of the double of one version; tests set the attributes that they need."""

    last: TensorRTDouble

    def __init__(self, version: str, cuda: RecordingCuda) -> None:
        Last.double = self
        self.cuda = cuda
        self.calls: list[str] = []
        self.networks: list[INetworkDefinition] = []
        self.configs: list[IBuilderConfig] = []
        self.runtimes: list[Runtime] = []
        self.logs: list[Any] = []
        self.open_contexts = 0
        self.parse_failures = 0
        self.silent_parser = False
        self.build_failures: list[str] = []
        self.foreign_caches: set[bytes] = set()
        self.refuse_profile = self.refuse_plan = self.refuse_context = self.refuse_shape = self.refuse_address = False
        self.fail_execute = self.fail_capture = self.refuse_builder = False
        self.input_names = ["image"]
        self.input_dtype = "UINT8"
        self.input_shape: tuple[int, ...] = (-1, 3, SIDE, SIDE)
        self.layers: Callable[[Any], list[ILayer]] = lambda trt: []
        self.engine_inputs = ["image"]
        self.io: dict[str, tuple[str, tuple[int, ...]]] = {
            "image": ("UINT8", (-1, 3, SIDE, SIDE)),
            **{name: ("FLOAT", (-1, size)) for name, size in OUTPUT_SIZES.items()},
        }
        self.batches = (1, 1, 4)
        self.compute: Callable[[np.ndarray], dict[str, np.ndarray]] = compute
        self.inspection = json.dumps({"Layers": [], "Bindings": []})
        self.trt = make_module(version)


def make_module(version: str) -> Any:
    """Return a module double with the enums that this version has."""
    surface = json.loads(SURFACE.read_text(encoding="utf-8"))
    enums = {}
    for name, members in surface["enums"].items():
        since = surface["enums_since"].get(name, {})
        until = surface["enums_until"].get(name, {})
        present = [
            *members,
            *(member for member, first in since.items() if version_key(version) >= version_key(first)),
            *(member for member, last in until.items() if version_key(version) < version_key(last)),
        ]
        # The value differs between versions: the code must not know it.
        values = {"STRONGLY_TYPED": 1 if version_key(version) < (11,) else 0}
        enums[name] = make_enum(name, present, **{key: value for key, value in values.items() if key in present})
    return SimpleNamespace(__version__=version, **enums, **{kind.__name__: kind for kind in CLASSES_OF_MODULE})
