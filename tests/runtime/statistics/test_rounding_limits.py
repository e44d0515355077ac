"""Limits of roundings: from the noise that the exporter measured, or from the bit width where it measured none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.statistics import (
    NOISE_FACTOR,
    NoiseFloor,
    largest_shift,
    least_cosine,
    rounding_limits_of,
    top1_margin,
)

FLOOR = NoiseFloor(worst_loss=1.7e-3, median_loss=2e-4, margin=0.03)


@given(bits=st.integers(2, 8), changed=st.integers(0, 300), n=st.integers(300, 3000))
def test_without_a_floor_the_limits_are_those_of_the_bit_width(bits: int, changed: int, n: int) -> None:
    limits = rounding_limits_of(bits)
    assert not limits.measured
    assert limits.least_cosine == least_cosine(bits)
    assert limits.top1_margin == top1_margin(bits)
    assert limits.median_loss is None
    assert limits.largest_shift(changed=changed, n=n) == largest_shift(bits, changed=changed, n=n)


def test_a_floor_decides_whatever_the_bit_width() -> None:
    limits = rounding_limits_of(8, FLOOR)
    assert limits.measured
    assert limits.least_cosine == pytest.approx(1 - NOISE_FACTOR**2 * 1.7e-3)
    assert limits.least_cosine < least_cosine(8)  # a deep model that the constant refused
    assert limits.top1_margin == pytest.approx(NOISE_FACTOR * 0.03)
    assert limits.rule.startswith("limits from the noise of this model's own roundings, measured at export: ")
    assert rounding_limits_of(4, FLOOR).least_cosine == limits.least_cosine
    calm = rounding_limits_of(4, NoiseFloor(worst_loss=1e-7, median_loss=0.0, margin=1e-4))
    assert calm.least_cosine > least_cosine(8)  # and one in which far less than the constant is a fault


def test_whatever_a_model_claims_of_its_roundings_something_else_fails() -> None:
    limits = rounding_limits_of(8, NoiseFloor(worst_loss=2.0, median_loss=2.0, margin=4.0))
    assert limits.least_cosine == least_cosine(2) == 0.5
    assert limits.top1_margin == top1_margin(2)
    assert "at most 0.5" in limits.rule
    with pytest.raises(ValueError, match="worst_loss: expected a difference of cosines from 0 to 2, got nan"):
        NoiseFloor(worst_loss=float("nan"), median_loss=0.0, margin=0.0)


def test_top1_may_walk_with_the_images_that_changed() -> None:
    limits = rounding_limits_of(8, FLOOR)
    assert limits.largest_shift(changed=0, n=40) == 2.5  # one image
    assert limits.largest_shift(changed=9, n=400) == pytest.approx(3.0)
    assert limits.largest_shift(changed=100, n=200) == pytest.approx(20.0)  # half of the images changed: not 25 points
