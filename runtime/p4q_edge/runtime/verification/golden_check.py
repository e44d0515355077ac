"""Compare an engine with the golden samples of its bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from p4q_edge.runtime.artifacts import Golden, GoldenResult
from p4q_edge.runtime.errors import CorruptArtifactError, QualityGateError
from p4q_edge.runtime.statistics import FULL_BITS, RoundingLimits, rounding_limits_of

if TYPE_CHECKING:
    from p4q_edge.runtime.engines import Engine


def run_golden(engine: Engine, golden: Golden) -> dict[str, np.ndarray]:
    """Return all outputs of an engine on the golden images, one image at a time."""
    rows = [engine.run(golden.image[index : index + 1], None) for index in range(len(golden.image))]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def compare_golden(
    outputs: dict[str, np.ndarray],
    golden: Golden,
    *,
    logit_scale: float,
    recorded: np.ndarray | None = None,
    limits: RoundingLimits | None = None,
) -> GoldenResult:
    """Compare an engine's outputs with the reference, and with its own of build time.

    Args:
        outputs: `embedding` (n, dim) and `logits` (n, classes) of the engine.
        golden: the samples.
        logit_scale: factor between cosines and logits.
        recorded: (n, dim) embeddings of the engine when it was built on this machine, or None.
        limits: what rounding may do in this model; None takes that of 8 bits.
    """
    limits = limits or rounding_limits_of(FULL_BITS)
    embedding, logits = outputs["embedding"], outputs["logits"]
    if embedding.shape != golden.embedding.shape or logits.shape != golden.logits.shape:
        raise CorruptArtifactError(
            f"the engine gives embeddings {embedding.shape} and logits {logits.shape}; its golden samples have "
            f"{golden.embedding.shape} and {golden.logits.shape}. Build the engine again from its bundle."
        )
    best, reference_best = logits.argmax(axis=1), golden.logits.argmax(axis=1)
    two_best = np.sort(golden.logits, axis=1)[:, -2:]
    clear = (two_best[:, -1] - two_best[:, 0] > limits.top1_margin * logit_scale) | (golden.logits.shape[1] == 1)
    drift = None if recorded is None else float(np.abs(embedding - recorded).max())
    return GoldenResult(
        samples=len(embedding),
        cosine_min=float(row_cosine(embedding, golden.embedding).min()),
        top1_agreement=float((best == reference_best).mean()),
        top1_flips=int(((best != reference_best) & clear).sum()),
        logit_difference=float(np.abs(logits - golden.logits).max()),
        float_top1_agreement=float((best == golden.float_logits.argmax(axis=1)).mean()),
        drift=drift,
        min_cosine=limits.least_cosine,
    )


def require(result: GoldenResult, *, engine: str) -> None:
    """Raise `QualityGateError` if the comparison failed."""
    problem = result.problem()
    if problem is not None:
        raise QualityGateError(wrong_values(engine, problem, doubt=result.doubt))


def wrong_values(engine: str, problem: str, *, doubt: str | None = None) -> str:
    """Return the message of a failed comparison; `doubt` is what is known of wrong values of the library."""
    known = f" {doubt}." if doubt else ""
    return (
        f"{engine} computes wrong values here: {problem}.{known} Build it again on this machine with `p4q-edge build`."
    )


def row_cosine(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the cosine of each row of two (n, dim) arrays as (n,) float64; NaN where a row is zero."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        return np.asarray((left * right).sum(axis=1) / norms)
