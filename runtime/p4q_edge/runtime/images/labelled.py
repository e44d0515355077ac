"""Labelled images for a validation: class folders on disk, and pixels that are decoded once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.images.class_names import match_classes, warn_of_classes
from p4q_edge.runtime.images.image_set import ImageSet, from_class_folders, from_paths
from p4q_edge.runtime.images.listing import LeftOut, image_files
from p4q_edge.runtime.images.preprocessing import PreprocessSpec, preprocess
from p4q_edge.runtime.stage import Images
from p4q_edge.runtime.storage import sha256_bytes, sha256_file
from p4q_edge.runtime.wording import number_of, one_or_many

# Pixels of a test set of a few thousand images; those of a larger one beyond that are decoded again for every stage.
MAX_CACHED_BYTES = 512 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledImages:
    """What an engine is tested on: the pixels and classes of an `ImageSet`.

    Attributes:
        pixels: slices are uint8 (n, 3, H, W).
        labels: (n,) int64, indices into the engine's class names.
        digest: SHA-256 over the digests of all images and their labels.
        source: where they came from, in words.
        left_out: images that were not taken because the model was learned from them.
        digests: SHA-256 of each image's file; empty where they are not known.
    """

    pixels: Images
    labels: np.ndarray
    digest: str
    source: str
    left_out: int = 0
    digests: tuple[str, ...] = ()


class Pixels:
    """Preprocessed images, decoded when they are first asked for, and kept while there is room in memory."""

    def __init__(self, read: Callable[[int], np.ndarray], count: int, shape: tuple[int, int, int]) -> None:
        """Take a function from an index to uint8 (3, H, W)."""
        self._read = read
        self._shape = (count, *shape)
        self._kept: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()
        self.keep_at_most(MAX_CACHED_BYTES)

    def __len__(self) -> int:
        return self._shape[0]

    @property
    def size_bytes(self) -> int:
        """What all of them need."""
        return int(np.prod(self._shape))

    def keep_at_most(self, size_bytes: int) -> None:
        """Keep no more from here on than fits into so many bytes; what is kept already stays."""
        self._room = size_bytes // max(1, int(np.prod(self._shape[1:])))

    def __getitem__(self, rows: slice) -> np.ndarray:
        wanted = range(*rows.indices(len(self)))
        return (
            np.stack([self._image(index) for index in wanted]) if wanted else np.empty((0, *self._shape[1:]), np.uint8)
        )

    def _image(self, index: int) -> np.ndarray:
        kept = self._kept.get(index)
        if kept is None:
            kept = self._read(index)
            with self._lock:  # several threads may decode
                if len(self._kept) < self._room:
                    self._kept[index] = kept
        return kept

    def chosen(self, rows: np.ndarray) -> ChosenPixels:
        """Return some of the images, by their indices; what is kept of them is kept here.

        Where there is no room left, those that are not among them make some.
        """
        if len(self._kept) >= self._room:
            wanted = set(rows.tolist())
            self._kept = {row: image for row, image in self._kept.items() if row in wanted}
        return ChosenPixels(self, rows)


class ChosenPixels:
    """Some of other images, which keep what there is room for: nothing lies in memory twice."""

    def __init__(self, images: Images, rows: np.ndarray) -> None:
        """Take images and the indices of some of them, (n,) int64."""
        self._images, self._rows = images, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice) -> np.ndarray:
        wanted = self._rows[rows].tolist()
        if not wanted:
            return self._images[slice(0, 0)]
        return np.concatenate([self._images[slice(row, row + 1)] for row in wanted])

    def chosen(self, rows: np.ndarray) -> ChosenPixels:
        """Return some of these again, by their indices here."""
        if isinstance(self._images, Pixels):
            return self._images.chosen(self._rows[rows])
        return ChosenPixels(self._images, self._rows[rows])


def read_class_folders(
    folder: Path,
    *,
    class_names: Sequence[str],
    spec: PreprocessSpec,
    learned: frozenset[str] = frozenset(),
    other_names: Sequence[str] = (),
) -> LabelledImages:
    """Open `folder/CLASS/IMAGE` for an engine with these class names, without the images it was learned from.

    Args:
        folder: holds a folder for each class.
        class_names: of the engine.
        spec: how the engine wants its pixels.
        learned: SHA-256 of the files that the model was learned from.
        other_names: of the same classes in the same order, such as the folders that they were learned from.

    Raises:
        UsageError: the folder does not exist.
        InputError: no class folders, an empty one, or folders that do not fit the classes.
    """
    if not folder.is_dir():
        raise UsageError(
            f"--data {folder} is not a directory; expected one with a folder for each class. Tables, .npz and .tar "
            "files need the toolkit: pip install ./runtime ."
        )
    images = images_to_test(
        from_class_folders(folder, known=(*class_names, *other_names)),
        class_names=class_names,
        spec=spec,
        learned=learned,
        source=str(folder),
        other_names=other_names,
    )
    warn_of_classes(images.labels.tolist(), class_names, source=f"--data {folder}")
    return images


def images_to_test(
    images: ImageSet,
    *,
    class_names: Sequence[str],
    spec: PreprocessSpec,
    learned: frozenset[str],
    source: str,
    other_names: Sequence[str] = (),
) -> LabelledImages:
    """Return the images of a set that the model was not learned from, as an engine takes them.

    Args:
        images: the set.
        class_names: of the engine.
        spec: how the engine wants its pixels.
        learned: SHA-256 of the images that the model was learned from.
        source: what messages and the report call the set.
        other_names: of the same classes in the same order, such as the folders that they were learned from.

    Raises:
        InputError: none is left, or the classes do not fit.
    """
    to_class = np.asarray(match_classes(images.class_names, class_names, source=source, other_names=other_names))
    digests = images.digests()
    kept = [index for index, digest in enumerate(digests) if digest not in learned]
    if not kept:
        raise InputError(
            f"the model was learned from all of {source}, {number_of(len(digests), 'image')}; accuracy on them means "
            "nothing. Name other images"
        )
    tested, labels = images.subset(kept), to_class[images.labels[kept]].astype(np.int64)
    return LabelledImages(
        pixels=Pixels(lambda index: preprocess(tested.open_image(index), spec), len(kept), (3, *spec.size)),
        labels=labels,
        digest=digest_of([digests[index] for index in kept], labels.tolist()),
        source=f"{number_of(len(kept), 'image')} of {source}",
        left_out=len(digests) - len(kept),
        digests=tuple(digests[index] for index in kept),
    )


def read_unlabelled_folder(folder: Path, *, spec: PreprocessSpec, limit: int = 0, seed: int = 0) -> tuple[Pixels, str]:
    """Open the images in a folder, at any depth, as an engine takes them.

    Args:
        folder: holds images; nobody knows what they show.
        spec: how the engine wants its pixels.
        limit: largest number of images, drawn with the seed; 0 takes all.
        seed: of the drawing.

    Returns:
        The pixels, and the SHA-256 over the digests of all images.

    Raises:
        UsageError: the folder does not exist.
        InputError: it has no images.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a directory; expected one with images, at any depth")
    left_out = LeftOut()
    files = image_files(folder, left_out)
    left_out.log(str(folder))
    if not files:
        raise InputError(f"{folder} has no images; name a folder with some, at any depth")
    found = from_paths(files, [0] * len(files), ("",), folder)
    images = found.subset(draw_subset(len(found), limit, seed=seed))
    pixels = Pixels(lambda index: preprocess(images.open_image(index), spec), len(images), (3, *spec.size))
    return pixels, digest_of(images.digests(), [0] * len(images))


