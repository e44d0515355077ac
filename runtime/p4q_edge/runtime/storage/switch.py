"""Replace several files of a folder together: a reader meets all of them old, or all of them new.

The new files are written into a hidden folder beside the old ones. Renaming that folder to `.NAME.next` is the one
commit point: before it nothing has changed, after it whoever opens NAME next finishes what a killed writer left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from p4q_edge.runtime.storage.files import (
    locked,
    remove_leftovers,
    sync_folder,
    temporary_path,
    write_error,
    write_synced,
)

_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}
_ATTEMPTS = 100


def switch_files(main: Path, files: Mapping[str, bytes | Path]) -> None:
    """Replace files beside `main` together.

    Args:
        main: the file that the others belong to.
        files: contents by suffix of `main`'s name, or a file in its folder to take; "" is `main` itself, and
            the last is renamed last.

    Raises:
        UsageError: the folder cannot be written.
        P4QEdgeError: the disk is full.
    """
    staged = temporary_path(main)
    try:
        main.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(main.parent)
        try:
            staged.mkdir()
            with locked(staged):
                for position, (suffix, data) in enumerate(files.items()):
                    _stage(staged / f"{position}{suffix}", data)
                sync_folder(staged)
                _commit(staged, main)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        complete_switch(main)
    except OSError as error:
        raise write_error(main, error) from error


def complete_switch(main: Path) -> None:
    """Finish the replacement that a writer committed and did not live to finish; usually there is none.

    Raises:
        UsageError: there is one, and the folder cannot be written.
    """
    pending = _pending(main)
    try:
        try:
            found = sorted(pending.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return
        for path in found:
            # Another process may finish it at the same time.
            with contextlib.suppress(FileNotFoundError):
                path.replace(main.with_name(main.name + path.name[1:]))
        sync_folder(main.parent)
        with contextlib.suppress(OSError):  # gone, or the next switch's already
            pending.rmdir()
    except OSError as error:
        raise write_error(main, error) from error


def _stage(target: Path, data: bytes | Path) -> None:
    if isinstance(data, bytes):
        write_synced(target, data)
        return
    data.rename(target)
    with target.open("rb") as stream:
        os.fsync(stream.fileno())


def _commit(staged: Path, main: Path) -> None:
    for _ in range(_ATTEMPTS):
        complete_switch(main)
        try:
            staged.rename(_pending(main))
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            continue  # another writer committed in between
        sync_folder(main.parent)
        return
    raise OSError(errno.EBUSY, "other processes keep replacing it")


def _pending(main: Path) -> Path:
    return main.with_name(f".{main.name}.next")
