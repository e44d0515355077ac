"""Labelled images that a table names (`.csv`, `.tsv`, `.parquet`: path and label), and saved `datasets`."""

import csv
import errno
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from p4q_edge.data.archive_readers import checked_labels
from p4q_edge.runtime.errors import CorruptArtifactError, EnvironmentNotAbleError, InputError
from p4q_edge.runtime.images import ImageSet, from_paths, in_label_order, load_image, same_form
from p4q_edge.runtime.storage import decode_json, one_line, open_regular, printable, read_bounded

DELIMITERS = {".csv": ",", ".tsv": "\t"}
COLUMNS = ("path", "label")
STATE_FILE, INFO_FILE = "state.json", "dataset_info.json"
MAX_TABLE_BYTES = 32 << 20
MAX_CELL_BYTES = 1 << 14
_ROWS_AT_ONCE = 4096

_T = TypeVar("_T")
_Name = Annotated[str, msgspec.Meta(min_length=1)]
TableRow = tuple[int, list[str]]
"""The number of its last line, from 1, and its cells."""


def read_table(path: Path) -> ImageSet:
    """Read lines of path and label; a header may name the columns in any order, beside others.

    Paths are relative to the table's folder.

    Raises:
        InputError: not UTF-8, a missing column or cell, a path that does not exist or appears twice.
    """
    delimiter = DELIMITERS[path.suffix.lower()]
    rows = read_rows(path, delimiter)
    columns = _columns(rows[0][1], path) if rows else None
    if columns is not None:
        rows = rows[1:]
    if not rows:
        raise InputError(f"{path} has no rows; expected lines of path{delimiter}label")
    path_column, label_column = columns or (0, 1)
    named = ((f"line {line}", _cell(cells, path_column), _cell(cells, label_column)) for line, cells in rows)
    return _image_set(path, named)


def read_parquet(path: Path) -> ImageSet:
    """Read the columns path (text) and label (text or whole numbers) of a Parquet file.

    Paths are relative to the file's folder.

    Raises:
        EnvironmentNotAbleError: the library that reads it is not installed.
        InputError: another kind of file, a missing column or value, a path that does not exist or appears twice.
    """
    pa = _pyarrow(path)
    from pyarrow import parquet

    try:
        open_regular(path).close()  # the library would wait for the writer of a pipe
        schema = parquet.read_schema(path)
        missing = next((name for name in COLUMNS if name not in schema.names), None)
        if missing is not None:
            raise InputError(
                f"{path} has no column {missing!r}; it has {_shown(', '.join(schema.names))}; expected path and label"
            )
        kinds = _kinds(schema)
        texts = [pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in kinds]
        if not texts[0] or not (texts[1] or pa.types.is_integer(kinds[1])):
            raise InputError(
                f"{path}: expected path as text and label as text or whole numbers, got "
                + " and ".join(str(kind) for kind in kinds)
            )
        # As dictionaries, where the file has them: one text may stand for any number of rows.
        with parquet.ParquetFile(path, read_dictionary=list(COLUMNS)) as file:
            return _image_set(path, _parquet_rows(path, file, pa))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a Parquet file: {' '.join(str(error).split())[:200]}") from error


def _parquet_rows(path: Path, file: Any, pa: Any) -> Iterator[tuple[str, str, str]]:
    """Yield where each row stands, its path and its label, some rows in memory at a time."""
    from pyarrow import compute

    row = 0
    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(COLUMNS)):
        columns = [batch.column(name) for name in COLUMNS]
        for column in columns:
            values = column.dictionary if pa.types.is_dictionary(column.type) else column
            if not pa.types.is_integer(values.type):
                longest = compute.max(compute.binary_length(values)).as_py() or 0
                if longest > MAX_CELL_BYTES:
                    raise InputError(f"{path} has a cell of {longest} bytes; at most {MAX_CELL_BYTES} are read")
        for pair in zip(*(column.to_pylist() for column in columns), strict=True):
            row += 1
            name, label = ("" if value is None else str(value).strip() for value in pair)
            yield f"row {row}", name, label


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise EnvironmentNotAbleError(
            f"{path} needs the library pyarrow: pip install 'p4q-edge[parquet]', or write the table as .csv"
        ) from error
    return pyarrow


class _Info(msgspec.Struct):
    features: dict[str, Any]


class _State(msgspec.Struct):
    files: tuple[dict[str, str], ...] = msgspec.field(name="_data_files")


@dataclass
class _ArrowImages:
    """Reads encoded images out of Arrow files; it can be sent to another process, which maps the files itself."""

    files: tuple[Path, ...]
    column: str
    starts: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        self._columns: dict[int, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.files, self.column, self.starts)

    def read(self, index: int) -> bytes:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        if number not in self._columns:
            self._columns[number] = _arrow_table(self.files[number]).column(self.column)
        try:
            image = self._columns[number][index - int(self.starts[number])].as_py()
        except (ValueError, OverflowError) as error:  # of what lies beside an image: words, times
            raise InputError(
                f"{self._place(index)}: it cannot be read ({one_line(error)}); save the data set again"
            ) from error
        data = image.get("bytes") if isinstance(image, dict) else None
        if not isinstance(data, bytes):  # a word would be a path, perhaps to elsewhere
            raise InputError(
                f"{self._place(index)}: it is not in the file, which may only name it; embed the images with "
                "`datasets` and save again"
            )
        return data

    def open(self, index: int) -> Image.Image:
        data = self.read(index)
        try:
            return load_image(data)
        except InputError as error:
            raise InputError(f"{self._place(index)}: {error}") from error

    def _place(self, index: int) -> str:
        return f"{self.files[0].parent}, image {index}"


