"""Digests, and writing files so that no reader ever meets half of one."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from p4q_edge.runtime.errors import InputError, UsageError

_BLOCK_BYTES = 1 << 20


def sha256_bytes(data: bytes | memoryview) -> str:
    """Return the SHA-256 digest of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 digest of a file as 64 hexadecimal digits, reading it in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise `UsageError` if `path` exists and may not be replaced."""
    if path.exists() and not force:
        raise UsageError(f"{path} exists already; add --force to replace it, or name another file.")


def read_bounded(path: Path, *, limit_bytes: int, kind: str) -> bytes:
    """Return the bytes of a regular file of at most `limit_bytes`.

    Raises:
        InputError: the file is missing, a folder, not readable, or larger than a file of this kind can be.
    """
    try:
        size = path.stat().st_size
        if size > limit_bytes:
            raise InputError(
                f"{path} has {size} bytes; a {kind} has at most {limit_bytes}. Check that this is the right file."
            )
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read the {kind} {path}: {error.strerror}. Check the path and its permissions."
        ) from error


def atomic_write(
    path: str | Path, data: bytes | memoryview | Callable[[BinaryIO], object], *, force: bool = False
) -> None:
    """Write a file through a temporary one in the same folder, so that it appears complete or not at all.

    Args:
        path: the file to make; missing parent folders are made.
        data: its bytes, or a function that writes them to the binary stream it is given.
        force: replace an existing file.

    Raises:
        UsageError: the file exists and `force` is false, or the folder cannot be written.
    """
    path = Path(path)
    refuse_existing(path, force=force)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_synced(temporary, data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}. Name a file in a folder that you may write to."
        ) from error


def _write_synced(path: Path, data: bytes | memoryview | Callable[[BinaryIO], object]) -> None:
    with path.open("xb") as stream:
        if callable(data):
            data(stream)
        else:
            stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
