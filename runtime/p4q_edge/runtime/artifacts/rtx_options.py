"""What a build for TensorRT for RTX can be told; its card records it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from p4q_edge.runtime.artifacts.tensorrt_options import TensorRTOptions
from p4q_edge.runtime.choices import PlanPrecision, Prefer
from p4q_edge.runtime.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class RtxOptions:
    """Options of one build; each is an option of `p4q-edge build`."""

    min_batch: int = 1
    """Smallest batch that the engine accepts."""
    opt_batch: int = 1
    """Batch that the engine is tuned for."""
    max_batch: int = 8
    """Largest batch that the engine accepts."""
    precision: PlanPrecision = "auto"
    """`auto` builds INT8 (or INT4 or FP8, as the bundle is quantized) and FP16, measures them and keeps the better one
    where a GPU is here that the engine is for; elsewhere it builds the former and says so."""
    prefer: Prefer = "speed"
    """What `auto` means by better: `speed`, or `size` of the engine."""
    min_cosine: float | None = None
    """Accuracy gate of what is measured, as that of `TensorRTOptions`."""
    optimization_level: int = 3
    """0 builds fastest, 5 searches longest."""
    capabilities: tuple[str, ...] = ()
    """Compute capabilities of the GPUs that it is for, as `8.6`; none: 8.0, 8.6, 8.9, 12.0 and later, of FP8 those from
    8.9 on."""

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            UsageError: names the option, its range and the value.
        """
        self.as_tensorrt()
        for name in self.capabilities:
            if re.fullmatch(r"\d{1,2}\.\d", name) is None:
                raise UsageError(f"expected a compute capability as 8.6, got {name!r}. Change --capability.")

    def as_tensorrt(self) -> TensorRTOptions:
        """Return what the common part of both builders is told."""
        return TensorRTOptions(
            min_batch=self.min_batch,
            opt_batch=self.opt_batch,
            max_batch=self.max_batch,
            precision=self.precision,
            prefer=self.prefer,
            min_cosine=self.min_cosine,
            optimization_level=self.optimization_level,
            timing_cache=False,
        )
