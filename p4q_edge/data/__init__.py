"""Labelled images: readers, the few-shot split, augmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.data.augmentation import Moves, augment
    from p4q_edge.data.captions import Captions, read_captions
    from p4q_edge.data.cross_validation import FOLDS, folds
    from p4q_edge.data.few_shot import Split, draw_by_class, images_in_both, some_of
    from p4q_edge.data.image_set import ImageStream, pixels
    from p4q_edge.data.preflight import (
        OpenedData,
        check_data,
        find_copies,
        in_few_lines,
        in_one_list,
        open_data,
    )
    from p4q_edge.data.readers import (
        read_class_prompts,
        read_images,
        read_split,
        read_split_again,
        read_unlabelled,
        read_words,
        told_already,
    )

__all__ = [
    "FOLDS",
    "Captions",
    "ImageStream",
    "Moves",
    "OpenedData",
    "Split",
    "augment",
    "check_data",
    "draw_by_class",
    "find_copies",
    "folds",
    "images_in_both",
    "in_few_lines",
    "in_one_list",
    "open_data",
    "pixels",
    "read_captions",
    "read_class_prompts",
    "read_images",
    "read_split",
    "read_split_again",
    "read_unlabelled",
    "read_words",
    "some_of",
    "told_already",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "augmentation": ("Moves", "augment"),
            "captions": ("Captions", "read_captions"),
            "cross_validation": ("FOLDS", "folds"),
            "few_shot": ("Split", "draw_by_class", "images_in_both", "some_of"),
            "image_set": ("ImageStream", "pixels"),
            "preflight": (
                "OpenedData",
                "check_data",
                "find_copies",
                "in_few_lines",
                "in_one_list",
                "open_data",
            ),
            "readers": (
                "read_class_prompts",
                "read_images",
                "read_split",
                "read_split_again",
                "read_unlabelled",
                "read_words",
                "told_already",
            ),
        },
    )
