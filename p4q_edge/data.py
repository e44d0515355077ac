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
from p4q_edge.runtime.preprocess import PreprocessSpec, preprocess

logger = logging.getLogger(__name__)

AUGMENT_BATCH_SIZE = 64


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


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images learned from and images tested on; none is in both."""

    train: ImageSet
    test: ImageSet


def few_shot(images: ImageSet, *, shots: int, seed: int) -> list[int]:
    """Indices of `shots` images of each class, drawn without replacement; all of them when `shots` is 0.

    Raises:
        InputError: a class has fewer than two images, or fewer than `shots`.
    """
    generator = np.random.default_rng(seed)
    chosen: list[int] = []
    for label, name in enumerate(images.class_names):
        members = np.flatnonzero(images.labels == label)
        if len(members) < 2:
            raise InputError(
                f"class {name!r} has {len(members)} image{'' if len(members) == 1 else 's'}; at least 2 are needed: "
                "add photos of it or remove the class"
            )
        if shots > len(members):
            raise InputError(f"class {name!r} has {len(members)} images, data.shots asks for {shots}; lower data.shots")
        chosen += sorted(generator.permutation(members)[: shots or len(members)].tolist())
    return chosen


def make_split(train: ImageSet, test: ImageSet | None, *, shots: int, seed: int, test_limit: int) -> Split:
    """Draw the few-shot images; test on `test`, or on the rest of `train` where there is none.

    Raises:
        InputError: nothing is left to test on, other classes, or an image in both sets (same name or same bytes).
    """
    chosen = few_shot(train, shots=shots, seed=seed)
    learned = train.subset(chosen)
    if test is None:
        rest = np.setdiff1d(np.arange(len(train)), chosen)
        if len(rest) == 0:
            raise InputError(
                f"all {len(train)} images are learned from and none is left to test on; "
                "lower data.shots or set data.test"
            )
        tested = train.subset(rest)
        tested = _without_copies(tested, learned)
    else:
        if len(test.class_names) != len(train.class_names):
            raise InputError(
                f"data.test has {len(test.class_names)} classes, data.train has {len(train.class_names)}; "
                "both need the same class folders"
            )
        _refuse_overlap(learned, test)
        tested = test.with_class_names(train.class_names)
    if test_limit and len(tested) > test_limit:
        tested = tested.subset(np.sort(np.random.default_rng(seed).permutation(len(tested))[:test_limit]))
    return Split(train=learned, test=tested)


def _without_copies(tested: ImageSet, learned: ImageSet) -> ImageSet:
    # Within one folder a copy of a learned image is the user's data, not their mistake: it is not tested on.
    seen = set(learned.digests())
    keep = [i for i, digest in enumerate(tested.digests()) if digest not in seen]
    if len(keep) == len(tested):
        return tested
    logger.info("%d images are copies of learned ones and are not tested on", len(tested) - len(keep))
    return tested.subset(keep)


def _refuse_overlap(learned: ImageSet, tested: ImageSet) -> None:
    by_digest = dict(zip(learned.digests(), learned.names, strict=True))
    for name, digest in zip(tested.names, tested.digests(), strict=True):
        if digest in by_digest:
            raise InputError(
                f"test image {name} is also learned from (as {by_digest[digest]}); "
                "remove it from data.test: accuracy on learned images means nothing"
            )


def pixels(images: ImageSet, spec: PreprocessSpec) -> Tensor:
    """All images as the engine takes them, uint8 ``(images, 3, H, W)``.

    Raises:
        InputError: an image cannot be read; the message names it.
    """
    out = np.empty((len(images), 3, *spec.size), dtype=np.uint8)
    for i in range(len(images)):
        out[i] = preprocess(images.open_image(i), spec)
    return torch.from_numpy(out)


def augment(batch: Tensor, *, generator: torch.Generator, flip: bool) -> Tensor:
    """A random small affine view of each image, uint8 ``(N, 3, H, W)`` to the same.

    Rotation up to 10 degrees, scale 0.85 to 1.15, shift up to a tenth of the side, mirrored half of the time when
    `flip` is true. Border pixels are repeated.
    """
    count = len(batch)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    angle, scale = uniform(-0.175, 0.175), uniform(0.85, 1.15)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if flip else torch.ones(count)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = [
        torch.stack([mirror * cos, -sin, uniform(-0.2, 0.2)], 1),
        torch.stack([mirror * sin, cos, uniform(-0.2, 0.2)], 1),
    ]
    moved = torch.empty_like(batch)
    for some in torch.split(torch.arange(count), AUGMENT_BATCH_SIZE):
        part = batch[some]
        grid = torch.nn.functional.affine_grid(torch.stack(rows, 1)[some], list(part.shape), align_corners=False)
        sampled = torch.nn.functional.grid_sample(part.float(), grid, padding_mode="border", align_corners=False)
        moved[some] = sampled.round().clamp(0, 255).to(torch.uint8)
    return moved
