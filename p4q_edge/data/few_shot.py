"""Which images are learned from and which are tested on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images import ImageSet, warn_of_classes
from p4q_edge.runtime.wording import number_of, one_or_many

logger = logging.getLogger(__name__)

TEST_SHARE = 5
"""Without a test set, one image in this many of each class is kept to test on."""
_SHOWN = 5


HELD_OUT_SHARE = 5
"""Of images without labels, one in this many is kept to see what quantization changes."""
HELD_OUT_MOST = 200
_FEW = 10
"""Of fewer images without labels none is kept: ranges need them more."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images learned from and images tested on; none is in both.

    Attributes:
        train: labelled; without images where nothing is learned.
        calibration: what ranges are measured on in place of `train`, where nothing is learned; else None.
        held_out: further ones, of which neither labels nor ranges are known; maybe none.
        unlabelled: `data.unlabelled`, where it was opened with the others; else None.
    """

    train: ImageSet
    test: ImageSet
    calibration: ImageSet | None = None
    held_out: ImageSet | None = None
    unlabelled: ImageSet | None = None

    @property
    def measured(self) -> ImageSet:
        """The images that ranges are measured on, and golden samples are taken from."""
        return self.train if self.calibration is None else self.calibration


def few_shot(images: ImageSet, *, shots: int, seed: int, keep_share: int = 0) -> list[int]:
    """Return indices of up to `shots` images of each class, drawn without replacement; all of them when `shots` is 0.

    Args:
        images: labelled, at least two of each class.
        shots: images of a class to learn from.
        seed: of the drawing.
        keep_share: leave one image in this many of a class, but learn from at least two; 0 leaves none on purpose.

    Raises:
        InputError: there is one class alone, or classes have fewer than two images.
    """
    chosen, fewer = _drawn(images, shots=shots, seed=seed, keep_share=keep_share)
    if fewer:
        kept, named = ", with a share kept to test on" if keep_share else "", some_of(fewer)
        logger.warning(
            "data.shots = %d: %s fewer; learned from%s: %s",
            shots,
            number_of(len(fewer), "class has", "classes have"),
            kept,
            named,
        )
    return chosen


def _drawn(images: ImageSet, *, shots: int, seed: int, keep_share: int) -> tuple[list[int], list[str]]:
    """Return what `few_shot` draws, and in words which classes have fewer than `shots`."""
    if len(images.class_names) < 2:
        raise InputError(
            f"at least 2 classes are needed, of which one is told from another; got {', '.join(images.class_names)!r} "
            "alone. Add photos of another, such as 'something else'"
        )
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    small = [f"{name!r} has {count}" for name, count in zip(images.class_names, counts, strict=True) if count < 2]
    if small:
        raise InputError(
            f"at least 2 images of a class are needed: class {some_of(small)}. Add photos of it, or remove the class"
        )
    generator = np.random.default_rng(seed)
    chosen: list[int] = []
    fewer: list[str] = []
    for label, name in enumerate(images.class_names):
        members = np.flatnonzero(images.labels == label)
        most = len(members)
        if shots and keep_share:
            most = max(2, len(members) - max(1, len(members) // keep_share))
        count = min(shots or most, most)
        if count < shots:
            fewer.append(f"{name} {count} of {len(members)}")
        chosen += sorted(generator.permutation(members)[:count].tolist())
    return chosen, fewer


def draw_by_class(labels: npt.NDArray[np.int64], limit: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Return the sorted indices of at most `limit` images, as evenly of each class as there are; 0 takes all.

    Args:
        labels: class of each image, `(images,)`.
        limit: how many.
        seed: of the drawing.
    """
    count = len(labels)
    if not limit or count <= limit:
        return np.arange(count)
    order = np.random.default_rng(seed).permutation(count)
    by_class = order[np.argsort(labels[order], kind="stable")]  # each class together, in the drawn order
    ordered = labels[by_class]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    turn = np.arange(count) - np.repeat(starts, np.diff(np.r_[starts, count]))  # which of its class an image is
    place = np.empty(count, np.int64)
    place[order] = np.arange(count)
    return np.sort(by_class[np.lexsort((place[by_class], turn))[:limit]])


