"""Digests, and writing files so that no reader ever meets half of one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from p4q_edge.runtime.errors import InputError, P4QEdgeError, UsageError
from p4q_edge.runtime.storage.terminal import quoted

_BLOCK_BYTES = 1 << 20
TEMPORARY = ".tmp"
_LEFTOVER = re.compile(r"\..+\.(\d{1,9})-[0-9a-z_]{8}\.tmp", re.DOTALL)
_ADDRESS = re.compile(r"(?P<scheme>(?i:https?|s?ftps?|s3|gs|az|hdfs)):/{1,2}(?P<rest>[^/].*)", re.DOTALL)
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


def sha256_bytes(data: bytes | memoryview) -> str:
    """Return the SHA-256 digest of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 digest of a file as 64 hexadecimal digits, reading it in blocks."""
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def not_fetched(path: str | os.PathLike[str]) -> str:
    """Return what to say where an address such as `https://...` stands for a file; empty where it is none.

    Args:
        path: as it was typed, or as a `Path`, which has one slash of the two.
    """
    text = os.fspath(path)
    found = _ADDRESS.fullmatch(text)
    if found is None or os.path.lexists(text):
        return ""
    address = f"{found['scheme']}://{found['rest']}"
    how = (
        f"Fetch it first: curl -O {quoted(address)}"
        if found["scheme"].lower().startswith(("http", "ftp"))
        else ("Copy it to this machine first, and name the copy")
    )
    return f"{address} is an address, and nothing is fetched from networks. {how}"


def what_is_at(path: Path) -> str:
    """Return what to say of a path that is no regular file: `does not exist`, `is a directory` or what else it is."""
    if path.is_dir():
        return "is a directory"
    return "is a pipe or a device, not a file" if path.exists() else "does not exist"


def require_writable(path: Path, *, force: bool) -> None:
    """Raise where no file can be made at `path`: asked before the work that would be lost with it.

    Of folders, the nearest that is there is looked at, and nothing is made.

    Raises:
        UsageError: it exists and `force` is false, it is a folder, or its folder cannot be written.
    """
    try:
        if path.exists() and not force:
            raise UsageError(f"{path} exists already; add --force to replace it, or name another file.")
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        nearest = next(parent for parent in path.absolute().parents if parent.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{nearest} is not a folder")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"the folder {nearest} is not writable")
    except OSError as error:
        raise write_error(path, error) from error


def read_bounded(path: Path, *, limit_bytes: int, kind: str) -> bytes:
    """Return the bytes of a regular file of at most `limit_bytes`.

    Raises:
        InputError: the file is missing, no regular file, not readable, or larger than a file of this kind can be.
    """
    with _readable(path, kind=kind) as stream:
        size = os.fstat(stream.fileno()).st_size
        # Python reserves what it is asked for, so that it is not asked for the limit.
        data = stream.read(size + 1) if size <= limit_bytes else b""
        while size < len(data) <= limit_bytes:  # the file grows, or tells no size
            size = len(data)
            data += stream.read(size + 1)
    _require_bounded(path, max(size, len(data)), limit_bytes=limit_bytes, kind=kind)
    return data


def read_buffer(path: Path, *, limit_bytes: int, kind: str) -> memoryview:
    """Return the bytes of a large regular file as memory that may be written to, so that libraries use it in place.

    What is appended while it is read is left out.

    Raises:
        InputError: the file is missing, no regular file, not readable, or larger than a file of this kind can be.
    """
    # Imported here so that who only looks at files does without it.
    import numpy as np

    with _readable(path, kind=kind) as stream:
        size = os.fstat(stream.fileno()).st_size
        _require_bounded(path, size, limit_bytes=limit_bytes, kind=kind)
        # Unlike `bytearray`, NumPy asks for large pages and does not fill the memory first.
        buffer = np.empty(size, np.uint8).data
        return buffer[: stream.readinto(buffer)]


@contextlib.contextmanager
def _readable(path: Path, *, kind: str) -> Iterator[io.BufferedReader]:
    try:
        with open_regular(path) as stream:
            yield stream
    except OSError as error:
        raise InputError(
            f"cannot read the {kind} {path}: {error.strerror}. Check the path and its permissions."
        ) from error


def _require_bounded(path: Path, size: int, *, limit_bytes: int, kind: str) -> None:
    if size > limit_bytes:
        raise InputError(
            f"expected at most {limit_bytes} bytes in the {kind} {path}, got {size}. Check that this is the right file."
        )


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading; a pipe or a device would let the reader wait or read without end.

    Raises:
        OSError: it cannot be opened, or is something else.
    """
    # Without O_NONBLOCK the opening of a pipe waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
    os.close(descriptor)
    if folder:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def atomic_write(
    path: str | Path, data: bytes | memoryview | Callable[[BinaryIO], object], *, force: bool = False
) -> None:
    """Write a file through a temporary one in the same folder, so that it appears complete or not at all.

    When this returns, the file survives a power cut. Temporary files of writers that were killed are removed.

    Args:
        path: the file to make; missing parent folders are made.
        data: its bytes, or a function that writes them to the binary stream it is given.
        force: replace an existing file.

    Raises:
        UsageError: the file exists and `force` is false, or the folder cannot be written.
        P4QEdgeError: the disk is full.
    """
    path = Path(path)
    try:
        require_writable(path, force=force)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        temporary = temporary_path(path)
        try:
            write_synced(temporary, data)
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> P4QEdgeError:
    """Return what it means that a file could not be written."""
    if error.errno in _FULL:
        return P4QEdgeError(f"cannot write {path}: the disk is full ({error.strerror}). Make room and run this again.")
    return UsageError(f"cannot write {path}: {error.strerror}. Name a file in a folder that you may write to.")


def temporary_path(path: Path) -> Path:
    """Return a name beside `path` for what this process writes; if it is killed, the next writer removes it."""
    # The process is named, so that a file of a living one is told from a leftover.
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")


def is_read_only(folder: Path) -> bool:
    """Return whether a folder is there and no file can be made in it, as on a medium that is mounted so."""
    return folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of writers that were killed."""
    with os.scandir(folder) as entries:
        found = [(Path(entry.path), match) for entry in entries if (match := _LEFTOVER.fullmatch(entry.name))]
    for leftover, match in found:
        if _runs(int(match[1])) or _is_locked(leftover):
            continue
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that tells other processes, in other containers too, that a temporary file has a living writer."""
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # e.g. a network file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_locked(path: Path) -> bool:
    if os.name != "posix":
        return False
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where its file system can do that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # e.g. a network file system without it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes | memoryview | Callable[[BinaryIO], object]) -> None:
    """Write a new file and bring it to the disk."""
    with path.open("xb") as stream, locked(path):
        if callable(data):
            data(stream)
        else:
            stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
