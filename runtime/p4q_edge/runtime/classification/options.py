"""How a classifier uses the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from p4q_edge.runtime.choices import Fast
from p4q_edge.runtime.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How a classifier uses the machine.

    Attributes:
        threads: threads of a CPU engine; None leaves the choice to ONNX Runtime.
        decode_threads: threads that decode and resize images ahead of the engine.
        batch_size: most images in one run of the engine; bounds the memory.
        fast: an inexact, faster way to shrink large images; None is exact.
        orient: apply the EXIF orientation of images; None does what the engine's card says, which is what the model
            was learned with. open_clip's loader never applies it.
        check: run the golden samples when an engine is first loaded on a machine, or never.
    """

    threads: int | None = None
    decode_threads: int = 2
    batch_size: int = 8
    fast: Fast | None = None
    orient: bool | None = None
    check: Literal["first", "never"] = "first"

    def __post_init__(self) -> None:
        if self.decode_threads < 1 or self.batch_size < 1:
            raise UsageError("decode_threads and batch_size must be at least 1.")