def make_split(train: ImageSet, test: ImageSet | None, *, shots: int, seed: int, test_limit: int) -> Split:
    """Draw the few-shot images; test on `test`, or on the rest of `train` where there is none.

    Where all are learned from (`shots` is 0) and there is no `test`, the test set is empty.

    Raises:
        InputError: too few images, unknown classes, or an image in both sets (same bytes).
    """
    chosen = few_shot(train, shots=shots, seed=seed, keep_share=0 if test is not None else TEST_SHARE)
    learned = train.subset(chosen)
    if test is None:
        rest = np.setdiff1d(np.arange(len(train)), chosen)
        if len(rest) == 0:
            logger.warning(
                "all %d images are learned from and none is left to test on: accuracy is cross-validated. To measure "
                "it on other images, name them with data.test",
                len(train),
            )
            return Split(train=learned, test=train.subset([]))
        tested, source = _without_copies(train.subset(rest), learned), "what is kept of data.train to test on"
    else:
        source = "data.test"
        tested = test.with_classes_of(train, source="data.test")
        _refuse_overlap(learned, test)
    warn_of_classes(tested.labels.tolist(), train.class_names, source=source)
    if test_limit and len(tested) > test_limit:
        tested = tested.subset(np.sort(np.random.default_rng(seed).permutation(len(tested))[:test_limit]))
    return Split(train=learned, test=tested)


def split_problems(train: ImageSet, test: ImageSet | None, *, shots: int, seed: int) -> list[str]:
    """Return all that keeps two sets from being split, of which `make_split` raises the first; or none."""
    problems: list[str] = []
    learned = None
    try:
        chosen, _ = _drawn(train, shots=shots, seed=seed, keep_share=0 if test is not None else TEST_SHARE)
        learned = train.subset(chosen)
    except InputError as error:
        problems.append(str(error))
    if test is None:
        return problems
    try:
        test.with_classes_of(train, source="data.test")
    except InputError as error:
        problems.append(str(error))
    try:
        if learned is not None:
            _refuse_overlap(learned, test)
    except InputError as error:
        problems.append(str(error))
    return problems


def split_without_labels(
    images: ImageSet, test: ImageSet | None, class_names: tuple[str, ...], *, seed: int, hold_out: bool = True
) -> Split:
    """Split images without labels into those that ranges are measured on and some that are held out.

    Args:
        images: without labels.
        test: labelled; what is also among `images` is tested on alone.
        class_names: what the images are to be told apart by.
        seed: of the drawing.
        hold_out: whether others say anything about the images that the engine will see.

    Raises:
        InputError: no image is left, or `test` has other classes.
    """
    train = replace(images.subset([]), class_names=class_names)
    tested = train if test is None else test.with_classes_of(train, source="data.test")
    warn_of_classes(tested.labels.tolist(), class_names, source="data.test")
    seen = set(tested.digests())
    kept = [index for index, digest in enumerate(images.digests()) if digest not in seen]
    if len(kept) < len(images):
        logger.info(
            "%s",
            number_of(
                len(images) - len(kept),
                "image is also tested on: no range is measured on it",
                "images are also tested on: no range is measured on them",
            ),
        )
    if not kept:
        raise InputError("data.calibration has no image that data.test does not have; name others")
    order = np.random.default_rng(seed).permutation(kept)
    count = 0 if len(kept) < _FEW or not hold_out else min(len(kept) // HELD_OUT_SHARE, HELD_OUT_MOST)
    return Split(
        train=train,
        test=tested,
        calibration=images.subset(np.sort(order[count:])),
        held_out=images.subset(np.sort(order[:count])),
    )


def _without_copies(tested: ImageSet, learned: ImageSet) -> ImageSet:
    # Within one folder a copy of a learned image is the user's data, not their mistake: it is not tested on.
    seen = set(learned.digests())
    keep = [i for i, digest in enumerate(tested.digests()) if digest not in seen]
    if len(keep) == len(tested):
        return tested
    logger.info(
        "%s",
        number_of(
            len(tested) - len(keep),
            "image is a copy of a learned one and is not tested on",
            "images are copies of learned ones and are not tested on",
        ),
    )
    return tested.subset(keep)


def images_in_both(learned: ImageSet, tested: ImageSet) -> list[tuple[str, str]]:
    """Return each image that is in both sets: its name among those to test on, and among those to learn from."""
    by_digest = dict(zip(learned.digests(), learned.names, strict=True))
    pairs = zip(tested.names, tested.digests(), strict=True)
    return [(name, by_digest[digest]) for name, digest in pairs if digest in by_digest]


def _refuse_overlap(learned: ImageSet, tested: ImageSet) -> None:
    both = [f"{name} is also learned from (as {other})" for name, other in images_in_both(learned, tested)]
    if both:
        raise InputError(
            f"test image {some_of(both)}; remove {one_or_many(len(both), 'it', 'them')} from data.test: "
            "accuracy on learned images means nothing"
        )


def some_of(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
