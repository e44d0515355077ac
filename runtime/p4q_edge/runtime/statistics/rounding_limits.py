"""How far rounding alone may take two runs of one quantized model apart: the one rule of every gate.

The exporter measures that noise on the model itself, and a bundle records it: see `NoiseFloor`. Bundles without one
keep constants, which follow the bit width; these are too narrow for deep models and for those with large activations.

Two libraries add a sum in another order. Where it lies near a rounding boundary, one of them is off by a whole step,
and the layers after it round other values in turn. With FP32 between the linears this stays rare; with FP16 it ends
where the roundings of both runs are independent. The constants hold for both: at 8 bits they are measured ones, and a
step doubles with each bit less, so that distances grow with the step and squared distances with its square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

LARGEST_LOSS = 1e-3
"""1 - cosine at 8 bits above which something else was computed; roundings alone stay below 5e-4."""
WEAKEST_COSINE = 0.5
"""Even at two bits a model that computes the same thing stays above it, whatever it claims of its own roundings."""
TOP1_MARGIN = 0.01
"""At 8 bits: top-1 may differ where the reference's two best classes are closer than this difference of cosines."""
LARGEST_SHIFT = 0.2
"""Percentage points that top-1 may move at 8 bits."""
EXCESS = 3.0
"""The median loss of an engine against its reference may be this multiple of the exported graph's."""
SMALLEST_LOSS = 1e-9
"""A limit for models in which most images round alike in both runs: their median loss is that of float32 sums, 1e-14 to
1e-12 at every width, and one input on a grid of twice the step loses 1e-7 or more. The mean would not do: few images
with many roundings make it up."""

NOISE_FACTOR = 2.0
"""A distance between embeddings or logits may be this multiple of the largest one that the exporter saw between two
arithmetics of the module, and a loss of cosine, which is its square, as many times squared."""
WALK = 4.0
"""Standard deviations of a random walk that the number of right answers may go."""

FULL_BITS = 8
WIDEST_MARGIN = TOP1_MARGIN * 2.0 ** (FULL_BITS - 2)
"""Even at two bits a lead of the best class beyond it is kept."""
_ULPS = 1e-6
"""Of 1 - cosine and of leads, which float32 rows compute."""


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


LOSS_OF_OPPOSITES = 2.0
"""1 - cosine of two opposite embeddings: none is larger."""


def require_loss(name: str, value: float, *, most: float = LOSS_OF_OPPOSITES) -> None:
    """Refuse a loss of cosine, or a move of a lead, that cannot be.

    Raises:
        ValueError: it is negative, larger than `most`, or not a number.
    """
    if not -_ULPS <= value <= most + _ULPS:
        raise ValueError(f"{name}: expected a difference of cosines from 0 to {most:g}, got {value:g}")


class NoiseFloor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the fake-quantized module differs by from itself, run with sums in other orders and precisions.

    Attributes:
        worst_loss: largest 1 - cosine of an embedding.
        median_loss: upper end of the interval of the median of 1 - cosine.
        margin: how far the lead of the best class over another one moved at most, as a difference of cosines.

    Raises:
        ValueError: no two embeddings differ by so much, or so little.
    """

    worst_loss: float
    median_loss: float
    margin: float

    def __post_init__(self) -> None:
        largest = {"worst_loss": LOSS_OF_OPPOSITES, "median_loss": LOSS_OF_OPPOSITES, "margin": 2 * LOSS_OF_OPPOSITES}
        for name, most in largest.items():
            require_loss(name, getattr(self, name), most=most)

    def or_(self, other: NoiseFloor) -> NoiseFloor:
        """Return the larger of each figure: what one of two reasons explains.

        Of both at once the distances add up at most, which is what `NOISE_FACTOR` allows.
        """
        return NoiseFloor(
            worst_loss=max(self.worst_loss, other.worst_loss),
            median_loss=max(self.median_loss, other.median_loss),
            margin=max(self.margin, other.margin),
        )


def with_remainder(weights: NoiseFloor | None, remainder: NoiseFloor | None) -> NoiseFloor | None:
    """Return the floor of an engine: that of its weights, and where its remainder has one of its own, of either."""
    return weights if weights is None or remainder is None else weights.or_(remainder)


@dataclass(frozen=True, kw_only=True)
class RoundingLimits:
    """Limits of two runs of one model.

    Attributes:
        least_cosine: of any embedding.
        top1_margin: the best class may change where its lead, as a difference of cosines, is smaller.
        median_loss: that rounding explains; None where nothing was recorded.
        rule: how they came about, in words.
    """

    bits: int
    measured: bool
    least_cosine: float
    top1_margin: float
    median_loss: float | None
    rule: str

    def largest_shift(self, *, changed: int, n: int) -> float:
        """Return how many percentage points top-1 may move over n images, of which `changed` became right or wrong."""
        if not self.measured:
            return largest_shift(self.bits, changed=changed, n=n)
        # Roundings move answers both ways alike; how many they move is what the noise of the model decides.
        return max(LARGEST_SHIFT, 100.0 / n, 100.0 * WALK * math.sqrt(changed) / n)


def rounding_limits_of(bits: int, floor: NoiseFloor | None = None) -> RoundingLimits:
    """Return the limits of a model: from its own noise where that was measured, else from its bit width.

    A floor is what a bundle or a card claims of itself: whatever it says, an engine that computes something else fails.
    """
    if floor is not None:
        loss = max(NOISE_FACTOR**2 * floor.worst_loss, SMALLEST_LOSS)
        return RoundingLimits(
            bits=bits,
            measured=True,
            least_cosine=max(1.0 - loss, WEAKEST_COSINE),
            top1_margin=min(NOISE_FACTOR * floor.margin, WIDEST_MARGIN),
            median_loss=EXCESS * floor.median_loss,
            rule=(
                f"limits from the noise of this model's own roundings, measured at export: the cosine may lose "
                f"{NOISE_FACTOR**2:g} x {floor.worst_loss:.2g}, at most {1 - WEAKEST_COSINE:g}, "
                f"and top-1 may move by what chance explains"
            ),
        )
    return RoundingLimits(
        bits=bits,
        measured=False,
        least_cosine=least_cosine(bits),
        top1_margin=top1_margin(bits),
        median_loss=None,
        rule=_rule_of(bits),
    )


def _rule_of(bits: int) -> str:
    ratio = step_ratio(bits)
    if ratio == 1:
        return "limits of 8 bits"
    return (
        f"limits of {bits} bits: a step is {ratio:g} times that of 8 bits, so that the cosine may lose "
        f"{LARGEST_LOSS:g} x {ratio:g}^2 and top-1 may move by what chance explains, at most "
        f"{largest_shift(FULL_BITS, changed=0, n=10**6):g} x {ratio:g} points"
    )
