"""Images with their captions, as a table names them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from p4q_edge.data.table_reader import DELIMITERS, plain_path, read_rows
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.images import ImageSet, from_paths
from p4q_edge.runtime.storage import printable

PATHS, TEXTS = ("path", "filepath", "image", "file"), ("caption", "title", "text")
"""What headers call the columns; other columns are left alone."""
_SHOWN = 300


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Images and texts about them.

    Attributes:
        images: each once; their labels mean nothing.
        texts: every caption, in the order of the table.
        image_of: the image of each caption, `(captions,)` int64.
    """

    images: ImageSet
    texts: tuple[str, ...]
    image_of: npt.NDArray[np.int64]

    def of_images(self, chosen: Sequence[int] | npt.NDArray[np.int64]) -> "Captions":
        """Return the same of some of the images, by their sorted indices."""
        place = {int(image): number for number, image in enumerate(chosen)}
        kept = [(text, place[int(i)]) for text, i in zip(self.texts, self.image_of, strict=True) if int(i) in place]
        return Captions(
            images=self.images.subset(chosen),
            texts=tuple(text for text, _ in kept),
            image_of=np.array([image for _, image in kept], np.int64),
        )


def read_captions(path: Path) -> Captions:
    """Read lines of path and caption, whose header names the columns; an image may have several.

    Paths are relative to the table's folder.

    Raises:
        UsageError: the table does not exist, or is of another kind.
        InputError: not UTF-8, a missing column or cell, or a path that does not exist.
    """
    if path.suffix.lower() not in DELIMITERS or not path.is_file():
        raise UsageError(f"--pairs {path}: expected an existing .csv or .tsv with the columns path and caption")
    rows = read_rows(path, DELIMITERS[path.suffix.lower()])
    file_column, text_column = _columns(rows[0][1] if rows else [], path)
    places: dict[Path, int] = {}
    files: list[Path] = []
    texts: list[str] = []
    image_of: list[int] = []
    for line, cells in rows[1:]:
        name, text = (cells[c].strip() if c < len(cells) else "" for c in (file_column, text_column))
        if not name or not text:
            raise InputError(f"{path}, line {line}: expected path and caption, got {printable(str(cells)[:_SHOWN])}")
        file = path.parent / name
        same = plain_path(file)
        if same not in places:
            if not _is_file(file):
                raise InputError(
                    f"{path}, line {line}: {printable(str(file)[:_SHOWN])} does not exist; paths are relative to the "
                    "table's folder"
                )
            places[same] = len(files)
            files.append(file)
        texts.append(text)
        image_of.append(places[same])
    if not texts:
        raise InputError(f"{path} has no rows below its header; expected lines of path and caption")
    images = from_paths(files, [0] * len(files), ("",), path.parent)
    return Captions(images=images, texts=tuple(texts), image_of=np.array(image_of, np.int64))


def _columns(header: Sequence[str], path: Path) -> tuple[int, int]:
    names = [cell.strip().lower() for cell in header]
    found = [next((names.index(name) for name in known if name in names), None) for known in (PATHS, TEXTS)]
    if found[0] is None or found[1] is None:
        raise InputError(
            f"{path}: expected a header with the columns path and caption, got "
            f"{printable(', '.join(header)[:_SHOWN]) or 'nothing'}"
        )
    return found[0], found[1]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
