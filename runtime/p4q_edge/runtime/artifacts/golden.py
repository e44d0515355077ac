"""Golden samples: a few images, what the reference computes on them, and how an engine compares with that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from p4q_edge.runtime.choices import CONVOLUTION_PROFILES, CpuProfile
from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.statistics import FULL_BITS, least_cosine
from p4q_edge.runtime.storage import load_tensors, save_tensors
from p4q_edge.runtime.wording import number_of, one_or_many

MAX_SAMPLES = 64
MAX_DRIFT = {"onnxruntime": 1e-6, "openvino": 1e-6, "tensorrt": 1e-3, "tensorrt-rtx": 1e-3}
"""Largest move of an embedding's numbers on the machine that built the engine. The kernels of ONNX Runtime are
deterministic, so that only a change moves them; FP16 sums on a GPU may differ in their last bits."""

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

    def for_profile(self, profile: CpuProfile) -> Golden:
        """Return the samples that a profile of a CPU engine is compared with."""
        return replace(self, on_cpu={}) if profile in CONVOLUTION_PROFILES else self.for_cpu()

    def to_bytes(self) -> bytes:
        """Return the samples as safetensors."""
        tensors = {name: getattr(self, name) for name in (_IMAGE, *_FLOATS)}
        tensors |= {_ON_CPU + name: values for name, values in self.on_cpu.items()}
        return save_tensors(tensors, {"format": "p4q-edge golden 1"})


class GoldenResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison of an engine with golden samples found.

    Attributes:
        samples: number of images compared.
        cosine_min: smallest cosine of embeddings, engine against fake-quantized reference.
        top1_agreement: share of images with the same best class.
        top1_flips: images whose best class differs although the reference's margin is clear.
        logit_difference: largest absolute difference of logits.
        float_top1_agreement: share of images with the best class of the full-precision model.
        drift: largest absolute difference of embeddings to those at build time; None on another machine.
        max_drift: the limit of `drift`.
        min_cosine: the limit of `cosine_min`: from the noise of the model, or its bit width where none was recorded.
        doubt: what is known of wrong values of the library that built the engine, or None.
    """

    samples: int
    cosine_min: float
    top1_agreement: float
    top1_flips: int
    logit_difference: float
    float_top1_agreement: float
    drift: float | None = None
    max_drift: float = MAX_DRIFT["onnxruntime"]
    min_cosine: float = least_cosine(FULL_BITS)
    doubt: str | None = None

    def problem(self) -> str | None:
        """Return in words what is wrong, or None if the engine computes what the reference computes."""
        if not self.cosine_min >= self.min_cosine:
            return (
                f"embeddings reach a cosine of {self.cosine_min:.5f} to the reference; expected {self.min_cosine:.5g}"
            )
        if self.top1_flips:
            return (
                f"{self.top1_flips} of {number_of(self.samples, 'golden image')} "
                f"{one_or_many(self.top1_flips, 'gets', 'get')} another class than in the reference"
            )
        if self.drift is not None and not self.drift <= self.max_drift:
            return (
                f"embeddings moved by {self.drift:.2e} since the engine was built on this machine; "
                f"at most {self.max_drift:.0e} is expected"
            )
        return None


class MeasuredGolden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine gave on the golden samples when it was built: `embedding` is n rows of dim numbers."""

    embedding: tuple[tuple[float, ...], ...]
    golden: GoldenResult


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
