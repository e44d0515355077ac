"""What can be said about a recipe's data before anything is run: all problems at once, without torch."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from p4q_edge.data.few_shot import Split, make_split, split_problems
from p4q_edge.data.readers import read_class_prompts, read_images, read_split, read_unlabelled, read_words
from p4q_edge.recipe import DataSection, template_problems
from p4q_edge.runtime.errors import P4QEdgeError
from p4q_edge.runtime.images import ImageSet, ToDecode, class_folders, damaged, from_paths, image_files
from p4q_edge.runtime.wording import number_of

T = TypeVar("T")

SHOWN_IMAGES = 10


@dataclass(kw_only=True, eq=False)
class OpenedData:
    """What a recipe's [data] names, of which no image is decoded yet.

    Attributes:
        split: None where it cannot be made.
        problems: so far, in words, each with what to do.
        used: the sets whose images will be used, as far as that is known.
    """

    split: Split | None = None
    problems: list[str] = field(default_factory=list)
    used: list[ImageSet] = field(default_factory=list)


def check_data(section: DataSection, *, seed: int) -> tuple[Split | None, list[str]]:
    """Open what a recipe's [data] names, and decode every image that will be used.

    Returns:
        The split, None where it cannot be made; and the problems in words, each with what to do.
    """
    found = open_data(section, seed=seed)
    return found.split, [*found.problems, *unreadable_images(*found.used)]


def open_data(section: DataSection, *, seed: int) -> OpenedData:
    """Open what a recipe's [data] names, without a look at what an image shows."""
    if not section.train:
        return _open_without_labels(section, seed=seed)
    found = OpenedData()
    problems = found.problems
    of_names: list[str] = []
    names = _tried(of_names, lambda: read_words(section.class_names, key="data.class_names")) or ()
    train = _opened(found, section.train, key="data.train", known=names)
    test = _opened(found, section.test, key="data.test", known=names) if section.test else None
    problems += of_names
    templates = _tried(problems, lambda: read_words(section.templates, key="data.templates"))
    if templates is not None and (templates or not section.class_prompts):
        problems += template_problems(templates)
    opened = train
    if train is not None and names:
        named = train
        train = _tried(problems, lambda: named.with_class_names(names, source=section.train, key="data.class_names"))
    if train is not None:
        known = train.class_names
        _tried(problems, lambda: read_class_prompts(section.class_prompts, known))
    drawn = _split(problems, train, test, section, seed=seed)
    if drawn is None:  # which images will be used is not known
        used = [opened, test]
    else:
        split = replace(drawn, unlabelled=_tried(problems, lambda: read_unlabelled(section, drawn)))
        found.split, used = split, [split.train, split.test, split.unlabelled]
    found.used += [images for images in used if images is not None]
    return found


def _split(
    problems: list[str], train: ImageSet | None, test: ImageSet | None, section: DataSection, *, seed: int
) -> Split | None:
    """Draw the split, or add all that keeps it from being drawn to the problems."""
    if train is None or (section.test and test is None):
        return None
    try:
        return make_split(train, test, shots=section.shots, seed=seed, test_limit=section.test_limit)
    except P4QEdgeError as error:  # the first problem; looked for alone, since all images are read for the last of them
        problems += split_problems(train, test, shots=section.shots, seed=seed) or [str(error)]
        return None


def _open_without_labels(section: DataSection, *, seed: int) -> OpenedData:
    found = OpenedData()
    problems = found.problems
    templates = _tried(problems, lambda: read_words(section.templates, key="data.templates"))
    problems += [] if templates is None else template_problems(templates)
    split = _tried(problems, lambda: read_split(section, seed=seed))
    if split is not None:
        _tried(problems, lambda: read_class_prompts(section.class_prompts, split.train.class_names))
        used = (split.calibration, split.held_out, split.test)
        found.split, found.used = split, [images for images in used if images is not None]
    return found


def _tried(problems: list[str], step: Callable[[], T]) -> T | None:
    try:
        return step()
    except P4QEdgeError as error:
        problems.append(str(error))
        return None


def _opened(data: OpenedData, source: str, *, key: str, known: Sequence[str]) -> ImageSet | None:
    """Return images, or add why there are none; beside an empty class folder the images of others are looked at."""
    found = _tried(data.problems, lambda: read_images(source, key=key, known=known))
    if found is None and Path(source).is_dir():
        folders = _tried([], lambda: class_folders(Path(source), known=known)) or []
        files = [image_files(folder) for folder in folders]
        if not all(files):
            every = [file for some in files for file in some]
            data.used.append(from_paths(every, [0] * len(every), ("",), Path(source)))
    return found


def unreadable_images(*sets: ImageSet) -> list[str]:
    """Return what is wrong with each image that cannot be decoded; of many in a set the first few, and how many."""
    found = damaged(*map(ToDecode.of_set, sets))
    return [line for problems in found for line in in_few_lines(problems.values())]


def in_few_lines(problems: Iterable[str]) -> list[str]:
    """Return the first few problems of images, and how many more there are."""
    found = list(problems)
    more = len(found) - SHOWN_IMAGES
    return found[:SHOWN_IMAGES] + ([f"and {number_of(more, 'more image')} cannot be read"] if more > 0 else [])


def in_one_list(problems: list[str]) -> str:
    """Return problems as one text, numbered if there are several."""
    if len(problems) == 1:
        return problems[0]
    numbered = "; ".join(f"({number}) {problem}" for number, problem in enumerate(problems, 1))
    return f"{len(problems)} problems were found before anything was run: {numbered}"


def find_copies(images: ImageSet) -> list[tuple[str, str]]:
    """Return names of images with the same bytes in different classes."""
    first: dict[str, int] = {}
    found = []
    for index, digest in enumerate(images.digests()):
        other = first.setdefault(digest, index)
        if images.labels[other] != images.labels[index]:
            found.append((images.names[other], images.names[index]))
    return found
