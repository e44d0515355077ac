"""The report as a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.evaluation.report.html import make_thumbnails, render_html, require_libraries, shown_images

__all__ = ["make_thumbnails", "render_html", "require_libraries", "shown_images"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "html": (
                "make_thumbnails",
                "render_html",
                "require_libraries",
                "shown_images",
            ),
        },
    )
