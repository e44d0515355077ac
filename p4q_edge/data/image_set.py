"""Labelled images: where they come from, which are learned from, and how they become pixels."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images import PreprocessSpec, preprocess

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Labelled images, opened one by one when they are needed.

    Attributes:
        names: what identifies each image in messages and in the bundle's data index.
        labels: int64 ``(images,)``, indices into `class_names`.
        class_names: in label order.
        open_image: index to decoded PIL image.
        read_bytes: index to the bytes that make two images the same.
    """

    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    open_image: Callable[[int], Image.Image]
    read_bytes: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Iterable[int]) -> "ImageSet":
        """The images at these indices, in this order."""
        chosen = np.fromiter(indices, dtype=np.int64)
        return replace(
            self,
            names=tuple(self.names[i] for i in chosen),
            labels=self.labels[chosen],
            open_image=lambda i: self.open_image(int(chosen[i])),
            read_bytes=lambda i: self.read_bytes(int(chosen[i])),
        )

    def digests(self) -> list[str]:
        """SHA-256 of each image's bytes."""
        return [hashlib.sha256(self.read_bytes(i)).hexdigest() for i in range(len(self))]

    def with_class_names(self, class_names: Sequence[str]) -> "ImageSet":
        """The same images with these classes.

        Names decide where they are the same words in another order. Else they are other words for the classes, in
        label order.

        Raises:
            InputError: the numbers differ, or some names are known and stand elsewhere.
        """
        if len(class_names) != len(self.class_names):
            known = set(class_names)
            missing = next((name for name in self.class_names if name not in known), None)
            reason = "" if missing is None else f"; {missing!r} is not among the names"
            raise InputError(
                f"{len(class_names)} class names were given for {len(self.class_names)} classes "
                f"({', '.join(self.class_names[:3])}, ...){reason}; give one name for each class, in label order"
            )
        place = {name: index for index, name in enumerate(class_names)}
        if set(place) == set(self.class_names):
            order = np.asarray([place[name] for name in self.class_names], dtype=np.int64)
            return replace(self, class_names=tuple(class_names), labels=order[self.labels])
        for index, name in enumerate(self.class_names):
            if place.get(name, index) != index:
                raise InputError(
                    f"class {name!r} is number {index} of the images and number {place[name]} of the names, and other "
                    "classes have no name of theirs; name all classes as the images do, or all by other words"
                )
        return replace(self, class_names=tuple(class_names))


def pixels(images: ImageSet, spec: PreprocessSpec) -> Tensor:
    """All images as the engine takes them, uint8 ``(images, 3, H, W)``.

    Raises:
        InputError: an image cannot be read; the message names it.
    """
    out = np.empty((len(images), 3, *spec.size), dtype=np.uint8)
    for i in range(len(images)):
        out[i] = preprocess(images.open_image(i), spec)
    return torch.from_numpy(out)
