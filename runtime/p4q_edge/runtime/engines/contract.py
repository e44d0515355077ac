"""What every engine takes and gives, whatever library runs it, and how it says that something else came."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.stage import OUTPUT_NAMES

MAX_MODEL_BYTES = (2 << 30) - 1
"""Most that a message of Protocol Buffers, as ONNX models are, can have."""
INPUT = "one input `image` uint8 (N, 3, H, W)"


def not_an_engine(name: str, expected: str) -> CorruptArtifactError:
    """Return the error of a model that is none of this project, with what was expected and what came."""
    return CorruptArtifactError(
        f"{name} is not an engine of P4Q Edge: expected {expected}. Build it from a bundle with `p4q-edge build`."
    )


def require_outputs(found: Collection[str], *, name: str) -> None:
    """Raise `CorruptArtifactError` unless the model `name` has all outputs of an engine among those that were found."""
    if not set(OUTPUT_NAMES) <= set(found):
        raise not_an_engine(name, f"outputs {', '.join(OUTPUT_NAMES)}, got {', '.join(found)}")


def require_batch(image: np.ndarray, sample: tuple[int, ...]) -> None:
    """Raise `ValueError` unless an array is a batch of images, uint8 (N, *sample)."""
    if image.dtype != np.uint8 or image.ndim != 4 or image.shape[1:] != sample:
        raise ValueError(f"expected uint8 (N, {sample}), got {image.dtype} {image.shape}")
