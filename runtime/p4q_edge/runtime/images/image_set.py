"""Labelled images by their files or bytes, for learning and for tests alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from p4q_edge.runtime.images.class_names import match_classes, pair_class_names, same_form
from p4q_edge.runtime.images.decode import load_image
from p4q_edge.runtime.images.listing import labelled_files

_T = TypeVar("_T")


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
            open_image=_Chosen(self.open_image, chosen),
            read_bytes=_Chosen(self.read_bytes, chosen),
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
        """Return the same images with the classes of another set, matched by name.

        Raises:
            InputError: a class that the other set does not have.
        """
        matched = match_classes(self.class_names, other.class_names, source=source, other_names=other.found_names)
        return replace(
            self,
            class_names=other.class_names,
            found_names=other.found_names,
            labels=np.asarray(matched, dtype=np.int64)[self.labels],
        )


@dataclass(frozen=True)
class _Chosen(Generic[_T]):
    """Some of what a function gives, by their indices; it can be sent to another process if that function can."""

    function: Callable[[int], _T]
    indices: npt.NDArray[np.int64]

    def __call__(self, index: int) -> _T:
        return self.function(int(self.indices[index]))


@dataclass(frozen=True)
class _Files:
    """Images in files, as texts, which take a fraction of the memory of paths; it can be sent to another process."""

    root: str
    names: tuple[str, ...]

    def path(self, index: int) -> Path:
        return Path(self.root, self.names[index])

    def open(self, index: int) -> Image.Image:
        return load_image(self.path(index))

    def read(self, index: int) -> bytes:
        return self.path(index).read_bytes()


def from_paths(paths: Iterable[Path], labels: Sequence[int], class_names: Sequence[str], root: Path) -> ImageSet:
    """Return images in files, each opened when it is needed; named as seen from `root`."""
    within: list[str] = []
    names: list[str] = []
    for path in paths:
        below = path.is_relative_to(root)
        within.append(str(path.relative_to(root)) if below else str(path.absolute()))
        names.append(same_form(within[-1] if below else path.name))
    files = _Files(str(root), tuple(within))
    return ImageSet(
        names=tuple(names),
        labels=np.asarray(labels, dtype=np.int64),
        class_names=tuple(class_names),
        open_image=files.open,
        read_bytes=files.read,
    )


def from_class_folders(
    root: Path, *, known: Iterable[str] = (), advice: str = "", keep_empty: bool = False
) -> ImageSet:
    """Return the images in `root/CLASS/IMAGE`; the folders name the classes.

    Args:
        root: holds the folders.
        known: names of classes, whatever they sound like.
        advice: how the caller is told such names.
        keep_empty: a folder without images is a class that has none.

    Raises:
        InputError: no class folders, or an empty one.
    """
    class_names: list[str] = []
    labels: list[int] = []

    def walked() -> Iterator[Path]:  # fills the two lists while its paths become texts, a class at a time
        for folder, files in labelled_files(root, known=known, advice=advice, keep_empty=keep_empty):
            labels.extend([len(class_names)] * len(files))
            class_names.append(same_form(folder.name))
            yield from files

    return from_paths(walked(), labels, class_names, root)
