"""Where PyTorch computes, in which precision, and how many images run through a tower at once."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
from torch import nn

from p4q_edge.models.team import ALONE, Team
from p4q_edge.recipe import ComputeSection, FloatPrecision
from p4q_edge.runtime.errors import EnvironmentNotAbleError
from p4q_edge.runtime.machine import cpu

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
BATCH_SIZE = 64
MOST_WORKERS = 8
"""Processes that decode for one GPU; each holds a few batches of pixels."""
FILLED = 0.9
"""Share of a GPU's free memory that a growing batch may fill."""


class MemoryMeter(Protocol):
    """Tells whether twice the images would fit into a device's memory."""

    def start(self) -> None:
        """Begin to watch a batch."""

    def fits_twice(self) -> bool:
        """Return whether a batch of twice the images of the watched one fits."""


class CudaMemory:
    """The meter of a GPU: what a batch needed beyond what was there before it, times two, against what is free.

    Args:
        limit_bytes: of the memory of this process on the device; 0 takes what is free.
    """

    def __init__(self, device: torch.device, *, limit_bytes: int = 0) -> None:
        self.device = device
        self.limit_bytes = limit_bytes
        self._before = 0

    def start(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)
        self._before = torch.cuda.memory_allocated(self.device)

    def fits_twice(self) -> bool:
        needed = self._before + 2 * (torch.cuda.max_memory_allocated(self.device) - self._before)
        free, _ = torch.cuda.mem_get_info(self.device)
        most = FILLED * (free + torch.cuda.memory_reserved(self.device))
        return needed <= (min(most, self.limit_bytes) if self.limit_bytes else most)


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How towers are run; the resolved [compute] of a recipe.

    Attributes:
        device: that there is.
        batch_size: images at once, or at first where it grows.
        meter: lets batches grow until memory is used; None keeps their size.
        precision: of the float image tower that is learned from.
    """

    device: torch.device = CPU
    batch_size: int = BATCH_SIZE
    meter: MemoryMeter | None = None
    precision: FloatPrecision = "float32"

    @classmethod
    def of(cls, section: ComputeSection, team: Team = ALONE) -> "Compute":
        """Resolve a recipe's section on this machine; each process of a team takes a GPU of its own.

        Raises:
            EnvironmentNotAbleError: there is no such device.
            UsageError: one GPU is named for all processes of a team.
        """
        device = choose_device(team.device_name(section.device))
        growing = section.batch_size == "auto" and device.type == "cuda"
        return cls(
            device=device,
            batch_size=BATCH_SIZE if section.batch_size == "auto" else section.batch_size,
            meter=CudaMemory(device, limit_bytes=int(section.memory_gib * 2**30)) if growing else None,
            precision=section.precision,
        )


ON_CPU = Compute()


def choose_device(name: str) -> torch.device:
    """Return the device of a name, see `require_device`, to compute on it; the log names a GPU.

    From here on, float32 is multiplied as such on it: TF32, which torch allows convolutions by itself, would move
    values to other points of the integer grids than on a CPU.

    Raises:
        EnvironmentNotAbleError: this machine has no such device, or torch cannot use it.
    """
    device = require_device(name)
    if device.type == "cuda":
        _allow_tf32(False)
        logger.info("PyTorch computes on %s (%s)", device, torch.cuda.get_device_name(device))
    return device


def require_device(name: str) -> torch.device:
    """Return the device of a name, `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is a GPU where there is one.

    Raises:
        EnvironmentNotAbleError: this machine has no such device, or torch cannot use it.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not there):
        return CPU
    index = int(name.partition(":")[2] or 0)
    if index >= there:
        raise EnvironmentNotAbleError(
            f"expected the device {name!r}, and PyTorch {torch.__version__} finds here: {devices_in_words(there)}. "
            "Name one of these with --device or compute.device, or `auto` for the best of them"
        )
    return torch.device("cuda", index)


def decoding_workers(section: ComputeSection, device: torch.device, *, processes: int = 1) -> int:
    """Return how many processes decode images for one that encodes them, of so many on this machine."""
    if section.workers != "auto":
        return section.workers
    if device.type == "cpu":
        return 0
    return max(0, min(MOST_WORKERS, cpu.usable_cores() // processes - 1))


def device_of(module: nn.Module) -> torch.device:
    """Where the weights of a module lie."""
    return next(chain(module.parameters(), module.buffers())).device


def devices_in_words(count: int) -> str:
    """Return what `require_device` can be asked for on a machine with this number of GPUs."""
    names = ["cpu", *(f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(count))]
    hint = "" if count or torch.version.cuda else " (this PyTorch is built for CPUs only)"
    return ", ".join(names) + hint


@contextmanager
def teacher_precision(compute: Compute) -> Iterator[None]:
    """Run the frozen float tower in the precision that was asked for; everything else stays in float32."""
    if compute.precision == "bf16":
        with torch.autocast(compute.device.type, torch.bfloat16):
            yield
    elif compute.precision == "tf32":
        _allow_tf32(True)
        try:
            yield
        finally:
            _allow_tf32(False)
    else:
        yield


@contextmanager
def memory_in_words() -> Iterator[None]:
    """Say what to do where a GPU's memory ran out and no batch could shrink any more.

    Raises:
        EnvironmentNotAbleError: in place of torch's own error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EnvironmentNotAbleError(
            f"the device ran out of memory ({str(error).splitlines()[0]}). Stop what else uses it, set "
            "compute.batch_size lower, or take --device cpu"
        ) from error


def _allow_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