def is_dataset_folder(path: Path) -> bool:
    """Return whether a folder is one that `save_to_disk` of Hugging Face's `datasets` wrote."""
    return (path / STATE_FILE).is_file() and (path / INFO_FILE).is_file()


def read_dataset_folder(path: Path) -> ImageSet:
    """Read what `save_to_disk` of Hugging Face's `datasets` wrote: a column of images and one of class labels.

    The Arrow files are mapped; nothing of the folder is run, and the library itself is not needed.

    Raises:
        EnvironmentNotAbleError: the library that reads Arrow files is not installed.
        InputError: other columns, a damaged file, an image without a label.
    """
    pa = _pyarrow(path)
    try:
        info, state = _described(path / INFO_FILE, _Info), _described(path / STATE_FILE, _State)
    except CorruptArtifactError as error:
        raise InputError(f"{path} is not a saved data set: {error}") from error
    kinds = {name: kind.get("_type", "") if isinstance(kind, dict) else "" for name, kind in info.features.items()}
    image, label = (_only(path, kinds, kind) for kind in ("Image", "ClassLabel"))
    names = _class_names(path, info.features[label])
    # Their names alone: a folder does not say what is read outside of it.
    files = tuple(path / Path(entry.get("filename", "")).name for entry in state.files)
    if len(set(files)) < len(files):
        raise InputError(f"{path}: {STATE_FILE} names a file twice. Save it again.")
    try:
        tables = [_arrow_table(file) for file in files]
        kinds_here = {table.schema.field(label).type for table in tables if table.schema.field(image)}
        other = next((kind for kind in kinds_here if not pa.types.is_integer(kind)), None)
        labels = [] if other else [value for table in tables for value in table.column(label).to_pylist()]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}. Save it again.") from error
    if other is not None or None in labels or not labels:
        what = f"labels are {other}" if other else "an image has no label" if labels else "has no images"
        raise InputError(f"{path}: {what}; expected the number of a class for each image")
    starts = np.cumsum([0, *(len(table) for table in tables)])[:-1]
    images = _ArrowImages(files=files, column=image, starts=starts)
    return ImageSet(
        names=tuple(f"{path.name}[{row}]" for row in range(len(labels))),
        labels=checked_labels(labels, names, str(path)),
        class_names=names,
        open_image=images.open,
        read_bytes=images.read,
    )


def _described(path: Path, kind: type[_T]) -> _T:
    return decode_json(read_bounded(path, limit_bytes=MAX_TABLE_BYTES, kind="description"), kind, source=str(path))


def _class_names(path: Path, described: dict[str, Any]) -> tuple[str, ...]:
    try:
        names = msgspec.convert(described.get("names"), tuple[_Name, ...])
    except msgspec.ValidationError as error:
        raise InputError(
            f"{path}: the names of the classes are not a list of words ({error}). Save it again."
        ) from error
    return tuple(map(same_form, names))


def _only(path: Path, kinds: dict[str, str], kind: str) -> str:
    found = [name for name, known in kinds.items() if known == kind]
    if len(found) != 1:
        raise InputError(
            f"{path}: expected one column of {kind}, got {len(found)} among {_shown(', '.join(kinds))}; "
            "select columns with `datasets` and save again"
        )
    return found[0]


def _arrow_table(file: Path) -> Any:
    import pyarrow as pa

    if not _is_file(file):  # the opening of a pipe would wait for its writer
        raise FileNotFoundError(errno.ENOENT, f"{_shown(file)} is not a file")
    try:
        table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
        # The format is not checked when it is mapped: a wrong offset would be read wherever it points.
        table.validate(full=True)
    except UnicodeDecodeError as error:  # of the library's own message, which cites the file
        raise pa.ArrowInvalid("it is damaged") from error
    return table


def _kinds(schema: Any) -> list[Any]:
    kinds = [schema.field(name).type for name in COLUMNS]
    return [getattr(kind, "value_type", kind) for kind in kinds]


def _image_set(path: Path, rows: Iterable[tuple[str, ...]]) -> ImageSet:
    """Return the images of rows: where the row stands, its path and its label."""
    places: dict[Path, str] = {}
    files: list[Path] = []
    words: list[str] = []
    for place, *named in rows:
        if not all(named):
            raise InputError(f"{path}, {place}: expected path and label, got {str(named)[:200]}")
        file = path.parent / named[0]
        same = plain_path(file)
        if same in places:
            raise InputError(f"{path}, {place}: {_shown(named[0])} appears again, after {places[same]}; name it once")
        if not _is_file(file):
            raise InputError(
                f"{path}, {place}: {_shown(file)} does not exist; paths are relative to the table's folder"
            )
        places[same] = place
        files.append(file)
        words.append(same_form(named[1]))
    if not words:
        raise InputError(f"{path} has no rows; expected path and label")
    class_names = in_label_order(words)
    index = {name: number for number, name in enumerate(class_names)}
    return from_paths(files, [index[word] for word in words], class_names, path.parent)


def plain_path(path: Path) -> Path:
    """Return a path by which the same file is known again, however it was written; links stay as they are."""
    kept: list[str] = []
    for part in path.absolute().parts:
        # What lies above a link is not what the link's name stands below.
        if part == ".." and len(kept) > 1 and kept[-1] != ".." and not _is_link(Path(*kept)):
            kept.pop()
        elif part != ".." or len(kept) != 1:  # above the root there is nothing
            kept.append(part)
    return Path(*kept)


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except (OSError, ValueError):  # a name that no file can have
        return False


def read_rows(path: Path, delimiter: str) -> list[TableRow]:
    """Return the rows of a table that are not empty.

    Raises:
        InputError: not UTF-8, or no table.
    """
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
