"""Pictures from files, folders and videos, as an engine takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.images import video
    from p4q_edge.runtime.images.decode import SUFFIXES, ColorOrder, ImageLike, image_files, load_image
    from p4q_edge.runtime.images.inputs import batched, expand, is_single, mapped_ahead, source_of
    from p4q_edge.runtime.images.labelled import (
        LabelledImages,
        Pixels,
        digest_of,
        draw,
        match_classes,
        read_class_folders,
        subset,
    )
    from p4q_edge.runtime.images.preprocessing import PreprocessSpec, draft_size, preprocess

__all__ = [
    "SUFFIXES",
    "ColorOrder",
    "ImageLike",
    "LabelledImages",
    "Pixels",
    "PreprocessSpec",
    "batched",
    "digest_of",
    "draft_size",
    "draw",
    "expand",
    "image_files",
    "is_single",
    "load_image",
    "mapped_ahead",
    "match_classes",
    "preprocess",
    "read_class_folders",
    "source_of",
    "subset",
    "video",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "decode": (
                "ColorOrder",
                "ImageLike",
                "SUFFIXES",
                "image_files",
                "load_image",
            ),
            "inputs": (
                "batched",
                "expand",
                "is_single",
                "mapped_ahead",
                "source_of",
            ),
            "labelled": (
                "LabelledImages",
                "Pixels",
                "digest_of",
                "draw",
                "match_classes",
                "read_class_folders",
                "subset",
            ),
            "preprocessing": (
                "PreprocessSpec",
                "draft_size",
                "preprocess",
            ),
        },
    )
