"""What a stage of the chain is: its name, its outputs, and the images that go through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

FLOAT, FAKE_QUANT, ONNX, ENGINE = STAGE_ORDER = ("float", "fake_quant", "onnx", "engine")

OUTPUT_NAMES = ("logits", "embedding", "features")
"""What a graph and every engine of it give, in this order."""

Outputs = Mapping[str, npt.NDArray[np.floating]]
"""`logits` (n, classes) and `embedding` (n, dim) of a batch."""
Stage = Callable[[npt.NDArray[np.uint8]], Outputs]
"""A function from a uint8 batch (n, 3, H, W) to its outputs."""


class Images(Protocol):
    """Anything whose slices are uint8 (n, 3, H, W): an array, a memory map, a loader that decodes on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> npt.NDArray[np.uint8]: ...
