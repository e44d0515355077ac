"""How well scores tell two kinds of images apart, and how high the right ones rank, in NumPy."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from p4q_edge.runtime.statistics.metrics import CONFIDENCE, Estimate, Floats, wilson_interval

MAX_PRODUCTS = 1 << 24
"""Largest number of cosines that are held at once, 128 MB of them."""


def auroc(positive: Floats, negative: Floats) -> Estimate:
    """Return the chance that a positive scores above a negative one, ties counted half, with an interval of 95 %.

    It is DeLong's. Where all pairs are in one order, or a kind has one entry alone, that would have no width or miss a
    part; then it is Wilson's for as many entries as the rarer kind has.

    Args:
        positive: scores (n,) that shall be high, n >= 1.
        negative: scores (m,) that shall be low, m >= 1.

    Raises:
        ValueError: one of both is empty, or not one-dimensional.

    Source: E. R. DeLong, D. M. DeLong, D. L. Clarke-Pearson, Comparing the areas under two or more correlated receiver
    operating characteristic curves, 1988.
    """
    if positive.ndim != 1 or negative.ndim != 1 or not positive.size or not negative.size:
        raise ValueError(f"expected scores (n,) and (m,) with n, m >= 1, got {positive.shape} and {negative.shape}")
    above = _share_below(positive, negative)
    below = 1 - _share_below(negative, positive)
    value = float(above.mean())
    fewest = min(positive.size, negative.size)
    if fewest == 1 or (np.ptp(above) == 0 and np.ptp(below) == 0):
        low, high = wilson_interval(value * fewest, fewest)
        n = int(positive.size + negative.size)
        return Estimate(value=value, n=n, low=min(low, value), high=max(high, value), method="wilson")
    variance = sum(float(part.var(ddof=1)) / part.size for part in (above, below))
    half = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * math.sqrt(variance)
    return Estimate(
        value=value,
        n=int(positive.size + negative.size),
        low=max(0.0, value - half),
        high=min(1.0, value + half),
        method="delong",
    )


def _share_below(values: Floats, others: Floats) -> npt.NDArray[np.float64]:
    """Return (n,) the share of `others` below each value, ties counted half."""
    ordered = np.sort(others)
    low, high = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    share: npt.NDArray[np.float64] = (low + high) / (2 * ordered.size)
    return share


def first_ranks(queries: Floats, gallery: Floats, right: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return (n,) the place, from 0, of the best right entry for each query; ties with wrong ones count against it.

    Args:
        queries: (n, dim), of length 1.
        gallery: (m, dim), of length 1.
        right: (n, m), which entries are right for a query, at least one each.

    Raises:
        ValueError: a query has no right entry.
    """
    if not right.any(axis=1).all():
        raise ValueError("expected a right entry for each query")
    ranks = np.empty(len(queries), np.int64)
    block = max(1, MAX_PRODUCTS // max(1, len(gallery)))
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        cosines = queries[rows].astype(np.float64) @ gallery.astype(np.float64).T
        best = np.where(right[rows], cosines, -np.inf).max(axis=1, keepdims=True)
        ranks[rows] = ((cosines >= best) & ~right[rows]).sum(axis=1)
    return ranks
