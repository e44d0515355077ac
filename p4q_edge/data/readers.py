"""Readers of images: class folders, tables, `.npz` arrays, webdataset tars, the demo's digits; and of words."""

import difflib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from p4q_edge.data.archive_readers import expand_braces, from_arrays, read_npz, read_shards, read_tar
from p4q_edge.data.few_shot import Split, make_split, split_without_labels
from p4q_edge.data.table_reader import DELIMITERS, is_dataset_folder, read_dataset_folder, read_parquet, read_table
from p4q_edge.recipe import DEMO_DATA, DRAWN_IMAGES, DataSection, entries_problem
from p4q_edge.runtime.artifacts import SUFFIX, read_bundle
from p4q_edge.runtime.errors import CorruptArtifactError, InputError, UsageError
from p4q_edge.runtime.images import ImageSet, LeftOut, from_class_folders, from_paths, image_files, same_form
from p4q_edge.runtime.storage import decode_json, not_fetched, read_bounded
from p4q_edge.runtime.wording import number_of

logger = logging.getLogger(__name__)

MAX_WORDS_BYTES = 4 << 20
_SHOWN = 60
Prompts = Annotated[tuple[Annotated[str, msgspec.Meta(min_length=1)], ...], msgspec.Meta(min_length=1)]


def read_split(section: DataSection, *, seed: int) -> Split:
    """Open what a recipe's [data] names and draw the few-shot images.

    Raises:
        UsageError: a path does not exist or has an unknown kind.
        InputError: the images or class names cannot be used.
    """
    names = read_words(section.class_names, key="data.class_names")
    if not section.train:
        test = read_images(section.test, key="data.test") if section.test else None
        images, classes = read_calibration_images(section.calibration), class_names_of(names)
        real = section.calibration != DRAWN_IMAGES
        return split_without_labels(images, test, classes, seed=seed, hold_out=real)
    train = read_images(section.train, key="data.train", known=names)
    if names:
        train = train.with_class_names(names, source=section.train, key="data.class_names")
    test = read_images(section.test, key="data.test", known=names) if section.test else None
    return make_split(train, test, shots=section.shots, seed=seed, test_limit=section.test_limit)


def read_images(source: str, *, key: str = "--data", known: Sequence[str] = (), keep_empty: bool = False) -> ImageSet:
    """Open a set of labelled images by the kind of its path.

    Args:
        source: where they are.
        key: what messages call it.
        known: names of classes; folders of these names are classes, whatever they sound like.
        keep_empty: a class folder without images is a class that has none, and not refused.

    Raises:
        UsageError: the path does not exist or has an unknown kind.
        InputError: it holds no classes, or a class folder without images.
    """
    if source == DEMO_DATA:
        return _read_demo()
    if not source:
        raise UsageError(f"{key} is empty; name a folder of class folders, a .csv, .tsv, .parquet, .npz or .tar")
    path = Path(source)
    _refuse_address(source, key=key)
    if not _exists(path):
        if "{" in source:
            return read_shards(expand_braces(source, key=key), source=source)
        raise UsageError(
            f"{key}: {source} does not exist; name a folder of class folders, a .csv, .tsv, .parquet, .npz or .tar"
        )
    if path.is_dir():
        if is_dataset_folder(path):
            return read_dataset_folder(path)
        # The classes of an engine, for `--data`, are what they are.
        advice = "name them in data.class_names" if key.startswith("data.") else ""
        return from_class_folders(path, known=known, advice=advice, keep_empty=keep_empty)
    readers: dict[str, Callable[[Path], ImageSet]] = {".npz": read_npz, ".tar": read_tar, ".parquet": read_parquet}
    readers |= dict.fromkeys(DELIMITERS, read_table)
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise UsageError(
            f"{key}: {source} has suffix {path.suffix!r}; "
            f"expected a folder, {', '.join(sorted(readers))} or {DEMO_DATA}"
        )
    return readers[suffix](path)


