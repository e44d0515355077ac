"""Which files of a folder are images, and which are left out and why."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images.class_names import in_label_order, same_form
from p4q_edge.runtime.images.decode import READABLE_WITH, SUFFIXES
from p4q_edge.runtime.wording import number_of

logger = logging.getLogger(__name__)

# What archives and network storages put beside photographs: copies of names and thumbnails, no photographs.
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
_PARTS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db"})


class LeftOut:
    """How many files and folders were not taken, by reason in words."""

    def __init__(self) -> None:
        """Start with nothing left out."""
        self.reasons: Counter[tuple[str, str]] = Counter()
        self._meant = False

    def add(self, one: str, many: str = "", *, meant: bool = False) -> None:
        """Count one more; `meant` if it may well be a photograph that the user wants to be taken.

        Args:
            one: the reason in words for one.
            many: the same for any other number, as `number_of` takes it.
            meant: whether to warn of it.
        """
        self.reasons[one, many] += 1
        self._meant = self._meant or meant

    def __str__(self) -> str:
        return ", ".join(number_of(count, *words) for words, count in sorted(self.reasons.items()))

    def log(self, source: str) -> None:
        """Say in one line what was left out; a warning where it could have been meant to be taken."""
        if self.reasons:
            logger.log(logging.WARNING if self._meant else logging.INFO, "left out of %s: %s", source, self)


def image_files(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """Return the image files in a folder and below, sorted.

    Hidden files (macOS's `._photo.jpg`), system folders (thumbnails of `@eaDir`), linked folders and files of other
    kinds are left out; linked files are taken.

    Args:
        folder: where to look.
        left_out: counts what is left out.
    """
    counted = LeftOut() if left_out is None else left_out
    found: list[Path] = []
    waiting = [os.fspath(folder)]
    while waiting:
        try:
            # The system tells with each name whether it is a file's: nothing is asked of files one by one.
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        if _is_taken_folder(entry, counted):
                            waiting.append(entry.path)
                    elif _is_taken(entry, counted):
                        found.append(Path(entry.path))
        except OSError as error:
            logger.warning("left out of %s: %s", folder, error)
    return sorted(found)


def class_folders(
    root: Path, left_out: LeftOut | None = None, *, known: Iterable[str] = (), advice: str = ""
) -> list[Path]:
    """Return the class folders of `root/CLASS/IMAGE` in label order, digits by their value; linked ones are taken.

    Args:
        root: holds the folders.
        left_out: counts what is left out.
        known: names of classes, which are classes even where they sound like parts of a data set, such as `train`.
        advice: how the caller is told such names, as `name them in KEY`; empty where it cannot be.

    Raises:
        InputError: there is none, one has a name that is no text, two have one name, or the folders are parts of a
            data set, such as `train` and `test`.
    """
    counted = LeftOut() if left_out is None else left_out
    found = {}
    with os.scandir(root) as entries:
        for child in entries:
            if _is_folder(child):
                if not _is_system(child.name, counted, "folder"):
                    found[child.name] = Path(child.path)
            elif _is_taken(child, counted):
                counted.add("image outside of the class folders", "images outside of the class folders", meant=True)
    if not found:
        raise InputError(f"{root} has no class folders; expected {root}/CLASS/IMAGE.jpg, one folder a class")
    if not {same_form(name) for name in found} <= {same_form(name) for name in known}:
        _refuse_parts(root, found, advice)
    for name in found:
        if not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name):
            raise InputError(_no_text(root / name))
    _refuse_one_name_twice(root, found)
    return [found[name] for name in in_label_order(found)]


def _refuse_one_name_twice(root: Path, names: Iterable[str]) -> None:
    """Raise `InputError` where folders differ in how their accents are stored alone: both would be the same class."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(same_form(name), name)
        if other != name:
            raise InputError(
                f"two class folders of {root} have one name, {same_form(name)}, with its accents stored in two ways "
                f"({other!a} and {name!a}). Move the images of one into the other"
            )


def _no_text(folder: Path) -> str:
    """Return what to say of a class folder whose name Python could not read."""
    try:
        os.fsencode(folder.name).decode("utf-8")
    except UnicodeDecodeError:
        return f"the class folder {folder} has a name that is not UTF-8, and no class can; rename it"
    return (
        f"this Python takes names of files for {sys.getfilesystemencoding()}, in which the class folder {folder} has "
        "none; set PYTHONUTF8=1"
    )


def _refuse_parts(root: Path, folders: Mapping[str, Path], advice: str) -> None:
    """Raise `InputError` where all folders are parts of a data set: each would be taken for a class of its name."""
    if all(name.casefold() in _PARTS and _has_folders_alone(path) for name, path in folders.items()):
        names = sorted(folders, key=lambda name: not name.casefold().startswith("train"))
        raise InputError(
            f"{root} holds no classes but {' and '.join(names)}, parts of a data set with class folders of their own. "
            f"Name one of them: {root / names[0]}. If these are classes, put their images into them and not deeper"
            + (f", or {advice}" if advice else "")
        )


def _has_folders_alone(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            here = list(entries)
    except OSError:  # told of where its images are looked for
        return False
    return any(_is_folder(entry) for entry in here) and not any(_is_taken(entry, LeftOut()) for entry in here)


def labelled_files(
    root: Path, *, known: Iterable[str] = (), advice: str = "", keep_empty: bool = False
) -> Iterator[tuple[Path, list[Path]]]:
    """Yield each class folder in label order with its image files, and say at the end what was left out.

    Args:
        root: holds the folders.
        known: names of classes, whatever they sound like.
        advice: how the caller is told such names.
        keep_empty: yield folders without images too, and do not raise for them.

    Raises:
        InputError: no class folder, or some without images: all of them are named at the end.
    """
    left_out, empty = LeftOut(), []
    for folder in class_folders(root, left_out, known=known, advice=advice):
        files = image_files(folder, left_out)
        if not files and not keep_empty:
            here = LeftOut()
            image_files(folder, here)
            why = f"; left out: {here}" if here.reasons else ""
            empty.append(f"class folder {folder} has no images ({', '.join(sorted(SUFFIXES))}){why}; fill or remove it")
        yield folder, files
    if empty:
        raise InputError("; ".join(empty))
    left_out.log(str(root))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # e.g. a link to itself
        return False


def _is_taken_folder(folder: os.DirEntry[str], counted: LeftOut) -> bool:
    if _is_system(folder.name, counted, "folder"):
        return False
    if folder.is_symlink():
        counted.add("linked folder (copy it in)", "linked folders (copy them in)", meant=True)
        return False
    return True


def _is_taken(file: os.DirEntry[str], counted: LeftOut) -> bool:
    suffix = PurePath(file.name).suffix.lower()
    if _is_system(file.name, counted, "file"):
        return False
    if suffix in SUFFIXES:
        if _is_file(file):
            return True
        counted.add("broken link", meant=True)
    elif suffix in READABLE_WITH:
        how = READABLE_WITH[suffix]
        counted.add(f"{suffix} file ({how})", f"{suffix} files ({how})", meant=True)
    elif suffix:
        counted.add(f"{suffix} file")
    else:
        counted.add("file without a suffix", "files without a suffix")
    return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _is_system(name: str, counted: LeftOut, kind: str) -> bool:
    """Return whether a name is hidden or one of the system's, and count it."""
    if name.startswith("."):
        counted.add(f"hidden {kind}")
    elif name in SYSTEM_FOLDERS or name.lower() in SYSTEM_FILES:
        counted.add(of_system := f"of the system ({name})", of_system)
    else:
        return False
    return True
