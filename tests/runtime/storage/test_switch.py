"""Files that belong together are met all old or all new, wherever a writer dies."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p4q_edge.runtime.errors import P4QEdgeError, UsageError
from p4q_edge.runtime.storage import complete_entries, complete_switch, switch, switch_entries, switch_files

OLD = {"": b"old engine", ".optimized": b"old copy", ".json": b"old card"}
NEW = {"": b"new engine", ".optimized": b"new copy", ".json": b"new card"}
CALLS = ("fsync", "rename", "replace", "mkdir", "rmdir", "open", "unlink")


class Killed(BaseException):
    """Stands for the death of the process."""


@contextlib.contextmanager
def dying(at: int, die: Callable[[], None]) -> Iterator[list[str]]:
    """Let the process die before or after the call of the system number `at // 2`."""
    own = {name: getattr(os, name) for name in CALLS}
    made: list[str] = []

    def wrap(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            number = len(made)
            made.append(name)
            if at == 2 * number:
                die()
            result = own[name](*arguments, **keywords)
            if at == 2 * number + 1:
                die()
            return result

        return call

    try:
        for name in CALLS:
            setattr(os, name, wrap(name))
        yield made
    finally:
        for name, function in own.items():
            setattr(os, name, function)


def _raise() -> None:
    raise Killed


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _boundaries(tmp_path: Path) -> int:
    with dying(-1, _raise) as made:
        switch_files(tmp_path / "count" / "out.onnx", NEW)
    return 2 * len(made)


def _state(main: Path) -> dict[str, bytes]:
    """Contents by suffix; those of folders are empty."""
    found = sorted(main.parent.iterdir())
    return {path.name.removeprefix(main.name): b"" if path.is_dir() else path.read_bytes() for path in found}


def test_files_are_replaced_together_and_nothing_else_is_left(tmp_path: Path) -> None:
    main = tmp_path / "deep" / "out.onnx"
    for files in (OLD, NEW):
        switch_files(main, files)
        assert _state(main) == files


@pytest.mark.parametrize("died", ["raised", "killed"])
@pytest.mark.parametrize("before", [OLD, {}], ids=["rebuild", "first"])
def test_a_writer_that_dies_anywhere_leaves_all_old_or_all_new(
    tmp_path: Path, died: str, before: dict[str, bytes]
) -> None:
    boundaries = _boundaries(tmp_path)
    assert boundaries > 20
    outcomes = set()
    for at in range(boundaries):
        main = tmp_path / str(at) / "out.onnx"
        main.parent.mkdir()
        if before:
            switch_files(main, before)
        if died == "raised":
            with dying(at, _raise), contextlib.suppress(Killed):
                switch_files(main, NEW)
        elif (child := os.fork()) == 0:
            with dying(at, _kill):
                switch_files(main, NEW)
            os._exit(0)
        else:
            os.waitpid(child, 0)
        complete_switch(main)  # what every reader does first
        visible = {name: data for name, data in _state(main).items() if not name.startswith(".out")}
        assert visible in (before, NEW), at
        outcomes.add(visible == NEW)
        switch_files(main, NEW)
        assert _state(main) == NEW, f"leftovers after the next run: {at}"
    assert outcomes == {True, False}


FIRST = {"a/1/model": b"first a", "b/config": b"first b", "note.txt": b"first note"}
SECOND = {"a/2/model": b"second a", "b/config": b"second b", "note.txt": b"second note"}


def _tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("before", [FIRST, pytest.param({}, marks=pytest.mark.slow)], ids=["again", "first"])
def test_entries_of_a_folder_are_replaced_together_wherever_the_writer_is_killed(
    tmp_path: Path, before: dict[str, bytes]
) -> None:
    others = {"other/model": b"another's"}
    with dying(-1, _raise) as made:
        switch_entries(tmp_path / "count", "own", SECOND, empty=("c",))
    outcomes = set()
    for at in range(2 * len(made)):
        folder = tmp_path / str(at) / "models"
        switch_entries(folder, "others", others)
        if before:
            switch_entries(folder, "own", before)
        if (child := os.fork()) == 0:
            with dying(at, _kill):
                switch_entries(folder, "own", SECOND, empty=("c",))
            os._exit(0)
        os.waitpid(child, 0)
        complete_entries(folder, "own")
        assert _tree(folder) in (before | others, SECOND | others), at
        assert (folder / "c").is_dir() == ("a/2/model" in _tree(folder))
        outcomes.add("a/2/model" in _tree(folder))
        assert [path.name for path in folder.parent.iterdir()] == ["models"], f"leftovers: {at}"
        switch_entries(folder, "own", SECOND)
        assert _tree(folder) == SECOND | others
    assert outcomes == {True, False}


def test_entries_are_written_within_where_the_folder_above_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    own = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path and own(path, mode))
    switch_entries(folder, "own", FIRST)
    assert _tree(folder) == FIRST
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "note.txt"]


@pytest.mark.parametrize("linked", [False, True])
def test_an_entry_takes_the_place_of_one_of_another_kind(tmp_path: Path, linked: bool) -> None:
    folder = tmp_path / "models"
    switch_entries(folder, "own", {"a": b"a file", "note.txt/in": b"in a folder", "b": b"another"})
    if linked:
        (folder / "b").unlink()
        (folder / "b").symlink_to(tmp_path / "nowhere")
    switch_entries(folder, "own", FIRST)
    assert _tree(folder) == FIRST
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def _killed_after_the_commit(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(path: Path, target: Path) -> None:
        raise Killed

    with monkeypatch.context() as patched, contextlib.suppress(Killed):
        patched.setattr(switch, "_replace_entry", die)
        switch_entries(folder, name, FIRST)
    assert _tree(folder) == {}


def test_what_is_left_for_one_folder_is_not_finished_in_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _killed_after_the_commit(tmp_path / "models", "a-own", monkeypatch)
    switch_entries(tmp_path / "models-a", "own", SECOND)
    assert _tree(tmp_path / "models-a") == SECOND
    complete_entries(tmp_path / "models", "a-own")
    assert _tree(tmp_path / "models") == FIRST


def test_what_is_left_is_finished_by_whoever_comes_by_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    _killed_after_the_commit(tmp_path / "deep" / "models", "own", monkeypatch)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "models")
    complete_entries(tmp_path / "link", "own")
    assert _tree(tmp_path / "deep" / "models") == FIRST


def test_a_folder_that_cannot_be_written_is_told_of_before_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, own = tmp_path / "models", os.access
    folder.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and own(path, mode))
    with pytest.raises(UsageError, match="cannot write .*models: Permission denied"):
        switch_entries(folder, "own", FIRST)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_two_writers_leave_the_entries_of_one(tmp_path: Path) -> None:
    folder, children = tmp_path / "models", []
    for number in range(4):
        if (child := os.fork()) == 0:
            for _ in range(20):
                switch_entries(folder, "own", {path: data + str(number).encode() for path, data in FIRST.items()})
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    complete_entries(folder, "own")
    assert set(_tree(folder)) == set(FIRST)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_two_writers_leave_the_files_of_one(tmp_path: Path) -> None:
    main = tmp_path / "out.onnx"
    children = []
    for number in range(4):
        if (child := os.fork()) == 0:
            for _ in range(20):
                switch_files(main, {suffix: data + str(number).encode() for suffix, data in NEW.items()})
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    complete_switch(main)
    assert len({data[-1:] for data in _state(main).values()}) == 1
    assert set(_state(main)) == set(NEW)


def test_a_full_disk_keeps_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = tmp_path / "out.onnx"
    switch_files(main, OLD)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(P4QEdgeError, match="the disk is full"):
        switch_files(main, NEW)
    assert _state(main) == OLD


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write .*Name a file in a folder"):
        switch_files(tmp_path / "file" / "out.onnx", NEW)
