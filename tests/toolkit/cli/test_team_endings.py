"""How processes of a team end: what the first says of the others, and what they say where it is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from p4q_edge.cli import team_work
from p4q_edge.models import Team, naming_process
from p4q_edge.runtime.cli import Interruption
from p4q_edge.runtime.errors import InputError, ProcessLostError, UsageError


class _Notes:
    """The notes that processes leave each other, in this one."""

    def __init__(self, notes: Mapping[str, str]) -> None:
        self.notes = dict(notes)

    def post(self, key: str, text: str) -> None:
        self.notes[key] = text

    def posted(self, key: str) -> str | None:
        return self.notes.get(key)


FAILURE = json.dumps({"kind": "InputError", "message": "x.png is no image"})


@pytest.mark.parametrize(
    ("raised", "notes", "expected", "text"),
    [
        (ProcessLostError("gone"), {}, ProcessLostError, "gone"),
        (ProcessLostError("gone"), {team_work.FAILED: FAILURE}, InputError, "x.png is no image"),
        (KeyboardInterrupt(), {team_work.FAILED: FAILURE}, InputError, "x.png is no image"),
        (KeyboardInterrupt(), {}, ProcessLostError, "torchrun ended this process: another one ended"),
        (UsageError("own"), {team_work.FAILED: FAILURE}, UsageError, "own"),
    ],
)
def test_the_first_process_says_why(
    raised: BaseException, notes: dict[str, str], expected: type, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = _Notes(notes)
    monkeypatch.setattr(team_work, "post", kept.post)
    monkeypatch.setattr(team_work, "posted", kept.posted)
    monkeypatch.setattr(Interruption, "last_word", Interruption.last_word)

    def run() -> Any:
        raise raised

    team_work._DIVIDING.set(True)
    try:
        with pytest.raises(expected, match=text):
            team_work._lead(Team(size=2), run)
    finally:
        team_work._DIVIDING.set(False)
    assert kept.notes[team_work.TOLD] == "yes"


@pytest.mark.parametrize(
    ("size", "notes", "told"), [(2, {}, False), (3, {}, False), (3, {team_work.TOLD: "yes"}, True)]
)
def test_another_process_speaks_where_the_first_is_silent(
    size: int, notes: dict[str, str], told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(team_work, "posted", _Notes(notes).posted)
    monkeypatch.setattr(team_work, "TOLD_WITHIN_S", 0.1)
    assert team_work._was_told(Team(rank=1, size=size)) is told


def test_an_error_of_another_library_names_its_process() -> None:
    text = json.dumps({"kind": "ZeroDivisionError", "message": "ZeroDivisionError: x (in process 3)"})
    error = team_work._error_of(text)
    assert str(error) == "ZeroDivisionError: x (in process 3)"
    assert error.exit_code == 1


SIGNALLED = """
import os, signal, sys, time
from p4q_edge.cli import team_work

told, leaves = map(int, sys.argv[1:])
team_work.FIRST_SPEAKS_S = 0.1
team_work.posted = lambda key: "yes" if told and key == team_work.TOLD else None
signal.signal(signal.SIGTERM, signal.SIG_IGN)
farewell = team_work._Farewell()
farewell.watch()
os.kill(os.getpid(), signal.SIGTERM)
if leaves:
    farewell.leave_to_caller()
    time.sleep(2 * team_work.GRACE_SECONDS)
    print("gone", file=sys.stderr)
