"""Replace several files of a folder together: a reader meets all of them old, or all of them new.

The new files are written into a hidden folder beside the old ones. Renaming that folder to `.NAME.next` is the one
commit point: before it nothing has changed, after it whoever opens NAME next finishes what a killed writer left. Whole
entries of a folder are replaced in the same way by `switch_entries`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from p4q_edge.runtime.storage.files import (
    is_read_only,
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
                _commit(staged, _pending(main), lambda: complete_switch(main))
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


def switch_entries(
    folder: Path, name: str, files: Mapping[str, bytes | Callable[[BinaryIO], object]], empty: tuple[str, ...] = ()
) -> None:
    """Replace entries of a folder together, each whole: what is in it under other names stays.

    They are written beside the folder, whose readers may take every folder in it for one of theirs; in it where its
    parent is on another disk or cannot be written.

    Args:
        folder: what the entries are in; it is made.
        name: of what is written, the same for whoever replaces these entries; without `@`.
        files: by path in the folder, with `/`: contents, or a function that writes them.
        empty: folders without a file, likewise.

    Raises:
        UsageError: the folder cannot be written.
        P4QEdgeError: the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if is_read_only(folder):  # told of before the commit, which would wait there until it can be finished
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        pending = _pending_entries(folder, name)
        staged = temporary_path(pending)
        try:
            staged.mkdir()
            with locked(staged):
                for path in empty:
                    (staged / path).mkdir(parents=True, exist_ok=True)
                for path, data in files.items():
                    (staged / path).parent.mkdir(parents=True, exist_ok=True)
                    write_synced(staged / path, data)
                for below, _, _ in os.walk(staged, topdown=False):
                    sync_folder(Path(below))
                _commit(staged, pending, lambda: complete_entries(folder, name))
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        complete_entries(folder, name)
    except OSError as error:
        raise write_error(folder, error) from error


def complete_entries(folder: Path, name: str) -> None:
    """Finish what `switch_entries` committed and a killed writer did not live to finish; usually there is nothing.

    Raises:
        UsageError: there is something, and the folder cannot be written.
    """
    pending = _pending_entries(folder, name)
    try:
        try:
            remove_leftovers(pending.parent)
            found = sorted(pending.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return
        for path in found:
            with contextlib.suppress(FileNotFoundError):  # another process may finish it at the same time
                _replace_entry(path, folder / path.name)
        sync_folder(folder)
        with contextlib.suppress(OSError):  # gone, or the next switch's already
            pending.rmdir()
    except OSError as error:
        raise write_error(folder, error) from error


def _replace_entry(path: Path, target: Path) -> None:
    """Move an entry to its place; where another process did it first, `FileNotFoundError` says so."""
    for _ in range(_ATTEMPTS):
        old = temporary_path(path.parent)
        plain = not (path.is_dir() or target.is_dir() or target.is_symlink())  # a file takes the place of a file
        if path.exists() and not plain:
            with contextlib.suppress(FileNotFoundError):
                target.rename(old)
        try:
            path.rename(target)
        except OSError as error:
            with contextlib.suppress(OSError):  # what was put aside is another's work, unless that is newer
                old.rename(target)
            _remove(old)
            if error.errno not in _TAKEN:
                raise
            continue
        _remove(old)
        return
    raise OSError(errno.EBUSY, "other processes keep replacing it")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _pending_entries(folder: Path, name: str) -> Path:
    own = folder.resolve()  # the same for whoever comes by a link
    same_disk = not own.exists() or own.stat().st_dev == own.parent.stat().st_dev
    place = own.parent if same_disk and os.access(own.parent, os.W_OK | os.X_OK) else own
    # No name has an @: two folders beside each other never have the same file.
    return place / f".{own.name}@{name}.next"


def _commit(staged: Path, pending: Path, complete: Callable[[], None]) -> None:
    for _ in range(_ATTEMPTS):
        complete()
        try:
            staged.rename(pending)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            continue  # another writer committed in between
        sync_folder(pending.parent)
        return
    raise OSError(errno.EBUSY, "other processes keep replacing it")


def _pending(main: Path) -> Path:
    return main.with_name(f".{main.name}.next")
