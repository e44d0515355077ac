"""Answers to many images as a table: CSV, JSON lines or Parquet. A table is there complete, or not at all."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from p4q_edge.runtime.errors import EnvironmentNotAbleError, UsageError
from p4q_edge.runtime.storage import atomic_write, require_writable

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".csv", ".jsonl", ".parquet")
COLUMNS = ("path", "label", "score", "known", "error")
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """The answer to one image; of one that cannot be used only `path` and `error` are set.

    Attributes:
        path: of the image; empty where it has none.
        label: its best class.
        score: of this class.
        known: whether the score reaches its threshold.
        error: why the image cannot be used.
        embedding: (dim,) float32, where it was asked for.
    """

    path: str
    label: str | None = None
    score: float | None = None
    known: bool | None = None
    error: str | None = None
    embedding: np.ndarray | None = None


def require_table(path: Path, *, embeddings: bool, force: bool) -> None:
    """Raise before any work where a table cannot be written.

    Raises:
        UsageError: of another suffix, embeddings for a table that has no place for them, or the file exists.
        EnvironmentNotAbleError: it is a Parquet file, and pyarrow is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"expected a table ending in {', '.join(SUFFIXES)}, got {path}.")
    if embeddings and suffix == ".csv":
        raise UsageError(f"a CSV file has no place for embeddings: name a .parquet or .jsonl file instead of {path}.")
    if suffix == ".parquet":
        require_pyarrow()
    require_writable(path, force=force)


def require_pyarrow() -> None:
    """Raise `EnvironmentNotAbleError` where Parquet files cannot be read or written."""
    if importlib.util.find_spec("pyarrow") is None:
        raise EnvironmentNotAbleError(
            "Parquet files need pyarrow, which this Python lacks. Run: pip install 'p4q-edge-runtime[parquet]'"
        )


def write_table(path: Path, rows: Iterable[Row], *, embeddings: bool = False, force: bool = False) -> int:
    """Write rows as they come, in the form that the suffix names; return their number.

    Args:
        path: the table.
        rows: answers in order.
        embeddings: whether there is a column `embedding`.
        force: replace an existing file.

    Raises:
        UsageError: see `require_table`.
        EnvironmentNotAbleError: see `require_table`.
    """
    require_table(path, embeddings=embeddings, force=force)
    writers: dict[str, Callable[[BinaryIO, Iterator[Row], bool], int]] = {
        ".csv": _write_csv,
        ".jsonl": _write_lines,
        ".parquet": _write_parquet,
    }
    written = [0]

    def write(file: BinaryIO) -> None:
        written[0] = writers[path.suffix.lower()](file, iter(rows), embeddings)

    atomic_write(path, write, force=force)
    return written[0]


def _fields(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in COLUMNS}


def _write_csv(file: BinaryIO, rows: Iterator[Row], embeddings: bool) -> int:
    # Names of files need not be text; their bytes are kept.
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    count = 0
    for row in rows:
        count += 1
        known = "" if row.known is None else str(row.known).lower()
        score = "" if row.score is None else f"{row.score:.6f}"
        writer.writerow([row.path, row.label or "", score, known, row.error or ""])
    text.flush()
    text.detach()
    return count


def _write_lines(file: BinaryIO, rows: Iterator[Row], embeddings: bool) -> int:
    count = 0
    for row in rows:
        count += 1
        fields = {name: value for name, value in _fields(row).items() if value is not None}
        if embeddings and row.embedding is not None:
            fields["embedding"] = row.embedding.tolist()
        # ASCII alone holds every name, also those that are no text.
        file.write(json.dumps(fields, allow_nan=False).encode("ascii") + b"\n")
    return count


def _write_parquet(file: BinaryIO, rows: Iterator[Row], embeddings: bool) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = [("path", pa.string()), ("label", pa.string()), ("score", pa.float64()), ("known", pa.bool_())]
    kinds.append(("error", pa.string()))
    if embeddings:
        kinds.append(("embedding", pa.list_(pa.float32())))
    schema = pa.schema(kinds)
    count = 0
    with pq.ParquetWriter(file, schema) as writer:
        while part := list(islice(rows, _ROWS_AT_ONCE)):
            count += len(part)
            columns = {name: [_text(getattr(row, name)) for row in part] for name in schema.names}
            writer.write_table(pa.table(columns, schema=schema))
    return count


def _text(value: object) -> object:
    """Return a value as Parquet can hold it: names that are no text with escapes such as `\\udce9`."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
