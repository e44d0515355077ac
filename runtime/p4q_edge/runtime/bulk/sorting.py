"""Images copied or linked into folders by answer; nothing is ever overwritten."""

from __future__ import annotations

import filecmp
import re
import shutil
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Literal

from p4q_edge.runtime.errors import P4QEdgeError, UsageError

SortMode = Literal["copy", "link"]
UNKNOWN = "unknown"
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
_ENDS = re.compile(r"^[\s.]+|[\s.]+$")
_MAX_NAME_BYTES = 240
"""File systems take 255; what is left is for a number."""


class Sorter:
    """Puts images into a folder for each class, and those that are unknown into `unknown`."""

    def __init__(self, folder: Path, class_names: Iterable[str], *, mode: SortMode = "copy") -> None:
        """Decide which folder each class has; nothing is made yet.

        Args:
            folder: where the folders are made.
            class_names: all classes that can come.
            mode: copy each file, or make a symbolic link to it.

        Raises:
            UsageError: two classes would share a folder, or one would have that of the unknown.
        """
        self._folder, self._mode = folder, mode
        self._folders: dict[str, str] = {}
        taken = {UNKNOWN: f"the folder {UNKNOWN!r}, of images that show none of the classes,"}
        for name in class_names:
            safe = folder_name(name)
            if safe.casefold() in taken:
                raise UsageError(
                    f"{taken[safe.casefold()]} and class {name!r} would have one folder, {folder / safe}. Rename the "
                    "class in the head."
                )
            taken[safe.casefold()] = f"class {name!r}"
            self._folders[name] = safe

    def put(self, image: Path, label: str | None) -> Path:
        """Copy or link an image into the folder of a class, of the unknown for None, and return where it is now.

        A file of this name that is there already is left alone: the same picture is not put there twice, and another
        one gets a number.

        Raises:
            P4QEdgeError: it cannot be written.
        """
        target = self._folder / (UNKNOWN if label is None else self._folders[label])
        if target.is_symlink():
            raise P4QEdgeError(
                f"{target} is a link, and nothing is put where it leads. Remove it, or choose another folder."
            )
        try:
            target.mkdir(parents=True, exist_ok=True)
            for number in count(1):
                place = target / (image.name if number == 1 else _numbered(image, number))
                if self._is_there(place, image) or self._make(place, image):
                    return place
        except OSError as error:
            raise P4QEdgeError(
                f"cannot put {image} into {target}: {error.strerror}. Make room, or choose another folder."
            ) from error
        raise AssertionError("numbers do not end")

    def _is_there(self, place: Path, image: Path) -> bool:
        return place.is_file() and filecmp.cmp(place, image, shallow=False)

    def _make(self, place: Path, image: Path) -> bool:
        """Make the file unless one of its name exists, which is decided as it is made."""
        try:
            if self._mode == "link":
                place.symlink_to(image.resolve())
                return True
            with image.open("rb") as source, place.open("xb") as copy:
                try:
                    shutil.copyfileobj(source, copy)
                except BaseException:
                    place.unlink()
                    raise
        except FileExistsError:
            return False
        return True


def folder_name(class_name: str) -> str:
    """Return a class name as the name of a folder on every system: no separators, no leading or trailing dots."""
    safe = _ENDS.sub("", _UNSAFE.sub("_", class_name))
    return _ENDS.sub("", _cut(safe, _MAX_NAME_BYTES)) or "_"


def _numbered(image: Path, number: int) -> str:
    """Return the name of a file with a number, no longer than file systems take."""
    ending = f"-{number}{image.suffix}"
    return _cut(image.stem, _MAX_NAME_BYTES - _bytes(image.suffix)) + ending


def _cut(name: str, most: int) -> str:
    """Return the beginning of a name that has at most `most` bytes as the name of a file."""
    while _bytes(name) > most:
        name = name[:-1]
    return name


def _bytes(name: str) -> int:
    return len(name.encode("utf-8", "surrogatepass"))
