"""Files appear whole or not at all, and are replaced only when told so."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from p4q_edge.runtime.errors import InputError, P4QEdgeError, UsageError
from p4q_edge.runtime.storage import files
from p4q_edge.runtime.storage.files import (
    atomic_write,
    locked,
    read_bounded,
    read_buffer,
    require_writable,
    sha256_bytes,
    sha256_file,
)


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
    for path in (tmp_path / "file" / "out", tmp_path / "file" / "new" / "out"):
        with pytest.raises(UsageError, match="cannot write .*/out: .*file is not a folder. Name a file in a folder"):
            atomic_write(path, b"")
        with pytest.raises(UsageError, match="is not a folder"):
            require_writable(path, force=True)


def test_what_is_in_the_way_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_writable(tmp_path / "new" / "out", force=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match=r"cannot write .*/out: File name too long"):
        require_writable(tmp_path / ("x" * 300) / "out", force=True)
    with pytest.raises(UsageError, match="cannot write .*: it is a folder. Name a file"):
        require_writable(tmp_path, force=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match=f"the folder {tmp_path} is not writable. Name a file"):
        require_writable(tmp_path / "new" / "out", force=True)


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"12345")
    assert read_bounded(path, limit_bytes=5, kind="card") == b"12345"
    with pytest.raises(InputError, match="expected at most 4 bytes in the card .*/data, got 5. Check that"):
        read_bounded(path, limit_bytes=4, kind="card")
    with pytest.raises(InputError, match="cannot read the card .*absent: No such file"):
        read_bounded(tmp_path / "absent", limit_bytes=4, kind="card")


def test_a_buffer_holds_the_file_may_be_written_to_and_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"12345")
    buffer = read_buffer(path, limit_bytes=5, kind="copy")
    assert buffer == b"12345"
    buffer[0] = ord("x")
    assert path.read_bytes() == b"12345"
    with pytest.raises(InputError, match="expected at most 4 bytes in the copy .*/data, got 5. Check that this is the"):
        read_buffer(path, limit_bytes=4, kind="copy")
    with pytest.raises(InputError, match="cannot read the copy .*absent: No such file"):
        read_buffer(tmp_path / "absent", limit_bytes=4, kind="copy")
    with pytest.raises(InputError, match="cannot read the copy .*: Is a directory"):
        read_buffer(tmp_path, limit_bytes=4, kind="copy")


def test_a_file_that_is_cut_while_it_is_read_gives_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"")
    assert read_buffer(path, limit_bytes=5, kind="copy") == b""
    path.write_bytes(b"12345")
    # Between asking for the size and reading.
    monkeypatch.setattr(files, "_require_bounded", lambda path, size, **_: os.truncate(path, size - 3))
    assert read_buffer(path, limit_bytes=5, kind="copy") == b"12"


def test_leftovers_of_killed_writers_are_removed_and_those_of_living_ones_kept(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead = (tmp_path / f".out.{child.pid}-0123abcd.tmp", tmp_path / f".other.{child.pid}-0123abcd.tmp")
    living = tmp_path / f".out.{os.getppid()}-0123abcd.tmp"
    elsewhere = tmp_path / f".out.{child.pid}-89abcdef.tmp"  # of a container with other numbers of processes
    others = (living, elsewhere, tmp_path / ".out.0123abcd.tmp", tmp_path / f".out.{child.pid}.tmp")
    for path in (*dead, *others):
        path.touch()
    folder = tmp_path / f".out.{child.pid}-00000000.tmp"
    (folder / "deep").mkdir(parents=True)
    with locked(elsewhere):
        atomic_write(tmp_path / "out", b"new")
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "out"])


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    atomic_write(tmp_path / "out", b"new")
    assert calls == ["file", "rename", "folder"]


@pytest.mark.parametrize(("code", "message"), [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full")])
def test_a_full_disk_is_said_and_the_old_file_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "out").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(P4QEdgeError, match=message) as caught:
        atomic_write(tmp_path / "out", b"new", force=True)
    assert caught.value.exit_code == 1
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="cannot read the card .*: not a regular file"):
            read_bounded(path, limit_bytes=4, kind="card")
