"""The cache folder of this user, and what libraries compiled for this device and would compile again without it.

Such files are given to native code, in part as native code. They are kept where this user alone can write, with their
digest in front, and not beside an engine, whose folder may have come from elsewhere.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
from pathlib import Path

import msgspec

from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.storage.files import atomic_write, read_buffer, sha256_bytes

CACHE_VARIABLE = "P4Q_EDGE_CACHE"
_DIGEST_BYTES = 64  # of a SHA-256 in hexadecimal, in front of the data

logger = logging.getLogger(__name__)


def cache_folder() -> Path | None:
    """Return this user's cache folder: `P4Q_EDGE_CACHE`, or the platform's folder; None without a home."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home, e.g. of a service
        return None
    return Path(base) / "p4q-edge"


def kept_path(folder: str, suffix: str, **facts: object) -> Path | None:
    """Return where something compiled is kept; None without a cache folder.

    Args:
        folder: in the cache folder, of the library.
        suffix: of the file.
        facts: all that it depends on, such as the digest of the engine and versions, as JSON values.
    """
    base = cache_folder()
    if base is None:
        return None
    return base / folder / f"{sha256_bytes(msgspec.json.encode(facts, order='sorted'))}{suffix}"


def read_kept(path: Path | None, *, limit_bytes: int) -> memoryview | None:
    """Return what `write_kept` left in a file; None where there is nothing that can be believed, which is logged."""
    if path is None or not path.is_file():
        return None
    if not _only_ours(path):
        logger.warning("%s is not used: other users can write to it. Delete it", path)
        return None
    try:
        data = read_buffer(path, limit_bytes=limit_bytes, kind="compiled file")
    except InputError as error:
        logger.info("%s is not used: %s", path, error)
        return None
    digest, contents = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if digest != sha256_bytes(contents).encode():
        logger.info("%s is damaged, and is rebuilt", path)
        return None
    return contents


def write_kept(path: Path | None, contents: bytes) -> None:
    """Keep something compiled for the next load; without a place for it the next load compiles again.

    Raises:
        UsageError: there is no place, or it cannot be written to.
    """
    if path is None:
        raise UsageError(f"this user has no folder for caches. Set {CACHE_VARIABLE} to one.")
    atomic_write(path, sha256_bytes(contents).encode() + contents, force=True)


def _only_ours(path: Path) -> bool:
    """Return whether nobody else can write a file or replace it in its folder, as far as its permissions tell."""
    if not hasattr(os, "geteuid"):
        return True
    for part in (path, path.parent):
        status = part.stat()
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return False
    return True
