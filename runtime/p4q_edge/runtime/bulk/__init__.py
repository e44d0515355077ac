"""Many images at once: tables of answers, folders by answer, embeddings and the images nearest to a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.bulk.annotation import Annotator, require_film
    from p4q_edge.runtime.bulk.embeddings import (
        PLAIN,
        Embeddings,
        Found,
        adapter_digest,
        adapter_of,
        read_embeddings,
        require_embeddings_file,
        use_plain,
        write_embeddings,
    )
    from p4q_edge.runtime.bulk.fetching import FetchedImage, Silent, image_at
    from p4q_edge.runtime.bulk.sorting import Sorter, SortMode
    from p4q_edge.runtime.bulk.tables import Row, require_table, write_table

__all__ = [
    "PLAIN",
    "Annotator",
    "Embeddings",
    "FetchedImage",
    "Found",
    "Row",
    "Silent",
    "SortMode",
    "Sorter",
    "adapter_digest",
    "adapter_of",
    "image_at",
    "read_embeddings",
    "require_embeddings_file",
    "require_film",
    "require_table",
    "use_plain",
    "write_embeddings",
    "write_table",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "annotation": ("Annotator", "require_film"),
            "embeddings": (
                "PLAIN",
                "Embeddings",
                "Found",
                "adapter_digest",
                "adapter_of",
                "read_embeddings",
                "require_embeddings_file",
                "use_plain",
                "write_embeddings",
            ),
            "fetching": ("FetchedImage", "Silent", "image_at"),
            "sorting": ("SortMode", "Sorter"),
            "tables": ("Row", "require_table", "write_table"),
        },
    )
