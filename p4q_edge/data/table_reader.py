"""Labelled images that a table names: ``.csv`` and ``.tsv`` with the columns path and label."""

import csv
import io
from pathlib import Path

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images import ImageSet, from_paths, in_label_order, same_form
from p4q_edge.runtime.storage import printable, read_bounded

DELIMITERS = {".csv": ",", ".tsv": "\t"}
COLUMNS = ("path", "label")
MAX_TABLE_BYTES = 32 << 20

Row = tuple[int, list[str]]
"""The number of its last line, from 1, and its cells."""


def read_table(path: Path) -> ImageSet:
    """Read lines of path and label; a header may name the columns in any order, beside others.

    Paths are relative to the table's folder.

    Raises:
        InputError: not UTF-8, a missing column or cell, a path that does not exist or appears twice.
    """
    delimiter = DELIMITERS[path.suffix.lower()]
    rows = _read_rows(path, delimiter)
    columns = _columns(rows[0][1], path) if rows else None
    if columns is not None:
        rows = rows[1:]
    if not rows:
        raise InputError(f"{path} has no rows; expected lines of path{delimiter}label")
    path_column, label_column = columns or (0, 1)
    lines: dict[Path, int] = {}
    words: list[str] = []
    for line, cells in rows:
        named = _cell(cells, path_column), _cell(cells, label_column)
        if not all(named):
            raise InputError(f"{path}, line {line}: expected path and label, got {str(cells)[:200]}")
        file = path.parent / named[0]
        if file in lines:
            raise InputError(
                f"{path}, line {line}: {_shown(named[0])} appears again, after line {lines[file]}; name it once"
            )
        if not _is_file(file):
            raise InputError(
                f"{path}, line {line}: {_shown(file)} does not exist; paths are relative to the table's folder"
            )
        lines[file] = line
        words.append(same_form(named[1]))
    class_names = in_label_order(words)
    place = {name: index for index, name in enumerate(class_names)}
    return from_paths(list(lines), [place[word] for word in words], class_names, path.parent)


def _read_rows(path: Path, delimiter: str) -> list[Row]:
    try:
        data = read_bounded(path, limit_bytes=MAX_TABLE_BYTES, kind="table")
        with io.StringIO(data.decode("utf-8-sig"), newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter)
            return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise InputError(f"{path} is not a table: {error}") from error


def _shown(text: object) -> str:
    return printable(str(text)[:300])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have: too long, or with a zero
        return False


def _columns(cells: list[str], path: Path) -> tuple[int, int] | None:
    """Places of path and label when the first row is a header."""
    names = [cell.strip().lower() for cell in cells]
    if not set(COLUMNS) & set(names):
        return None
    missing = next((name for name in COLUMNS if name not in names), None)
    # A row of data may hold the word "label"; a header that lacks a column names no file.
    if missing is not None and _is_file(path.parent / cells[0].strip()):
        return None
    if missing is not None:
        raise InputError(
            f"{path} has no column {missing!r}; its header names {_shown(', '.join(cells))}; expected path and label"
        )
    return names.index("path"), names.index("label")


def _cell(cells: list[str], column: int) -> str:
    return cells[column].strip() if column < len(cells) else ""
