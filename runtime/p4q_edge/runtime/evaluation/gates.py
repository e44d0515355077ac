"""What a chain of stages must hold: limits that rounding explains, and the loss of accuracy that the user allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from p4q_edge.runtime.statistics import (
    EXCESS,
    FULL_BITS,
    SMALLEST_LOSS,
    NoiseFloor,
    RoundingLimits,
    rounding_limits_of,
)

if TYPE_CHECKING:
    from p4q_edge.runtime.evaluation.stage_comparison import StageComparison
from p4q_edge.runtime.stage import ENGINE, FAKE_QUANT, FLOAT

Grid = Literal["reference", "seven_bit", "none"]
"""On which grid a stage computes: that of the fake-quantized model, the one of 7-bit weights, or in floating point."""

MIN_IMAGES = 30
"""Fewer images say little about a median."""


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Limits; a report that breaks one is not accepted.

    Attributes:
        max_top1_drop: percentage points that the last stage may lose against the float one; None: no limit.
        bits: of the narrowest quantized value, which decides where no noise was recorded.
        noise: what roundings do in this model, for the graph and for the engine, as its bundle records it.
        grids: of the graph and of the engine, where it is not that of the reference.
        expected_loss: recorded median of 1 - cosine that rounding causes, for the graph and for the engine.
    """

    max_top1_drop: float | None = None
    bits: int = FULL_BITS
    noise: Mapping[str, NoiseFloor] = field(default_factory=dict)
    grids: Mapping[str, Grid] = field(default_factory=dict)
    expected_loss: Mapping[str, float] = field(default_factory=dict)

    def limits(self, stage: str) -> RoundingLimits:
        """Return how far roundings may take a stage from the fake-quantized model."""
        return rounding_limits_of(self.bits, self.noise.get(stage))

    @property
    def rule(self) -> str:
        """How the limits came about, in words."""
        return self.limits(ENGINE).rule

    def grid(self, stage: str) -> Grid:
        """Return the grid of a stage."""
        return "none" if stage == FLOAT else self.grids.get(stage, "reference")


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """One limit, what was measured, and whether it holds; `unit` is of both figures."""

    name: str
    passed: bool
    value: float
    limit: float
    unit: str


def judge(hops: Sequence[StageComparison], *, gates: Gates) -> tuple[GateResult, ...]:
    """Return every gate that the hops can answer."""
    results: list[GateResult] = []
    for hop in hops:
        grids = gates.grid(hop.reference), gates.grid(hop.candidate)
        if "none" not in grids:
            results += _of_rounding(hop, gates, same=grids[0] == grids[1])
        if (hop.reference, hop.candidate) == (FLOAT, ENGINE):
            results += _of_float(hop, hops, gates)
    return tuple(results)


def _of_rounding(hop: StageComparison, gates: Gates, *, same: bool) -> Iterator[GateResult]:
    """Yield the gates of two stages with integers; `same` if these are the same ones, so that only roundings differ."""
    pair, limits = f"{hop.reference} to {hop.candidate}", gates.limits(hop.candidate)
    cosine, least = hop.cosine.p1.value, limits.least_cosine
    yield GateResult(name=f"cosine (p1), {pair}", value=cosine, limit=least, unit="", passed=cosine >= least)
    shift = 100 * abs(hop.top1_difference.value)
    allowed = limits.largest_shift(changed=hop.mcnemar.only_first + hop.mcnemar.only_second, n=hop.n)
    yield GateResult(
        name=f"top-1 shift, {pair}", value=shift, limit=allowed, unit="points", passed=shift <= allowed + 1e-9
    )
    expected = gates.expected_loss.get(hop.candidate)
    if same and expected is not None and hop.n >= MIN_IMAGES:
        limit = max(EXCESS * expected, limits.median_loss or 0.0, SMALLEST_LOSS)
        # Beyond chance: the better end of the interval must break the limit.
        yield GateResult(
            name=f"median loss, {pair}",
            value=1 - hop.cosine.median.value,
            limit=limit,
            unit="of cosine",
            passed=1 - hop.cosine.median.high <= limit,
        )


def _of_float(hop: StageComparison, hops: Sequence[StageComparison], gates: Gates) -> Iterator[GateResult]:
    """Yield the gates between the full-precision model and the engine."""
    if gates.grid(ENGINE) == "none":
        # An engine that quantizes no activation differs from the quantized model for the better.
        reference = [h.cosine.p1.value for h in hops if (h.reference, h.candidate) == (FLOAT, FAKE_QUANT)]
        for value in reference:
            least, cosine = value - (1 - gates.limits(ENGINE).least_cosine), hop.cosine.p1.value
            name = "cosine (p1), float to engine, as near as the quantized model"
            yield GateResult(name=name, value=cosine, limit=least, unit="", passed=cosine >= least)
    if gates.max_top1_drop is not None:
        drop, limit = -100 * hop.top1_difference.value, gates.max_top1_drop
        name = "top-1 drop, float to engine"
        yield GateResult(name=name, value=drop, limit=limit, unit="points", passed=drop <= limit + 1e-9)
