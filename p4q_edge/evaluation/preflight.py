"""What can be said about the images of a validation before its reference is learned: all problems at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from p4q_edge.data import (
    OpenedData,
    Split,
    in_few_lines,
    in_one_list,
    open_data,
    read_images,
)
from p4q_edge.evaluation.captioned import OpenedCaptions, open_captions
from p4q_edge.recipe import Recipe
from p4q_edge.runtime.artifacts import Card
from p4q_edge.runtime.errors import IncompatibleEngineError, P4QEdgeError, UsageError
from p4q_edge.runtime.evaluation import (
    Subject,
    ValidateRequest,
    found_names,
    learned_digests,
    nothing_to_compare_with,
)
from p4q_edge.runtime.evaluation.trials import OfNoClass, missing_labelled, open_of_no_class
from p4q_edge.runtime.images import (
    MAX_CACHED_BYTES,
    ImageSet,
    LabelledImages,
    PreprocessSpec,
    ToDecode,
    damaged,
    draw_subset,
    images_to_test,
    warn_of_classes,
)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Checked:
    """The images of a recipe and of a validation; all can be decoded.

    Attributes:
        split: the recipe's.
        images: labelled, to validate on: those of `--data`, or else those that the recipe leaves to test on.
        of_no_class: those of `--ood`.
        captions: those of `--pairs`.
    """

    split: Split
    images: LabelledImages | None
    of_no_class: OfNoClass | None
    captions: OpenedCaptions | None

    def keep_decoded(self) -> None:
        """Let each set keep as many decoded images as it does by itself, now that nothing is learned beside them."""
        for opened in (self.of_no_class, self.captions):
            if opened is not None:
                opened.pixels.keep_at_most(MAX_CACHED_BYTES)


def check_before_learning(request: ValidateRequest, subject: Subject, recipe: Recipe, reference: Path) -> Checked:
    """Return the images of a reference that is learned for a validation, after all that can be checked about them.

    Args:
        request: its `--data`, `--ood` and `--pairs` are checked as well, those images that its limit draws.
        subject: the engine that is validated.
        recipe: what is learned.
        reference: what messages call it.

    Raises:
        UsageError: every problem that was found, in one list.
        IncompatibleEngineError: the recipe has other classes than the engine; no image is decoded for that.
    """
    data = open_data(recipe.data, seed=recipe.seed)
    split, problems = data.split, data.problems
    if split is not None and split.train.class_names != subject.card.class_names:
        raise not_its_origin(request, reference)
    opened = _open(request, subject, recipe, data)
    _share_room(opened, subject.card.preprocess)
    found = damaged(*map(ToDecode.of_set, data.used), *opened.to_decode())
    if opened.drawn:
        found[len(data.used)] = _not_told_yet(found[len(data.used)], opened, data.used)
    problems += [line for of_one_set in found for line in in_few_lines(of_one_set.values())]
    if split is None or problems:
        raise UsageError(in_one_list(problems))
    return Checked(split=split, images=opened.labelled, of_no_class=opened.of_no_class, captions=opened.captions)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Opened:
    """What a validation names; `drawn` are the images of `--data` that its limit draws, by their indices."""

    labelled: LabelledImages | None
    drawn: Sequence[int]
    of_no_class: OfNoClass | None
    captions: OpenedCaptions | None

    def to_decode(self) -> Iterator[ToDecode]:
        """Yield what is decoded beside the recipe's own images: that of `--data` first, if there is any."""
        if self.labelled is not None and self.drawn:
            yield ToDecode.of_pixels(self.labelled.pixels, self.drawn)
        for others in (self.of_no_class, self.captions):
            if others is not None:
                yield ToDecode.of_pixels(others.pixels)


