"""Which numbers keys of a recipe take, so that a wrong one is told of when the recipe is read.

What computes with them checks them again; it is loaded minutes later, or never.
"""

import re
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

MAX_RATE = 1e30
"""Far beyond what any learning survives; above it the optimizer itself overflows."""
MAX_MEMORY_GIB = 1 << 20
"""A pebibyte, whose bytes still fit into 64 bits."""

Bits = Annotated[int, Meta(ge=2, le=8)]
ActivationBits = Annotated[int, Meta(ge=2, le=16)]
"""Of these 9 to 15 are refused beside the other keys."""
Count = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Weight = Annotated[float, Meta(ge=0.0, le=MAX_RATE)]
"""Of a part of the loss, or of the decay."""
Temperature = Annotated[float, Meta(ge=1e-3, le=1e6)]
Percentile = Annotated[float, Meta(gt=50.0, le=100.0)]
Headroom = Annotated[float, Meta(ge=1.0, le=4.0)]
CosineLoss = Annotated[float, Meta(gt=0.0, lt=2.0)]


def normalization_problem(mean: Sequence[float] | None, std: Sequence[float] | None) -> str:
    """Return why these do not normalize pixels between 0 and 1, in words; empty where they do or are not given."""
    if mean is not None and not all(0.0 <= value <= 1.0 for value in mean):
        return (
            f"mean must be between 0 and 1 for each channel, got {list(mean)}; divide mean and std of pixels from 0 to "
            "255 by 255"
        )
    if std is not None and min(std) <= 0:
        return f"std must be positive, got {list(std)}"
    return ""


def is_device_name(name: str) -> bool:
    """Return whether a text is how a device is named: `auto`, `cpu`, `cuda` or `cuda:N`."""
    return re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]?))?", name) is not None