def read_split_again(section: DataSection, *, seed: int) -> Split:
    """Return the images of a run that is there; what there is to say of them was said when they were learned from.

    Raises:
        UsageError: as `read_split` and `read_unlabelled`.
    """
    with told_already():
        split = read_split(section, seed=seed)
        return replace(split, unlabelled=read_unlabelled(section, split))


def read_unlabelled(section: DataSection, split: Split) -> ImageSet | None:
    """Open `data.unlabelled`: images whose labels, if there are any, are not read; None where the recipe names none.

    Copies of the split's images are left out: labelled ones are learned from already, and accuracy on test images that
    were learned from means nothing.

    Raises:
        UsageError: the path does not exist or has an unknown kind.
        InputError: no image is left.
    """
    source, key = section.unlabelled, "data.unlabelled"
    if not source:
        return None
    found = _without_labels(source, key=key)
    found = replace(found, labels=np.zeros(len(found), np.int64), class_names=("",), found_names=())
    seen = {*split.train.digests(), *split.test.digests()}
    new = [index for index, digest in enumerate(found.digests()) if digest not in seen]
    if not new:
        raise InputError(
            f"{key}: {source} has no image beside those that are learned from or tested on ({len(found)} in all); name "
            "other photographs, or leave it out"
        )
    if len(new) < len(found):
        logger.info(
            "%s: %s, %d of %s left out as copies", key, number_of(len(new), "image"), len(found) - len(new), source
        )
    return found.subset(new)


def read_calibration_images(source: str, *, key: str = "data.calibration") -> ImageSet:
    """Open images whose labels nobody knows, or is to use; all labels are -1.

    Args:
        source: a folder of images at any depth, a bundle for its golden samples, `DRAWN_IMAGES`, or whatever
            `read_images` takes.
        key: what messages call it.

    Raises:
        UsageError: it does not exist, or has an unknown kind.
        InputError: no images.
    """
    path = Path(source)
    if source == DRAWN_IMAGES:
        found = _read_leaves()
    elif path.suffix == SUFFIX and path.is_file():
        pixels = read_bundle(path).golden().image.transpose(0, 2, 3, 1)
        found = from_arrays(pixels, np.zeros(len(pixels), np.int64), ("",), f"{path.name} golden")
    else:
        found = _without_labels(source, key=key, others=f", a bundle (.p4q) or {DRAWN_IMAGES}")
    return replace(found, labels=np.full(len(found), -1, np.int64), class_names=(), found_names=())


def _without_labels(source: str, *, key: str, others: str = "") -> ImageSet:
    """Open images whose labels mean nothing: those of a folder, at any depth, or of whatever `read_images` takes."""
    path = Path(source)
    _refuse_address(source, key=key)
    if not source or (source != DEMO_DATA and "{" not in source and not _exists(path)):
        raise UsageError(
            f"{key}: {source or 'nothing'} does not exist; name a folder of images, a .csv, .tsv, .parquet, .npz or "
            f".tar{others}"
        )
    if not _exists(path) or not path.is_dir() or is_dataset_folder(path):
        return read_images(source, key=key)
    left_out = LeftOut()
    files = image_files(path, left_out)
    left_out.log(source)
    if not files:
        raise InputError(f"{key}: {source} has no images; name a folder with some, at any depth")
    return from_paths(files, [0] * len(files), ("",), path)


@contextmanager
def told_already() -> Iterator[None]:
    """Open what was opened before, without its warnings a second time; errors are raised as ever."""
    ours = logging.getLogger("p4q_edge")
    before = ours.level
    ours.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ours.setLevel(before)


