"""Compare an engine with the golden samples of its bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from p4q_edge.runtime.errors import CorruptArtifactError, QualityGateError
from p4q_edge.runtime.statistics import FULL_BITS, RoundingLimits, least_cosine, rounding_limits_of

if TYPE_CHECKING:
    from p4q_edge.runtime.engines import Engine
from p4q_edge.runtime.artifacts import Golden

MAX_DRIFT = {"onnxruntime": 1e-6, "tensorrt": 1e-3}
"""Largest move of an embedding's numbers on the machine that built the engine. The kernels of ONNX Runtime are
deterministic, so that only a change moves them; FP16 sums on a GPU may differ in their last bits."""


class GoldenResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison of an engine with golden samples found.

    Attributes:
        samples: number of images compared.
        cosine_min: smallest cosine of embeddings, engine against fake-quantized reference.
        top1_agreement: share of images with the same best class.
        top1_flips: images whose best class differs although the reference's margin is clear.
        logit_difference: largest absolute difference of logits.
        float_top1_agreement: share of images with the best class of the full-precision model.
        drift: largest absolute difference of embeddings to those at build time; None on another machine.
        max_drift: the limit of `drift`.
        min_cosine: the limit of `cosine_min`: from the noise of the model, or its bit width where none was recorded.
        doubt: what is known of wrong values of the library that built the engine, or None.
    """

    samples: int
    cosine_min: float
    top1_agreement: float
    top1_flips: int
    logit_difference: float
    float_top1_agreement: float
    drift: float | None = None
    max_drift: float = MAX_DRIFT["onnxruntime"]
    min_cosine: float = least_cosine(FULL_BITS)
    doubt: str | None = None

    def problem(self) -> str | None:
        """Return in words what is wrong, or None if the engine computes what the reference computes."""
        if not self.cosine_min >= self.min_cosine:
            return (
                f"embeddings reach a cosine of {self.cosine_min:.5f} to the reference; expected {self.min_cosine:.5g}"
            )
        if self.top1_flips:
            return f"{self.top1_flips} of {self.samples} golden images get another class than in the reference"
        if self.drift is not None and not self.drift <= self.max_drift:
            return (
                f"embeddings moved by {self.drift:.2e} since the engine was built on this machine; "
                f"at most {self.max_drift:.0e} is expected"
            )
        return None


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
