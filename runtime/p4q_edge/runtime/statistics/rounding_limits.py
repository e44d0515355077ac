"""How far rounding alone may take two runs of one quantized model apart: the one rule of every gate.

Two libraries add a sum in another order. Where it lies near a rounding boundary, one of them is off by a whole step,
and the layers after it round other values in turn. With FP32 between the linears this stays rare; with FP16 it ends
where the roundings of both runs are independent. The limits hold for both: at 8 bits they are measured ones, and a
step doubles with each bit less, so that distances grow with the step and squared distances with its square.
"""

from __future__ import annotations

import math

LARGEST_LOSS = 1e-3
"""1 - cosine at 8 bits above which something else was computed; roundings alone stay below 5e-4."""
WEAKEST_COSINE = 0.5
"""Even at two bits a model that computes the same thing stays above it."""
TOP1_MARGIN = 0.01
"""At 8 bits: top-1 may differ where the reference's two best classes are closer than this difference of cosines."""
LARGEST_SHIFT = 0.2
"""Percentage points that top-1 may move at 8 bits."""
EXCESS = 3.0
"""The median loss of an engine against its reference may be so many times that of the exported graph."""
SMALLEST_LOSS = 1e-9
"""A limit for models in which most images round alike in both runs: their median loss is that of float32 sums, 1e-14 to
1e-12 at every width, and one input on a grid of twice the step loses 1e-7 or more. The mean would not do: few images
with many roundings make it up."""

FULL_BITS = 8


def step_ratio(bits: int) -> float:
    """Return how much wider a step of this many bits is than one of 8 bits."""
    return 2.0 ** (FULL_BITS - bits)


def least_cosine(bits: int) -> float:
    """Return the least cosine between two runs whose narrowest quantized value has this many bits."""
    return max(1.0 - LARGEST_LOSS * step_ratio(bits) ** 2, WEAKEST_COSINE)


def top1_margin(bits: int) -> float:
    """Return the difference of cosines below which the best class may change."""
    return TOP1_MARGIN * step_ratio(bits)


def largest_shift(bits: int, *, changed: int, n: int) -> float:
    """Return how many percentage points top-1 may move over n images, of which `changed` became right or wrong.

    One image may always change, since in a small set it weighs more than the limit. Below 8 bits more images lie
    within a step of a border; they change both ways alike, so that what is left over is a random walk: its limit at
    two standard deviations, and never more than the wider step allows.
    """
    walk = 100.0 * 2.0 * math.sqrt(changed) / n
    return max(min(LARGEST_SHIFT * step_ratio(bits), max(LARGEST_SHIFT, walk)), 100.0 / n)
