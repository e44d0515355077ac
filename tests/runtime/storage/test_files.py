"""Files appear whole or not at all, and are replaced only when told so."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.storage.files import atomic_write, read_bounded, sha256_bytes, sha256_file


def test_digests_of_bytes_and_files_agree_with_hashlib(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    path = tmp_path / "data"
    path.write_bytes(data)
    assert sha256_file(path) == sha256_bytes(data) == hashlib.sha256(data).hexdigest()


def test_bytes_and_writers_are_written_and_parents_made(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a" / "b" / "bytes", b"one")
    atomic_write(tmp_path / "writer", lambda stream: stream.write(b"two"))
    assert (tmp_path / "a" / "b" / "bytes").read_bytes() == b"one"
    assert (tmp_path / "writer").read_bytes() == b"two"


def test_an_existing_file_is_replaced_only_with_force(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with pytest.raises(UsageError, match="exists already; add --force"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    atomic_write(path, b"new", force=True)
    assert path.read_bytes() == b"new"


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")

    def half(stream: BinaryIO) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, half, force=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot write .*file/out: .* Name a file in a folder"):
        atomic_write(tmp_path / "file" / "out", b"")


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"12345")
    assert read_bounded(path, limit_bytes=5, kind="card") == b"12345"
    with pytest.raises(InputError, match="has 5 bytes; a card has at most 4"):
        read_bounded(path, limit_bytes=4, kind="card")
    with pytest.raises(InputError, match="cannot read the card .*absent: No such file"):
        read_bounded(tmp_path / "absent", limit_bytes=4, kind="card")
