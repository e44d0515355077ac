"""What a TensorRT build can be told, and what it chooses when it is told nothing; its card records it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from p4q_edge.runtime.choices import (
    Compatibility,
    CudaBackend,
    PlanFlavour,
    PlanPrecision,
    Prefer,
    QuantizedFlavour,
    Typing,
)
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.statistics import FULL_BITS, least_cosine


@dataclass(frozen=True, kw_only=True)
class TensorRTOptions:
    """Options of one TensorRT build; each is an option of `p4q-edge build`."""

    min_batch: int = 1
    """Smallest batch that the engine accepts."""
    opt_batch: int = 1
    """Batch that the engine is tuned for."""
    max_batch: int = 8
    """Largest batch that the engine accepts."""
    precision: PlanPrecision = "auto"
    """`auto` builds INT8 (or INT4 or FP8, as the bundle is quantized) and FP16, measures them on this device and keeps
    the better one."""
    prefer: Prefer = "speed"
    """What `auto` means by better: `speed`, or `size` of the plan."""
    min_cosine: float | None = None
    """Accuracy gate of `auto`: smallest cosine of a golden embedding to that of the PyTorch reference; None takes what
    rounding explains in this model, as its bundle records; 0.999 at 8 bits where it records nothing."""
    workspace_mib: int | None = None
    """Scratch memory of the builder in MiB; default a quarter of the memory on Jetson, else TensorRT's own."""
    optimization_level: int = 3
    """0 builds fastest, 5 searches longest."""
    timing_cache: bool = True
    """Keep the measured kernel times beside the engine, so that the next build is shorter."""
    typing: Typing = "auto"
    """`auto` is strong; only below TensorRT 10.12 a failed strong build is tried again with weak typing."""
    version_compatible: bool = False
    """Make a plan that newer TensorRT versions load; it carries code that the loader runs."""
    hardware_compatibility: Compatibility = "none"
    """Make a plan for more GPUs than this one, on desktop only; it may be slower."""
    device: int = 0
    """Index of the GPU."""
    cuda_backend: CudaBackend = "auto"
    """`driver` (the driver's own library, which `auto` takes) or one of the packages `cuda-bindings` and `pycuda`."""

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            UsageError: names the option, its range and the value.
        """
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise UsageError(
                "expected 1 <= min batch <= opt batch <= max batch, got "
                f"{self.min_batch}, {self.opt_batch} and {self.max_batch}. "
                "Change --min-batch, --opt-batch or --max-batch."
            )
        if not 0 <= self.optimization_level <= 5:
            raise UsageError(f"expected an optimization level of 0 to 5, got {self.optimization_level}.")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError(f"expected a workspace of at least 1 MiB, got {self.workspace_mib}.")
        if self.min_cosine is not None and not -1 <= self.min_cosine <= 1:
            raise UsageError(f"expected a minimal cosine of -1 to 1, got {self.min_cosine}.")
        for value, kind, name in (
            (self.precision, PlanPrecision, "precision"),
            (self.prefer, Prefer, "preference"),
            (self.typing, Typing, "typing"),
            (self.hardware_compatibility, Compatibility, "hardware compatibility"),
            (self.cuda_backend, CudaBackend, "CUDA backend"),
        ):
            if value not in get_args(kind):
                raise UsageError(f"expected a {name} of {', '.join(get_args(kind))}, got {value!r}.")

    @property
    def batches(self) -> tuple[int, int, int]:
        """Smallest, tuned and largest batch of the optimization profile."""
        return self.min_batch, self.opt_batch, self.max_batch

    @property
    def accuracy_gate(self) -> float:
        """The limit of `min_cosine`; that of 8 bits unless one was set."""
        return least_cosine(FULL_BITS) if self.min_cosine is None else self.min_cosine

    def flavours(self, *, convolutions: bool, quantized: QuantizedFlavour = "int8") -> tuple[PlanFlavour, ...]:
        """Return the precisions that are built, in building order.

        `int8-linears` is the INT8 model with its convolutions in FP16: INT8 convolutions are slower than FP16 on some
        devices and shapes, and only measuring tells.

        Args:
            convolutions: whether the model has quantized ones.
            quantized: what its linears are quantized to.

        Raises:
            UsageError: the precision that was asked for is not the model's.
        """
        if self.precision not in ("auto", "fp16", quantized):
            raise UsageError(
                f"--precision {self.precision}: the bundle is quantized to {quantized.upper()}. Leave it out, or take "
                f"{quantized} or fp16."
            )
        if self.precision != "auto":
            return (self.precision,)
        return ("int8", "int8-linears", "fp16") if convolutions else (quantized, "fp16")
