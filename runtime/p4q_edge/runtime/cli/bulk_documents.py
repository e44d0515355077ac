"""What `--json` of the commands for many images writes."""

from __future__ import annotations

import msgspec


class ClassifiedDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers that went into files.

    Attributes:
        engine: its path.
        table: path of the table; null without one.
        sorted_into: folder that the images were put into; null without one.
        known, unknown: images whose best class reaches its threshold, and others.
        failed: images that could not be used.
    """

    engine: str
    table: str | None
    sorted_into: str | None
    known: int
    unknown: int
    failed: int


class EmbedDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Embeddings that were written.

    Attributes:
        output: path of their file.
        head: name of the head whose adapter they went through.
        images: number of them.
        dim: numbers of each.
        failed: images that could not be used.
    """

    output: str
    head: str
    images: int
    dim: int
    failed: int


class FoundImage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An image that is near the query, and the cosine of both embeddings."""

    path: str
    cosine: float


class SearchDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Images nearest to a query, the nearest first.

    Attributes:
        query: the text, or the path of the picture.
        by: what made its embedding: a class of a head, the text tower, or the engine.
        images: number that was searched.
    """

    query: str
    by: str
    images: int
    found: tuple[FoundImage, ...]