else:
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("told", "leaves", "code", "said"),
    [
        (0, 0, 143, f"error: {team_work.ENDED}\n"),
        pytest.param(1, 0, 143, "", marks=pytest.mark.slow),
        pytest.param(0, 1, 0, "gone\n", marks=pytest.mark.slow),
    ],
)
def test_a_signal_before_the_first_is_known_to_be_gone_does_not_end_in_silence(
    told: int, leaves: int, code: int, said: str
) -> None:
    command = [sys.executable, "-c", SIGNALLED, str(told), str(leaves)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (code, said)


BUSY = """
import os, signal, sys, time
from p4q_edge.cli import team_work
from p4q_edge.models import Team
from p4q_edge.runtime.cli import Interruption

team_work.claim = lambda key: key == team_work.TELLER and sys.argv[1] == "first"
Interruption().watch()

def run():
    while True:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except KeyboardInterrupt:
            pass  # as native code, which does not listen

team_work._lead(Team(size=2), run)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "said"), [("first", f"error: {team_work.ENDED}\n"), ("second", "")])
def test_of_a_first_process_that_is_ended_where_it_is_one_process_tells(asked: str, said: str) -> None:
    command = [sys.executable, "-c", BUSY, asked]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (143, said)


@pytest.mark.parametrize("claimed", [True, False])
def test_the_last_word_of_a_team_is_that_of_one_process(claimed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team_work, "claim", lambda key: claimed and key == team_work.TELLER)
    monkeypatch.setattr(Interruption, "last_word", Interruption.last_word)
    monkeypatch.setattr(Team, "tell", lambda team, message=b"": message)
    assert Interruption.last_word() == "interrupted"
    assert team_work._lead(Team(size=2), lambda: 0) == 0
    assert Interruption.last_word() == (f"error: {team_work.ENDED}" if claimed else None)


class _Others(Team):
    """A team of two of which the first is gone, or asks for what is no work."""

    def tell(self, message: bytes = b"") -> bytes:
        if self.local_rank:
            raise ProcessLostError("gone")
        return b"no work"


@pytest.mark.parametrize(("gone", "told"), [(1, ["gone"]), (0, [])])
def test_another_process_ends_with_what_happened(
    gone: int, told: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = _Notes({})
    monkeypatch.setattr(team_work, "post", kept.post)
    monkeypatch.setattr(team_work, "posted", kept.posted)
    monkeypatch.setattr(team_work.signal, "signal", lambda *_: None)
    monkeypatch.setattr(team_work._Farewell, "watch", lambda _: None)
    with pytest.raises(SystemExit) as ended:
        team_work._follow(_Others(rank=1, size=2, local_rank=gone))
    assert ended.value.code == 1
    assert [record.message for record in caplog.records] == told
    failures = [json.loads(text)["kind"] for text in kept.notes.values()]
    assert failures == ([] if gone else ["DecodeError"])


@pytest.mark.parametrize(
    ("failed", "told"),
    [
        (UsageError("of process 1: no folder"), "of process 1: no folder (in process 1)"),
        (naming_process(UsageError("the folder of process 1 is another")), "the folder of process 1 is another"),
        (ValueError("process 7"), "ValueError: process 7 (in process 1)"),
    ],
)
def test_whether_a_message_names_its_process_is_a_mark_and_no_word_of_it(
    failed: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path of the user may hold any words."""
    kept = _Notes({})
    monkeypatch.setattr(team_work, "post", kept.post)
    monkeypatch.setattr(team_work.signal, "signal", lambda *_: None)
    monkeypatch.setattr(team_work._Farewell, "watch", lambda _: None)

    class _Asking(Team):
        def tell(self, message: bytes = b"") -> bytes:
            raise failed

    with pytest.raises(SystemExit):
        team_work._follow(_Asking(rank=1, size=2))
    assert json.loads(kept.notes[team_work.FAILED])["message"] == told


LOST = """
import atexit
from p4q_edge.cli import team_work

def nobody(card):
    raise team_work.ProcessLostError("nobody came")

atexit.register(lambda: print("the interpreter's end"))
team_work.joined_team = nobody
try:
    team_work.run_in_team(["learn"], lambda: 0)
except team_work.ProcessLostError as error:
    print(error)
"""


def test_a_lost_team_ends_without_the_interpreters_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(card: Mapping[str, str]) -> Any:
        raise ProcessLostError("nobody came")

    registered: list[Any] = []
    ended: list[Any] = []
    monkeypatch.setattr(team_work, "joined_team", nobody)
    monkeypatch.setattr(team_work.atexit, "register", registered.append)
    monkeypatch.setattr(team_work, "end_process", lambda code, *, word: ended.append((code, word)))
    with pytest.raises(ProcessLostError, match="nobody came"):
        team_work.run_in_team(["learn"], lambda: 0)
    (at_exit,) = registered
    at_exit()
    assert ended == [(1, None)]


@pytest.mark.slow
def test_a_thread_that_waits_for_the_others_does_not_abort_the_end() -> None:
    ended = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (1, "nobody came\n")
