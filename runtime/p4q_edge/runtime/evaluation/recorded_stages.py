"""Stages that were run elsewhere and whose results were recorded."""

from __future__ import annotations

import numpy as np

from p4q_edge.runtime.artifacts import Head, RecordedResults, pixel_digest
from p4q_edge.runtime.stage import FAKE_QUANT, FLOAT, Outputs, Stage


class Recorded:
    """A stage that was run elsewhere: gives the recorded rows in the order in which the images come."""

    def __init__(self, outputs: Outputs) -> None:
        self._outputs = outputs
        self._next = 0

    def __call__(self, batch: np.ndarray) -> Outputs:
        rows = slice(self._next, self._next + len(batch))
        self._next += len(batch)
        return {name: values[rows] for name, values in self._outputs.items()}


def recorded_stages(results: RecordedResults, head: Head) -> dict[str, Stage]:
    """Return the stages `float` and `fake_quant` for images that have results.

    Args:
        results: of the bundle.
        head: the bundle's, whose classes the logits are of.
    """
    known = results.known()

    def recorded(embeddings: np.ndarray) -> Stage:
        def stage(batch: np.ndarray) -> Outputs:
            embedding = embeddings[[known[pixel_digest(image)] for image in batch]]
            return {"logits": head.logits(embedding), "embedding": embedding}

        return stage

    return {FLOAT: recorded(results.float_embedding), FAKE_QUANT: recorded(results.embedding)}
