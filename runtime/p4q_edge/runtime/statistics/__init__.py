"""Figures with their intervals, times, and how far rounding may move a result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.statistics import metrics, rounding_limits
    from p4q_edge.runtime.statistics.metrics import (
        CosineSummary,
        Estimate,
        McNemar,
        ReliabilityBin,
        agreement,
        bootstrap_quantile,
        cosine_rows,
        wilson_interval,
    )
    from p4q_edge.runtime.statistics.ranking import auroc, first_ranks
    from p4q_edge.runtime.statistics.rounding_limits import (
        EXCESS,
        FULL_BITS,
        LARGEST_LOSS,
        NOISE_FACTOR,
        SMALLEST_LOSS,
        NoiseFloor,
        RoundingLimits,
        largest_shift,
        least_cosine,
        require_loss,
        rounding_limits_of,
        step_ratio,
        top1_margin,
        with_remainder,
    )
    from p4q_edge.runtime.statistics.timing import (
        ENGINE_SCOPE,
        WHOLE_SCOPE,
        Latency,
        Rounds,
        measure_interleaved,
        paired_ratio,
        summarize,
    )

__all__ = [
    "ENGINE_SCOPE",
    "EXCESS",
    "FULL_BITS",
    "LARGEST_LOSS",
    "NOISE_FACTOR",
    "SMALLEST_LOSS",
    "WHOLE_SCOPE",
    "CosineSummary",
    "Estimate",
    "Latency",
    "McNemar",
    "NoiseFloor",
    "ReliabilityBin",
    "RoundingLimits",
    "Rounds",
    "agreement",
    "auroc",
    "bootstrap_quantile",
    "cosine_rows",
    "first_ranks",
    "largest_shift",
    "least_cosine",
    "measure_interleaved",
    "metrics",
    "paired_ratio",
    "require_loss",
    "rounding_limits",
    "rounding_limits_of",
    "step_ratio",
    "summarize",
    "top1_margin",
    "wilson_interval",
    "with_remainder",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "metrics": (
                "CosineSummary",
                "Estimate",
                "McNemar",
                "ReliabilityBin",
                "agreement",
                "bootstrap_quantile",
                "cosine_rows",
                "wilson_interval",
            ),
            "ranking": ("auroc", "first_ranks"),
            "rounding_limits": (
                "EXCESS",
                "FULL_BITS",
                "LARGEST_LOSS",
                "NOISE_FACTOR",
                "NoiseFloor",
                "RoundingLimits",
                "SMALLEST_LOSS",
                "largest_shift",
                "least_cosine",
                "require_loss",
                "rounding_limits_of",
                "step_ratio",
                "top1_margin",
                "with_remainder",
            ),
            "timing": (
                "ENGINE_SCOPE",
                "Latency",
                "Rounds",
                "WHOLE_SCOPE",
                "measure_interleaved",
                "paired_ratio",
                "summarize",
            ),
        },
    )
