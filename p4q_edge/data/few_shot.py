"""Which images are learned from and which are tested on."""

import logging
from dataclasses import dataclass

import numpy as np

from p4q_edge.data.image_set import ImageSet
from p4q_edge.runtime.errors import InputError

logger = logging.getLogger(__name__)


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
        tested = test.with_classes_of(train, source="data.test")
        _refuse_overlap(learned, test)
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
