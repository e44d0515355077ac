"""Folders for what is needed for a moment only, removed also after the process was killed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from p4q_edge.runtime.storage.files import TEMPORARY, locked, remove_leftovers, write_error


@contextmanager
def scratch_folder(within: Path | None = None) -> Iterator[Path]:
    """Give a folder for temporary files; those of processes that were killed are removed.

    Args:
        within: where to make it; None takes the system's folder for such.

    Raises:
        P4QEdgeError: the disk is full, also where that happens while the folder is used.
        UsageError: no such folder can be written.
    """
    folder = within or Path(tempfile.gettempdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=f".p4q-edge.{os.getpid()}-", suffix=TEMPORARY) as name,
            locked(Path(name)),
        ):
            yield Path(name)
    except OSError as error:
        raise write_error(folder, error) from error