def class_names_of(words: Sequence[str]) -> tuple[str, ...]:
    """Return names of classes that no folder names, in one form.

    Raises:
        InputError: fewer than two, an empty one, or two that are alike.
    """
    names = tuple(same_form(word.strip()) for word in words)
    if len(names) < 2 or not all(names):
        raise InputError(
            f"data.class_names: at least 2 names are needed, none of them empty; got {', '.join(map(repr, names))}. A "
            "class for everything else may be one, such as 'something else'"
        )
    return _checked_words(names, "data.class_names")


def _refuse_address(source: str, *, key: str) -> None:
    if address := not_fetched(source):
        raise UsageError(f"{key}: {address}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have, such as a long list of shards in braces
        return False


def read_words(words: Sequence[str] | str, *, key: str) -> tuple[str, ...]:
    """Return class names or templates: given in place, or one a line in a `.txt`, or a list in a `.json` file.

    Raises:
        UsageError: the file does not exist or has another suffix.
        InputError: it is empty, or names something twice.
    """
    if not isinstance(words, str):
        return _checked_words(tuple(words), key)
    if not words:
        return ()
    path = Path(words)
    _refuse_address(words, key=key)
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in (".txt", ".json"):
        raise UsageError(f"{key}: expected a list, or an existing .txt or .json file; got {words!r}")
    text = _read_text(path, key=key)
    if suffix == ".txt":
        found = tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
    else:
        found = _json_words(text, words)
    if not found:
        raise InputError(f"{key}: {words} names nothing; write one name a line")
    return _checked_words(found, f"{key}: {words}")


def read_class_prompts(path: str, class_names: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """Return prompts of each class from a `.json` file: `{"class name": ["prompt", ...]}`.

    Args:
        class_names: the known classes; a prompt for another one is a mistake.

    Raises:
        UsageError: the file does not exist.
        InputError: it is of another form, or names an unknown class.
    """
    key = "data.class_prompts"
    if not path:
        return {}
    _refuse_address(path, key=key)
    if not Path(path).is_file():
        raise UsageError(f"{key}: {path} does not exist")
    text = _read_text(Path(path), key=key).encode()
    try:
        document = decode_json(text, dict[str, Prompts], source=path)
    except CorruptArtifactError as error:
        raise InputError(f'{key}: {path} is not of the form {{"class name": ["prompt", ...]}}: {error}') from error
    document = {same_form(name): prompts for name, prompts in document.items()}
    unknown = next((name for name in document if class_names and name not in class_names), None)
    if unknown is not None:
        unknown = unknown[:_SHOWN]  # the search for a likeness takes the square of the length
        near = difflib.get_close_matches(unknown, class_names, n=1, cutoff=0.0)
        raise InputError(f"{key}: {path} has prompts of {unknown!r}, which is not a class; did you mean {near[0]!r}?")
    return document


def _read_text(path: Path, *, key: str) -> str:
    try:
        return read_bounded(path, limit_bytes=MAX_WORDS_BYTES, kind="list of words").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{key}: {path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error


def _json_words(text: str, source: str) -> tuple[str, ...]:
    try:
        return decode_json(text.encode(), tuple[str, ...], source=source)
    except CorruptArtifactError as error:
        raise InputError(f'{source} must hold a list of strings such as ["cat", "dog"]: {error}') from error


def _checked_words(words: tuple[str, ...], key: str) -> tuple[str, ...]:
    if problem := entries_problem(words, key=key):
        raise InputError(problem)
    return words


def _read_leaves() -> ImageSet:
    from p4q_edge.demo import LEAVES, draw_leaves

    return ImageSet(
        names=tuple(f"leaves {index}" for index in range(LEAVES)),
        labels=np.zeros(LEAVES, np.int64),
        class_names=("",),
        open_image=draw_leaves,
        read_bytes=lambda index: draw_leaves(index).tobytes(),
    )


def _read_demo() -> ImageSet:
    from p4q_edge.demo import demo_images

    images, labels, class_names = demo_images()
    return from_arrays(np.stack([np.asarray(image) for image in images]), labels, tuple(class_names), "digits")
