"""Images found by texts and texts by images: recall, for each stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images import Pixels
from p4q_edge.runtime.statistics import Estimate, first_ranks, metrics

AT = (1, 5, 10)


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionedImages:
    """Images, and the embeddings of what is written about them.

    Attributes:
        pixels: slices are uint8 (images, 3, H, W).
        text_embedding: (texts, dim) float32, L2-normalized, by the float text tower; each text once.
        pairs: (captions, 2) int64, which image has which text; every image has one, and a text may be of several.
        digest: SHA-256 over images and captions.
        source: where they came from, in words.
        cut: texts that are longer than the text tower reads, whose end it does not see.
    """

    pixels: Pixels
    text_embedding: npt.NDArray[np.float32]
    pairs: npt.NDArray[np.int64]
    digest: str
    source: str
    cut: int = 0


@dataclass(frozen=True, kw_only=True)
class RetrievalRow:
    """Recall of one stage; each a share with its interval.

    Attributes:
        image_to_text: share of images with one of their captions among the nearest 1, 5 and 10.
        text_to_image: share of texts with one of their images among the nearest 1, 5 and 10.
    """

    name: str
    image_to_text: tuple[Estimate, Estimate, Estimate]
    text_to_image: tuple[Estimate, Estimate, Estimate]


@dataclass(frozen=True, kw_only=True)
class RetrievalReport:
    """Retrieval with the features in front of the adapter, which is learned for classes, not for captions.

    Attributes:
        cut: texts that are longer than the text tower reads, whose end it did not see.
    """

    source: str
    images: int
    texts: int
    rows: tuple[RetrievalRow, ...]
    cut: int = 0


def retrieval_report(captioned: CaptionedImages, features: Mapping[str, metrics.Floats]) -> RetrievalReport:
    """Return the recall of each stage.

    Args:
        captioned: images and captions.
        features: of each stage, (images, dim), of any length.

    Raises:
        InputError: features of another width than the captions' embeddings.
    """
    images = len(captioned.pixels)
    texts = len(captioned.text_embedding)
    right = np.zeros((images, texts), np.bool_)
    right[captioned.pairs[:, 0], captioned.pairs[:, 1]] = True
    rows = []
    for name, found in features.items():
        if found.shape[1] != captioned.text_embedding.shape[1]:
            raise InputError(
                f"features of {name} have {found.shape[1]} numbers, embeddings of texts "
                f"{captioned.text_embedding.shape[1]}. Name the recipe that the engine was built from: --reference"
            )
        unit = found / np.linalg.norm(found, axis=1, keepdims=True)
        by_image = first_ranks(unit, captioned.text_embedding, right)
        by_text = first_ranks(captioned.text_embedding, unit, right.T)
        rows.append(RetrievalRow(name=name, image_to_text=_recall(by_image), text_to_image=_recall(by_text)))
    return RetrievalReport(source=captioned.source, images=images, texts=texts, rows=tuple(rows), cut=captioned.cut)


def _recall(ranks: npt.NDArray[np.int64]) -> tuple[Estimate, Estimate, Estimate]:
    first, fifth, tenth = (metrics.proportion(ranks < k) for k in AT)
    return first, fifth, tenth
