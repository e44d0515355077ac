"""Golden samples: a few images and what the reference computes on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.storage import load_tensors, save_tensors

MAX_SAMPLES = 64

_IMAGE = "image"
_QUANTIZED = ("features", "embedding", "logits")
_FLOATS = (*_QUANTIZED, "float_embedding", "float_logits")
_ON_CPU = "on_cpu."


@dataclass(frozen=True, kw_only=True, eq=False)
class Golden:
    """Images and reference results; n is the number of images.

    Attributes:
        image: (n, 3, H, W) uint8, RGB, already resized.
        features: (n, dim) float32 of the fake-quantized reference, before the adapter.
        embedding: (n, dim) float32 likewise, after the adapter, L2-normalized.
        logits: (n, classes) float32 likewise.
        float_embedding: (n, dim) float32 of the full-precision model.
        float_logits: (n, classes) float32 of the full-precision model.
        on_cpu: features, embedding and logits of the model quantized as the graph for CPUs, where that one is quantized
            otherwise (its convolutions compute in float); empty where both graphs are alike.
    """

    image: np.ndarray
    features: np.ndarray
    embedding: np.ndarray
    logits: np.ndarray
    float_embedding: np.ndarray
    float_logits: np.ndarray
    on_cpu: Mapping[str, np.ndarray] = field(default_factory=dict)

    def for_cpu(self) -> Golden:
        """Return the samples that the graph for CPUs is compared with."""
        return replace(self, **self.on_cpu, on_cpu={})

    def to_bytes(self) -> bytes:
        """Return the samples as safetensors."""
        tensors = {name: getattr(self, name) for name in (_IMAGE, *_FLOATS)}
        tensors |= {_ON_CPU + name: values for name, values in self.on_cpu.items()}
        return save_tensors(tensors, {"format": "p4q-edge golden 1"})


def read_golden(data: bytes, *, source: str) -> Golden:
    """Return golden samples from safetensors.

    Raises:
        CorruptArtifactError: a tensor is missing or has an unexpected shape or dtype.
    """
    tensors, _ = load_tensors(data, source=source)
    absent = [name for name in (_IMAGE, *_FLOATS) if name not in tensors]
    if absent:
        raise CorruptArtifactError(f"{source} lacks the tensors {', '.join(absent)}. Export the bundle again.")
    image = tensors[_IMAGE]
    samples = len(image) if image.ndim == 4 else 0
    shapes_agree = image.ndim == 4 and image.shape[1] == 3 and image.dtype == np.uint8 and image.size > 0
    on_cpu = {name: tensors[_ON_CPU + name] for name in _QUANTIZED if _ON_CPU + name in tensors}
    shapes_agree &= len(on_cpu) in (0, len(_QUANTIZED))
    shapes_agree &= all(values.shape == tensors[name].shape for name, values in on_cpu.items())
    for tensor in (*(tensors[name] for name in _FLOATS), *on_cpu.values()):
        shapes_agree &= tensor.ndim == 2 and len(tensor) == samples and tensor.dtype == np.float32
        shapes_agree &= tensor.size > 0 and bool(np.isfinite(tensor).all())
    if not shapes_agree or not 0 < samples <= MAX_SAMPLES:
        raise CorruptArtifactError(
            f"{source}: expected up to {MAX_SAMPLES} uint8 images (n, 3, H, W) and finite float32 results (n, m); "
            f"got { ({name: tensor.shape for name, tensor in tensors.items()}) }. Export the bundle again."
        )
    return Golden(**{name: tensors[name] for name in (_IMAGE, *_FLOATS)}, on_cpu=on_cpu)
