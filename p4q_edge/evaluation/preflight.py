"""What can be said about the images of a validation before its reference is learned: all problems at once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from p4q_edge.data import (
    Split,
    check_data,
    in_few_lines,
    in_one_list,
    read_captions,
    read_images,
    unreadable_images,
)
from p4q_edge.recipe import Recipe
from p4q_edge.runtime.artifacts import Card
from p4q_edge.runtime.errors import P4QEdgeError, UsageError
from p4q_edge.runtime.evaluation import Subject, ValidateRequest, found_names, learned_digests
from p4q_edge.runtime.images import (
    ImageSet,
    LabelledImages,
    draw_subset,
    from_paths,
    image_files,
    images_to_test,
    require_of_no_class,
    undecodable,
    warn_of_classes,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Checked:
    """The images of a recipe and, where `--data` names any, of a validation; all can be decoded."""

    split: Split
    images: LabelledImages | None


def check_before_learning(request: ValidateRequest, subject: Subject, recipe: Recipe) -> Checked:
    """Return the images of a reference that is learned for a validation, after all that can be checked about them.

    Args:
        request: its `--data`, `--ood` and `--pairs` are checked as well, those images that its limit draws.
        subject: the engine that is validated.
        recipe: what is learned.

    Raises:
        UsageError: every problem that was found, in one list.
    """
    split, problems = check_data(recipe.data, seed=recipe.seed)
    learned, found, images = set(learned_digests(subject.bundle)), found_names(subject.bundle), None
    if split is not None:
        learned.update(split.train.digests())
        found = found or split.train.found_names
    try:
        if request.data is not None:
            images = data_of(request.data, subject.card, frozenset(learned), found)
            drawn = draw_subset(len(images.labels), request.limit, seed=request.seed)
            told = _digests(split) if problems else frozenset()  # they were decoded, and what is damaged was told of
            rows = [row for row in drawn.tolist() if images.digests[row] not in told]
            problems += in_few_lines(undecodable(images.pixels, rows))
    except P4QEdgeError as error:
        problems.append(str(error))
    if images is not None:
        learned.update(images.digests)
    elif split is not None:
        learned.update(split.test.digests())
    problems += _problems_of(request.ood, lambda folder: _of_no_class(folder, request, learned))
    problems += _problems_of(request.pairs, lambda table: _with_captions(table, request))
    if split is None or problems:
        raise UsageError(in_one_list(problems))
    return Checked(split=split, images=images)


def _digests(split: Split | None) -> frozenset[str]:
    used = () if split is None else (split.train, split.test, split.unlabelled)
    return frozenset(digest for images in used if images is not None for digest in images.digests())


def _problems_of(path: Path | None, open_images: Callable[[Path], ImageSet]) -> Iterable[str]:
    if path is None:
        return ()
    try:
        return unreadable_images(open_images(path))
    except P4QEdgeError as error:
        return (str(error),)


def _of_no_class(folder: Path, request: ValidateRequest, known: set[str]) -> ImageSet:
    require_of_no_class(folder, known, option="--ood")
    files = image_files(folder)
    images = from_paths(files, [0] * len(files), ("",), folder)
    return images.subset(draw_subset(len(files), request.limit, seed=request.seed))


def _with_captions(table: Path, request: ValidateRequest) -> ImageSet:
    images = read_captions(table).images
    return images.subset(draw_subset(len(images), request.limit, seed=request.seed))


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
