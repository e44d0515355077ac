"""The tail of McNemar's exact test: equal to exact integers and to scipy, for few and for many draws."""

from __future__ import annotations

from fractions import Fraction
from math import comb
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.statistics.binomial import lower_tail
from p4q_edge.runtime.statistics.metrics import mcnemar_exact


@given(st.integers(0, 600).flatmap(lambda draws: st.tuples(st.integers(0, draws // 2), st.just(draws))))
def test_it_equals_the_sum_of_integers(case: tuple[int, int]) -> None:
    successes, draws = case
    exact = Fraction(sum(comb(draws, k) for k in range(successes + 1)), 2**draws)
    assert lower_tail(successes, draws) == pytest.approx(float(exact), rel=1e-12, abs=0)


@pytest.mark.parametrize("draws", [2, 17, 1000, 8000, 20_000, 100_000, 1_000_000])
@pytest.mark.parametrize("share", [0.5, 0.499, 0.48, 0.45, 0.4, 0.0])
def test_it_equals_scipy(draws: int, share: float) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with the toolkit")
    fewer = int(share * draws)
    expected = stats.binom.cdf(fewer, draws, 0.5)
    assert lower_tail(fewer, draws) == pytest.approx(expected, rel=1e-10, abs=1e-300)


@pytest.mark.parametrize(("successes", "draws"), [(2, 3), (-1, 3), (1, 0)])
def test_it_is_the_lower_half_alone(successes: int, draws: int) -> None:
    with pytest.raises(ValueError, match="expected at most half"):
        lower_tail(successes, draws)


def test_a_hundred_thousand_differing_images_are_compared() -> None:
    first = np.arange(100_000) < 49_500
    result = mcnemar_exact(first, ~first)
    assert (result.only_first, result.only_second) == (49_500, 50_500)
    normal = 2 * NormalDist().cdf((49_500.5 - 50_000) / 100_000**0.5 * 2)
    assert result.p_value == pytest.approx(normal, rel=1e-3)
    half = np.arange(100_000) < 50_000
    assert mcnemar_exact(half, ~half).p_value == 1.0
