"""Engines: one interface over ONNX Runtime and OpenVINO (CPU) and TensorRT (NVIDIA GPU)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from p4q_edge.runtime.artifacts import Card
from p4q_edge.runtime.choices import BackendName
from p4q_edge.runtime.errors import CorruptArtifactError, UsageError
from p4q_edge.runtime.storage import quoted

if TYPE_CHECKING:
    import numpy as np


_NAMES: Mapping[BackendName, str] = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT for RTX",
}


class Engine(Protocol):
    """A loaded engine. `run` may be called from several threads at once."""

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(N, 3, H, W) of the input; N is -1 where any number of images is accepted."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of all outputs."""

    def run(self, image: np.ndarray, outputs: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
        """Return the named outputs (all of them for None) of images (N, 3, H, W) uint8, RGB."""

    def close(self) -> None:
        """Release what the engine holds; it cannot be run afterwards."""


def load_engine(path: str | Path, card: Card, *, device: str = "auto", threads: int | None = None) -> Engine:
    """Load an engine after checking that it is the one its card describes.

    Args:
        path: the engine file.
        card: its card.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; must fit the engine.
        threads: threads of a CPU engine; None takes one a physical core that this process may keep busy.

    Raises:
        CorruptArtifactError: the engine is not the one of the card.
        UsageError: the device does not fit the engine.
        EnvironmentNotAbleError: the library that runs it is not installed.
    """
    if not card.on_cpu:
        from p4q_edge.runtime.engines.tensorrt.engine import TensorRTEngine

        return _fitting(TensorRTEngine.open(path, card, device=device), card, path)
    require_cpu(device, engine=str(path))
    if card.backend == "openvino":
        from p4q_edge.runtime.engines.openvino import OpenVINOEngine

        return _fitting(OpenVINOEngine.from_card(Path(path), card, threads=threads), card, path)
    from p4q_edge.runtime.engines.onnxruntime.engine import OnnxRuntimeEngine

    return _fitting(OnnxRuntimeEngine.from_card(Path(path), card, threads=threads), card, path)


def _fitting(engine: Engine, card: Card, path: str | Path) -> Engine:
    """Return the engine if it takes images as its card prepares them."""
    if tuple(engine.input_shape[2:]) != tuple(card.preprocess.size):
        taken = tuple(engine.input_shape[2:])
        engine.close()
        raise CorruptArtifactError(
            f"{path} takes images of {taken} pixels; its card prepares them with {tuple(card.preprocess.size)}. "
            f"Build it again: p4q-edge build model.p4q --engine {quoted(path)} --force"
        )
    return engine


def require_cpu(device: str, *, engine: str) -> None:
    """Raise `UsageError` unless `device` is `auto` or `cpu`."""
    if device not in ("auto", "cpu"):
        raise UsageError(
            f"{engine} is an engine for CPUs and runs on the CPU, not on {device!r}. For a GPU build a .plan: "
            "p4q-edge build model.p4q --engine out.plan"
        )


def fingerprint(card: Card, *, device: str = "auto") -> dict[str, str]:
    """Return what decides the values that the engine of a card computes here: library versions and processor."""
    if not card.on_cpu:
        from p4q_edge.runtime.engines.tensorrt import engine as tensorrt

        return dict(tensorrt.fingerprint(device, tensorrt.library_of(card)))
    if card.backend == "openvino":
        from p4q_edge.runtime.engines import openvino

        return dict(openvino.fingerprint())
    from p4q_edge.runtime.engines.onnxruntime import engine as onnxruntime

    return dict(onnxruntime.fingerprint())


def library_words(card: Card, *, device: str = "auto") -> str:
    """Return the library that runs the engine of a card here, with its version: `ONNX Runtime 1.32.0`."""
    found = fingerprint(card, device=device)
    # OpenVINO's goes on with the number of its build.
    return f"{_NAMES[card.backend]} {found[card.backend.replace('-', '_')].split('-')[0]}"
