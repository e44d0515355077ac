"""Latency statistics on a clock that the test turns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from p4q_edge.runtime.statistics import timing

TIMES = hnp.arrays(np.float64, st.integers(1, 300), elements=st.floats(0.01, 1e4))


class Clock:
    """A clock in nanoseconds that only moves when a candidate runs."""

    def __init__(self) -> None:
        self.now = 0
        self.drift = 1.0
        self.calls: list[str] = []

    def __call__(self) -> int:
        return self.now

    def candidate(self, name: str, cost_ms: float):  # type: ignore[no-untyped-def]
        def run() -> None:
            self.calls.append(name)
            self.now += int(cost_ms * self.drift * 1e6)
            self.drift *= 1.01

        return run


@given(TIMES)
def test_percentiles_are_ordered_and_were_measured(times: np.ndarray) -> None:
    latency = timing.summarize(times)
    assert latency.min_ms <= latency.p50_ms <= latency.p90_ms <= latency.p99_ms <= latency.max_ms
    assert latency.n == times.size
    for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms):
        assert value in times


def test_p99_of_few_runs_is_the_maximum() -> None:
    assert timing.summarize(np.arange(1.0, 51.0)).p99_ms == 50.0


def test_rounds_interleave_rotate_and_warm_up() -> None:
    clock = Clock()
    candidates = {name: clock.candidate(name, 1.0) for name in "ab"}
    result = timing.measure_interleaved(
        candidates, timing.Rounds(warmup=1, minimum=3, maximum=3, seconds=0), clock_ns=clock
    )
    assert "".join(clock.calls) == "ab" + "ab" + "ba" + "ab"
    assert {name: times.size for name, times in result.items()} == {"a": 3, "b": 3}


def test_measuring_goes_on_until_the_time_has_passed_and_stops_at_the_maximum() -> None:
    clock = Clock()
    rounds = timing.Rounds(warmup=0, minimum=2, maximum=10_000, seconds=0.1)
    long = timing.measure_interleaved({"a": clock.candidate("a", 1.0)}, rounds, clock_ns=clock)
    assert 2 < long["a"].size < 101
    short = timing.measure_interleaved(
        {"a": Clock().candidate("a", 1.0)}, timing.Rounds(warmup=0, minimum=1, maximum=4, seconds=1e9), clock_ns=Clock()
    )
    assert short["a"].size == 4


def test_paired_ratio_survives_a_machine_that_slows_down() -> None:
    clock = Clock()
    candidates = {"fp32": clock.candidate("fp32", 2.0), "int8": clock.candidate("int8", 1.0)}
    times = timing.measure_interleaved(
        candidates, timing.Rounds(warmup=0, minimum=100, maximum=100, seconds=0), clock_ns=clock
    )
    assert times["int8"].max() > 3 * times["int8"].min()
    ratio = timing.paired_ratio(times["fp32"], times["int8"], generator=np.random.default_rng(0))
    assert ratio.value == pytest.approx(2.0, rel=0.02)
    assert ratio.low <= ratio.value <= ratio.high
    assert ratio.n == 100


def test_ratio_of_two_runs_of_different_length_is_refused() -> None:
    with pytest.raises(ValueError, match="arrays of one run"):
        timing.paired_ratio(np.ones(3), np.ones(4), generator=np.random.default_rng(0))


@pytest.mark.parametrize("change", [{"warmup": -1}, {"minimum": 0}, {"minimum": 9, "maximum": 8}, {"seconds": -1.0}])
def test_rounds_that_make_no_sense_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected warmup >= 0"):
        timing.Rounds(**change)  # type: ignore[arg-type]
