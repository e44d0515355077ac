"""Classification heads: class names, text embeddings, adapter and temperature in a small safetensors file.

An engine has one head folded into its graph, `BuiltInHead`. Any other `Head` made for the same image tower works on the
engine's `features` output: `Head.apply` computes in NumPy what the folded head computes in the graph. Both are used
alike: `head.classify(engine, batch)`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import numpy as np

from p4q_edge.runtime.artifacts.signature import Keys, require_signed
from p4q_edge.runtime.errors import ArtifactError, CorruptArtifactError
from p4q_edge.runtime.storage import decode_json, load_tensors, read_bounded, save_tensors

MAX_HEAD_BYTES = 1 << 30
MAX_LOGIT_FACTOR = 1e6
"""Most that a scale, a bias, a temperature or a weight may be: products of two of them stay finite in float32."""
_TEXT = "text_embedding"
_ADAPTER = ("adapter.down.weight", "adapter.down.bias", "adapter.up.weight", "adapter.up.bias")
# A unit row in float16 may be off by this much.
_UNIT_NORM_TOLERANCE = 1e-2


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How logits become probabilities and when an answer is rejected; fitted on the quantized engine.

    Attributes:
        activation: `softmax` (one class an image) or `sigmoid` (any number of classes an image).
        temperature: divides the logits.
        threshold: least probability of an accepted answer.
        class_thresholds: the same by class name, where it differs.
    """

    activation: Literal["softmax", "sigmoid"] = "softmax"
    temperature: float = 1.0
    threshold: float = 0.0
    class_thresholds: dict[str, float] = {}

    def __post_init__(self) -> None:
        if not 1 / MAX_LOGIT_FACTOR <= self.temperature <= MAX_LOGIT_FACTOR:
            raise ValueError(f"temperature must be positive, at most {MAX_LOGIT_FACTOR:g}, got {self.temperature}")
        if not all(0 <= value <= 1 for value in (self.threshold, *self.class_thresholds.values())):
            raise ValueError("thresholds must be between 0 and 1")


