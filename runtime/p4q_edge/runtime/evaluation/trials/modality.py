"""How far images and texts lie apart in the common space, for each stage: what quantization may widen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p4q_edge.runtime.statistics import Estimate, metrics


@dataclass(frozen=True, kw_only=True)
class ModalityRow:
    """One stage; each value with its interval over images.

    Attributes:
        gap: distance of the mean image embedding from the mean class embedding.
        own: cosine of images with the embedding of their class.
        other: cosine of images with the nearest embedding of another class.
    """

    name: str
    gap: Estimate
    own: Estimate
    other: Estimate


@dataclass(frozen=True, kw_only=True)
class ModalityReport:
    """Distances of image and class embeddings, all of length 1.

    Attributes:
        n: images.
        classes: class embeddings, as they were learned.
        rows: of each stage.
    """

    n: int
    classes: int
    rows: tuple[ModalityRow, ...]


def modality_report(
    embeddings: Mapping[str, metrics.Floats], labels: npt.NDArray[np.integer], class_rows: metrics.Floats, *, seed: int
) -> ModalityReport:
    """Return the distances of each stage.

    Args:
        embeddings: of each stage, (n, dim), L2-normalized.
        labels: (n,) class indices.
        class_rows: (classes, dim) embeddings of two or more classes, L2-normalized.
        seed: of the bootstrap.

    Source of the gap: Liang et al., Mind the Gap, arXiv:2203.02053, section 4.1.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for name, found in embeddings.items():
        images = np.asarray(found, np.float64)
        cosines = images @ np.asarray(class_rows, np.float64).T
        own = cosines[np.arange(len(labels)), labels]
        others = cosines.copy()
        others[np.arange(len(labels)), labels] = -np.inf
        rows.append(
            ModalityRow(
                name=name,
                gap=metrics.bootstrap_mean(_along_gap(images, class_rows), generator=generator),
                own=metrics.bootstrap_mean(own, generator=generator),
                other=metrics.bootstrap_mean(others.max(axis=1), generator=generator),
            )
        )
    return ModalityReport(n=len(labels), classes=len(class_rows), rows=tuple(rows))


def _along_gap(images: npt.NDArray[np.float64], class_rows: metrics.Floats) -> npt.NDArray[np.float64]:
    """Return how far each image lies from the mean class along the gap, (n,); their mean is the gap itself.

    So the interval of a mean serves for a distance, to first order: the direction is taken as known.
    """
    middle = np.asarray(class_rows, np.float64).mean(axis=0)
    between = images.mean(axis=0) - middle
    length = float(np.linalg.norm(between))
    if length == 0.0:
        return np.zeros(len(images))
    along: npt.NDArray[np.float64] = (images - middle) @ (between / length)
    return along