def _open(request: ValidateRequest, subject: Subject, recipe: Recipe, data: OpenedData) -> _Opened:
    """Open what a validation names, and add to the problems of the recipe's data what stands against it."""
    split, problems, spec = data.split, data.problems, subject.card.preprocess
    known = {*learned_digests(subject.bundle), *(() if split is None else split.train.digests())}
    images: LabelledImages | None = None
    try:
        if request.data is not None:
            names = found_names(subject.bundle) or (() if split is None else split.train.found_names)
            images = data_of(request.data, subject.card, frozenset(known), names)
        elif split is not None:
            images = left_to_test(split, subject.card, recipe, frozenset(known))
            problems += [] if images is not None else _missing(request, subject)
    except P4QEdgeError as error:
        problems.append(str(error))
    drawn = [] if images is None else draw_subset(len(images.labels), request.limit, seed=request.seed).tolist()
    known.update(() if images is None else images.digests)
    ood, pairs = request.ood, request.pairs
    of_no_class = captions = None
    if ood is not None:
        of_no_class = _tried(problems, lambda: open_of_no_class(request, ood, known=known, spec=spec))
    if pairs is not None:
        captions = _tried(problems, lambda: open_captions(request, pairs, spec))
    return _Opened(
        labelled=images,
        drawn=[] if request.data is None else drawn,
        of_no_class=of_no_class,
        captions=captions,
    )


def _missing(request: ValidateRequest, subject: Subject) -> list[str]:
    """Return why a validation without labelled images cannot be run, if so."""
    if missing := missing_labelled(request):
        return [missing]
    return [] if request.max_top1_drop is None else [nothing_to_compare_with(subject)]


def _tried(problems: list[str], step: Callable[[], T]) -> T | None:
    try:
        return step()
    except P4QEdgeError as error:
        problems.append(str(error))
        return None


def _share_room(opened: _Opened, spec: PreprocessSpec) -> None:
    """Have all that is kept while the reference is learned need no more memory than one set may."""
    left = MAX_CACHED_BYTES - len(opened.drawn) * 3 * spec.size[0] * spec.size[1]
    for others in (opened.of_no_class, opened.captions):
        if others is not None:
            others.pixels.keep_at_most(max(0, left))
            left -= others.pixels.size_bytes


def _not_told_yet(found: dict[int, str], opened: _Opened, used: Sequence[ImageSet]) -> dict[int, str]:
    """Return the problems of images of `--data` that are not among the recipe's, of which they were told."""
    if not found or opened.labelled is None:
        return found
    told, digests = {digest for images in used for digest in images.digests()}, opened.labelled.digests
    return {row: problem.rstrip(".") for row, problem in found.items() if digests[row] not in told}


def not_its_origin(request: ValidateRequest, reference: Path) -> IncompatibleEngineError:
    """Return the error of an engine that was made of other things than a recipe or a run folder says."""
    return IncompatibleEngineError(
        f"{request.engine} was not built from {reference}: its model or its classes differ. Name the run folder that "
        "it came from with --reference"
    )


def left_to_test(split: Split, card: Card, recipe: Recipe, learned_from: frozenset[str]) -> LabelledImages | None:
    """Return the images that a recipe leaves to test on, without those that the model was learned from.

    None where it leaves none.

    Raises:
        InputError: it leaves some, and the model was learned from all of them.
    """
    if not len(split.test):
        return None
    name = recipe.data.test or recipe.data.train
    return labelled(split.test, card, learned_from=learned_from, source=f"{name}, not learned from")


def data_of(data: str, card: Card, learned_from: frozenset[str], other_names: tuple[str, ...]) -> LabelledImages:
    """Return what `--data` names, without the images that the model was learned from.

    Raises:
        UsageError: there is nothing of that name.
        InputError: none is left, or the classes do not fit.
    """
    found = read_images(data, known=(*card.class_names, *other_names))
    images = labelled(found, card, learned_from=learned_from, source=data, other_names=other_names)
    warn_of_classes(images.labels.tolist(), card.class_names, source=f"--data {data}")
    return images


def labelled(
    images: ImageSet, card: Card, *, learned_from: frozenset[str], source: str, other_names: tuple[str, ...] = ()
) -> LabelledImages:
    """Return the images of a data set that the model was not learned from, as the engine takes them.

    Raises:
        InputError: none is left, or the classes do not fit.
    """
    return images_to_test(
        images,
        class_names=card.class_names,
        spec=card.preprocess,
        learned=learned_from,
        source=source,
        other_names=other_names,
    )