class ImageRunner(Protocol):
    """What a head needs of an engine."""

    def run(self, image: np.ndarray, outputs: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
        """Return the named outputs of images (n, 3, H, W) uint8."""


class EngineHead(Protocol):
    """A head of an engine: the one that is folded into it, or one that is applied to its features."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a column of the logits."""

    @property
    def calibration(self) -> Calibration:
        """From logits to probabilities."""

    def classify(self, engine: ImageRunner, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (n, classes) and embeddings (n, dim), float32, of images (n, 3, H, W) uint8."""


@dataclass(frozen=True, kw_only=True)
class BuiltInHead:
    """The head that is folded into an engine; its card describes it.

    Attributes:
        class_names: in the order of the engine's logits.
        calibration: from logits to probabilities.
    """

    class_names: tuple[str, ...]
    calibration: Calibration

    def classify(self, engine: ImageRunner, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (n, classes) and embeddings (n, dim), float32, of images (n, 3, H, W) uint8."""
        outputs = engine.run(batch, ("logits", "embedding"))
        return outputs["logits"], outputs["embedding"]


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadAdapter:
    """The bottleneck adapter: A(z) = up(relu(down(z))), mixed as ratio * A(z) + (1 - ratio) * z.

    Source: P4Q, arXiv:2409.17634, section 3 (adapter). Weights are (out, in) float32, as in `torch.nn.Linear`.
    """

    down_weight: np.ndarray
    down_bias: np.ndarray
    up_weight: np.ndarray
    up_bias: np.ndarray
    residual_ratio: float

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(n, dim) float32 -> (n, dim) float32."""
        hidden = np.maximum(features @ self.down_weight.T + self.down_bias, 0.0)
        adapted = hidden @ self.up_weight.T + self.up_bias
        return np.asarray(self.residual_ratio * adapted + (1.0 - self.residual_ratio) * features)


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """Classes for one image tower.

    Attributes:
        class_names: one name a row of `text_embedding`.
        text_embedding: (classes, dim) float32, rows L2-normalized.
        logit_scale: factor between cosines and logits.
        logit_bias: added to the logits (SigLIP); 0 otherwise.
        adapter: applied to the features before they are normalized, or None.
        calibration: from logits to probabilities.
        weights_sha256: digest of the checkpoint that the head was made for; empty if unknown.
    """

    class_names: tuple[str, ...]
    text_embedding: np.ndarray
    logit_scale: float
    logit_bias: float = 0.0
    adapter: HeadAdapter | None = None
    calibration: Calibration = field(default_factory=Calibration)
    weights_sha256: str = ""

    @property
    def embedding_dim(self) -> int:
        return int(self.text_embedding.shape[1])

    def require_fit(self, *, name: str, embedding_dim: int, weights_sha256: str) -> None:
        """Raise `ArtifactError` unless the head was made for a model of this width and checkpoint."""
        if self.embedding_dim != embedding_dim:
            raise ArtifactError(
                f"head {name} has embeddings of {self.embedding_dim} numbers; the engine's have {embedding_dim}. "
                "Make the head with the model of the engine."
            )
        if self.weights_sha256 not in ("", weights_sha256):
            raise ArtifactError(
                f"head {name} was made for another checkpoint ({self.weights_sha256[:12]}) than the engine "
                f"({weights_sha256[:12]}). Make the head with the model of the engine."
            )

    def classify(self, engine: ImageRunner, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (n, classes) and embeddings (n, dim), float32, of images (n, 3, H, W) uint8."""
        return self.apply(engine.run(batch, ("features",))["features"])

    def apply(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (n, classes) and embedding (n, dim), both float32, of features (n, dim) float32."""
        adapted = features if self.adapter is None else self.adapter(features)
        norms = np.linalg.norm(adapted, axis=1, keepdims=True)
        embedding = (adapted / np.maximum(norms, np.finfo(np.float32).tiny)).astype(np.float32)
        return self.logits(embedding), embedding

    def logits(self, embedding: np.ndarray) -> np.ndarray:
        """Return logits (n, classes) float32 of embeddings (n, dim) float32."""
        logits = self.logit_scale * (embedding @ self.text_embedding.T) + self.logit_bias
        return np.asarray(logits, dtype=np.float32)

    def to_bytes(self) -> bytes:
        """Return the head as safetensors."""
        tensors = {_TEXT: self.text_embedding}
        metadata = {
            "class_names": json.dumps(list(self.class_names), ensure_ascii=False),
            "logit_scale": repr(float(self.logit_scale)),
            "logit_bias": repr(float(self.logit_bias)),
            "calibration": msgspec.json.encode(self.calibration, order="sorted").decode(),
            "weights_sha256": self.weights_sha256,
        }
        if self.adapter is not None:
            values = (
                self.adapter.down_weight,
                self.adapter.down_bias,
                self.adapter.up_weight,
                self.adapter.up_bias,
            )
            tensors.update(zip(_ADAPTER, values, strict=True))
            metadata["residual_ratio"] = repr(float(self.adapter.residual_ratio))
        return save_tensors(tensors, metadata)


def load_head(path: str | Path, *, trusted: Keys = None) -> Head:
    """Return the head in a `.safetensors` file.

    Args:
        path: the head's file.
        trusted: keys of which one must have signed it, see `Keys`.

    Raises:
        InputError: the file is missing or too large.
        ArtifactError: a signature is asked for, and there is none of these keys.
        CorruptArtifactError: it is not a head.
    """
    return load_head_bytes(Path(path), trusted=trusted)[1]


def load_head_bytes(path: Path, *, trusted: Keys = None) -> tuple[bytes, Head]:
    """Return what is in the file of a head, and the head; arguments and errors as of `load_head`."""
    data = read_bounded(path, limit_bytes=MAX_HEAD_BYTES, kind="head")
    require_signed(path, "head", data, trusted=trusted)
    return data, read_head(data, source=str(path))


def read_head(data: bytes, *, source: str) -> Head:
    """Return a head from safetensors.

    Raises:
        CorruptArtifactError: tensors or metadata are missing, or do not fit each other.
    """
    tensors, metadata = load_tensors(data, source=source)
    try:
        return _head(tensors, metadata, source=source)
    except (KeyError, ValueError) as error:
        raise CorruptArtifactError(
            f"{source} is not a head: {' '.join(str(error).split())}. Make it again with the toolkit."
        ) from error


def _head(tensors: dict[str, np.ndarray], metadata: dict[str, str], *, source: str) -> Head:
    names = decode_json(metadata["class_names"].encode(), tuple[str, ...], source=f"class_names of {source}")
    text = _matrix(tensors, _TEXT, shape=(len(names), None))
    if not names or len(set(names)) != len(names):
        raise ValueError("class names must be distinct, and at least one")
    # In float64, where the square of no float32 overflows.
    if not np.allclose(np.linalg.norm(text.astype(np.float64), axis=1), 1.0, atol=_UNIT_NORM_TOLERANCE):
        raise ValueError(f"rows of {_TEXT} must have length 1")
    calibration = decode_json(
        metadata.get("calibration", "{}").encode(), Calibration, source=f"calibration of {source}"
    )
    unknown = sorted(set(calibration.class_thresholds) - set(names))
    if unknown:
        raise ValueError(f"class_thresholds name unknown classes {', '.join(unknown)}")
    return Head(
        class_names=names,
        text_embedding=text,
        logit_scale=_number(metadata["logit_scale"]),
        logit_bias=_number(metadata.get("logit_bias", "0")),
        adapter=_adapter(tensors, metadata, dim=text.shape[1]),
        calibration=calibration,
        weights_sha256=metadata.get("weights_sha256", ""),
    )


def _adapter(tensors: dict[str, np.ndarray], metadata: dict[str, str], *, dim: int) -> HeadAdapter | None:
    extra = sorted(set(tensors) - {_TEXT, *_ADAPTER})
    if extra:
        raise ValueError(f"unknown tensors {', '.join(extra)}")
    if not any(name in tensors for name in _ADAPTER):
        return None
    down_weight = _matrix(tensors, _ADAPTER[0], shape=(None, dim))
    hidden = len(down_weight)
    return HeadAdapter(
        down_weight=down_weight,
        down_bias=_matrix(tensors, _ADAPTER[1], shape=(hidden,)),
        up_weight=_matrix(tensors, _ADAPTER[2], shape=(dim, hidden)),
        up_bias=_matrix(tensors, _ADAPTER[3], shape=(dim,)),
        residual_ratio=_number(metadata["residual_ratio"]),
    )


def _matrix(tensors: dict[str, np.ndarray], name: str, *, shape: tuple[int | None, ...]) -> np.ndarray:
    if name not in tensors:
        raise KeyError(f"tensor {name} is missing")
    tensor = tensors[name]
    fits = tensor.ndim == len(shape) and all(
        want in (None, got) for want, got in zip(shape, tensor.shape, strict=False)
    )
    if tensor.dtype not in (np.float32, np.float16) or not fits or not (np.abs(tensor) <= MAX_LOGIT_FACTOR).all():
        raise ValueError(
            f"tensor {name} must be finite float {shape} up to {MAX_LOGIT_FACTOR:g}, got {tensor.dtype} {tensor.shape}"
        )
    return tensor.astype(np.float32)


def _number(text: str) -> float:
    value = float(text)
    if not abs(value) <= MAX_LOGIT_FACTOR:
        raise ValueError(f"expected a finite number up to {MAX_LOGIT_FACTOR:g}, got {text[:40]}")
    return value
