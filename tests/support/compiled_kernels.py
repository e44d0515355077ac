"""Kernels that TensorRT for RTX compiled without a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A model's FP16 graph, the compile check's document about it, and both as golden text."""

    model: Path
    document: dict[str, Any]
    text: str
