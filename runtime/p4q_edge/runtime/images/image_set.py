"""Labelled images by their files or bytes, for learning and for tests alike."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from p4q_edge.runtime.images.class_names import match_classes, missing_classes, pair_class_names, same_form
from p4q_edge.runtime.images.decode import load_image
from p4q_edge.runtime.images.listing import labelled_files

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Labelled images, opened one by one when they are needed.

    Attributes:
        names: what identifies each image in messages and in the bundle's data index.
        labels: int64 (images,), indices into `class_names`.
        class_names: in label order.
        open_image: index to decoded PIL image.
        read_bytes: index to the bytes that make two images the same.
        found_names: what the images' source calls the classes, in label order, where `class_names` are other words
            for them; else empty.
    """

    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    open_image: Callable[[int], Image.Image]
    read_bytes: Callable[[int], bytes]
    found_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Iterable[int]) -> ImageSet:
        """Return the images at these indices, in this order."""
        chosen = np.fromiter(indices, dtype=np.int64)
        return replace(
            self,
            names=tuple(self.names[i] for i in chosen),
            labels=self.labels[chosen],
            open_image=lambda i: self.open_image(int(chosen[i])),
            read_bytes=lambda i: self.read_bytes(int(chosen[i])),
        )

    def digests(self) -> list[str]:
        """Return the SHA-256 of each image's bytes."""
        return [hashlib.sha256(self.read_bytes(i)).hexdigest() for i in range(len(self))]

    def with_class_names(self, class_names: Sequence[str], *, source: str, key: str) -> ImageSet:
        """Return the same images with these classes, of which the own names become the `found_names`.

        Names decide where they are the same words in another order. Else they are other words for the classes, in
        label order; the log shows the pairs.

        Raises:
            InputError: the numbers differ, or some names are known and stand elsewhere.
        """
        order = np.asarray(pair_class_names(self.class_names, class_names, source=source, key=key), dtype=np.int64)
        found_names = [""] * len(order)
        for name, place in zip(self.class_names, order, strict=True):
            found_names[place] = name
        return replace(self, class_names=tuple(class_names), found_names=tuple(found_names), labels=order[self.labels])

    def with_classes_of(self, other: ImageSet, *, source: str) -> ImageSet:
        """Return the same images with the classes of another set, matched by name; classes without images are told of.

        Raises:
            InputError: a class that the other set does not have.
        """
        matched = match_classes(self.class_names, other.class_names, source=source, other_names=other.found_names)
        missing = missing_classes(matched, other.class_names)
        if missing:
            logger.warning("%s has no images of %d classes: %s", source, len(missing), ", ".join(missing))
        return replace(
            self,
            class_names=other.class_names,
            found_names=other.found_names,
            labels=np.asarray(matched, dtype=np.int64)[self.labels],
        )


def from_paths(paths: list[Path], labels: list[int], class_names: Sequence[str], root: Path) -> ImageSet:
    """Return images in files, each opened when it is needed; named as seen from `root`."""
    return ImageSet(
        names=tuple(
            same_form(str(path.relative_to(root)) if path.is_relative_to(root) else path.name) for path in paths
        ),
        labels=np.asarray(labels, dtype=np.int64),
        class_names=tuple(class_names),
        open_image=lambda i: load_image(paths[i]),
        read_bytes=lambda i: paths[i].read_bytes(),
    )


def from_class_folders(root: Path) -> ImageSet:
    """Return the images in `root/CLASS/IMAGE`; the folders name the classes.

    Raises:
        InputError: no class folders, or an empty one.
    """
    found = list(labelled_files(root))
    paths = [path for _, files in found for path in files]
    labels = [label for label, (_, files) in enumerate(found) for _ in files]
    return from_paths(paths, labels, [same_form(folder.name) for folder, _ in found], root)
