"""Pictures from files, folders and videos, as an engine takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.runtime.images import video
    from p4q_edge.runtime.images.class_names import (
        in_label_order,
        match_classes,
        missing_classes,
        pair_class_names,
        same_form,
        warn_of_classes,
    )
    from p4q_edge.runtime.images.decodable import ToDecode, damaged, require_decodable
    from p4q_edge.runtime.images.decode import SUFFIXES, ColorOrder, ImageLike, load_image
    from p4q_edge.runtime.images.image_set import ImageSet, from_class_folders, from_paths
    from p4q_edge.runtime.images.inputs import batched, expand, is_single, mapped_ahead, source_of
    from p4q_edge.runtime.images.labelled import (
        MAX_CACHED_BYTES,
        LabelledImages,
        Pixels,
        digest_of,
        draw_subset,
        images_to_test,
        read_class_folders,
        read_unlabelled_folder,
        require_of_no_class,
        subset,
    )
    from p4q_edge.runtime.images.listing import LeftOut, class_folders, image_files, labelled_files
    from p4q_edge.runtime.images.preprocessing import PreprocessSpec, draft_size, preprocess

__all__ = [
    "MAX_CACHED_BYTES",
    "SUFFIXES",
    "ColorOrder",
    "ImageLike",
    "ImageSet",
    "LabelledImages",
    "LeftOut",
    "Pixels",
    "PreprocessSpec",
    "ToDecode",
    "batched",
    "class_folders",
    "damaged",
    "digest_of",
    "draft_size",
    "draw_subset",
    "expand",
    "from_class_folders",
    "from_paths",
    "image_files",
    "images_to_test",
    "in_label_order",
    "is_single",
    "labelled_files",
    "load_image",
    "mapped_ahead",
    "match_classes",
    "missing_classes",
    "pair_class_names",
    "preprocess",
    "read_class_folders",
    "read_unlabelled_folder",
    "require_decodable",
    "require_of_no_class",
    "same_form",
    "source_of",
    "subset",
    "video",
    "warn_of_classes",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "class_names": (
                "in_label_order",
                "match_classes",
                "missing_classes",
                "pair_class_names",
                "same_form",
                "warn_of_classes",
            ),
            "decodable": ("ToDecode", "damaged", "require_decodable"),
            "decode": (
                "ColorOrder",
                "ImageLike",
                "SUFFIXES",
                "load_image",
            ),
            "image_set": (
                "ImageSet",
                "from_class_folders",
                "from_paths",
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
                "MAX_CACHED_BYTES",
                "Pixels",
                "digest_of",
                "draw_subset",
                "images_to_test",
                "read_class_folders",
                "read_unlabelled_folder",
                "require_of_no_class",
                "subset",
            ),
            "listing": (
                "LeftOut",
                "class_folders",
                "image_files",
                "labelled_files",
            ),
            "preprocessing": (
                "PreprocessSpec",
                "draft_size",
                "preprocess",
            ),
        },
    )
