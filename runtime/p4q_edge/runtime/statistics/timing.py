"""Latency statistics and the interleaved measurement that compares candidates on a machine that drifts."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p4q_edge.runtime.statistics.metrics import BOOTSTRAP_ROUNDS, CONFIDENCE, Estimate

ENGINE_SCOPE = "engine"
"""Timed from a uint8 array to outputs."""
WHOLE_SCOPE = "end to end"
"""Timed from an encoded photograph to labels."""
NANOSECONDS_PER_MS = 1e6


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Percentiles of n runs, in milliseconds. With n < 100 the p99 is the maximum."""

    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    max_ms: float


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How often to measure: `warmup` unmeasured rounds, then at least `minimum` and until `seconds` have passed."""

    warmup: int = 5
    minimum: int = 30
    maximum: int = 2000
    seconds: float = 3.0

    def __post_init__(self) -> None:
        if self.warmup < 0 or not 1 <= self.minimum <= self.maximum or self.seconds < 0:
            raise ValueError(f"expected warmup >= 0, 1 <= minimum <= maximum and seconds >= 0, got {self}")


def summarize(times_ms: npt.NDArray[np.float64]) -> Latency:
    """Return percentiles of (n,) times in milliseconds; each is a time that was measured, not interpolated."""
    p50, p90, p99 = np.quantile(times_ms, [0.5, 0.9, 0.99], method="higher")
    return Latency(
        n=int(times_ms.size),
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        mean_ms=float(times_ms.mean()),
        min_ms=float(times_ms.min()),
        max_ms=float(times_ms.max()),
    )


def measure_interleaved(
    candidates: Mapping[str, Callable[[], object]],
    rounds: Rounds,
    *,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, npt.NDArray[np.float64]]:
    """Time every candidate once a round, so that a drift of the machine touches all of them alike.

    The order rotates from round to round, so that none always runs in the cache that another left.

    Returns:
        (rounds,) milliseconds of each candidate; index i is the same round for all.
    """
    names = list(candidates)
    for _ in range(rounds.warmup):
        for name in names:
            candidates[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    start = clock_ns()
    for index in range(rounds.maximum):
        if index >= rounds.minimum and clock_ns() - start >= rounds.seconds * 1e9:
            break
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            before = clock_ns()
            candidates[name]()
            times[name].append((clock_ns() - before) / NANOSECONDS_PER_MS)
    return {name: np.array(values) for name, values in times.items()}


def paired_ratio(
    baseline_ms: npt.NDArray[np.float64],
    candidate_ms: npt.NDArray[np.float64],
    *,
    generator: np.random.Generator,
) -> Estimate:
    """Return the median over rounds of baseline / candidate: above 1 the candidate is faster.

    Both arrays are (n,) from one `measure_interleaved`; the interval is a bootstrap of the median.
    """
    if baseline_ms.shape != candidate_ms.shape or baseline_ms.ndim != 1 or baseline_ms.size == 0:
        raise ValueError(f"expected two (n,) arrays of one run, got {baseline_ms.shape} and {candidate_ms.shape}")
    ratios = baseline_ms / candidate_ms
    draws = [float(np.median(ratios[generator.integers(0, ratios.size, ratios.size)])) for _ in range(BOOTSTRAP_ROUNDS)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(
        value=float(np.median(ratios)), n=int(ratios.size), low=float(low), high=float(high), method="bootstrap"
    )