def require_of_no_class(folder: Path, known: Collection[str], *, option: str) -> None:
    """Refuse a folder of images that show none of the classes, where some of them have one.

    Args:
        folder: holds the images, at any depth.
        known: SHA-256 of images with a class.
        option: what messages call the folder.

    Raises:
        InputError: some are among those; the message names the first.
    """
    files = image_files(folder)
    both = [file for file in files if sha256_file(file) in known]
    if both:
        raise InputError(
            f"{option} {folder}: {len(both)} of {number_of(len(files), 'image')} "
            f"{one_or_many(len(both), 'is', 'are')} labelled with a class too, the first is "
            f"{both[0]}. Expected images that show none of the classes; remove these"
        )


def digest_of(digests: Sequence[str], labels: Sequence[int]) -> str:
    """Return one digest over those of all images, in order, with their labels."""
    lines = [f"{digest} {int(label)}" for digest, label in zip(digests, labels, strict=True)]
    return sha256_bytes("\n".join(lines).encode())


def draw_subset(count: int, limit: int, *, seed: int) -> np.ndarray:
    """Return the sorted indices of at most `limit` of `count` images; 0 takes all."""
    if not limit or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).permutation(count)[:limit])


def subset(images: LabelledImages, rows: np.ndarray) -> LabelledImages:
    """Return some of the images; all of them unchanged."""
    if len(rows) == len(images.labels):
        return images
    pixels = images.pixels
    return LabelledImages(
        pixels=pixels.chosen(rows) if isinstance(pixels, (Pixels, ChosenPixels)) else ChosenPixels(pixels, rows),
        labels=images.labels[rows],
        digest=sha256_bytes(f"{images.digest} {rows.tolist()}".encode()),
        source=f"{len(rows)} of {images.source}",
        left_out=images.left_out,
        digests=tuple(images.digests[int(row)] for row in rows) if images.digests else (),
    )
