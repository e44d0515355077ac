"""A command under torchrun: the first process runs it, the others compute their share of what it divides."""

import atexit
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from p4q_edge.cli.team_card import command_card, require_same
from p4q_edge.data import Split
from p4q_edge.models import Team, claim, joined_team, memory_in_words, post, posted, present_team
from p4q_edge.recipe import Recipe
from p4q_edge.runtime import errors
from p4q_edge.runtime.cli import GRACE_SECONDS, Interruption, end_process, on_signals
from p4q_edge.runtime.errors import P4QEdgeError, ProcessLostError
from p4q_edge.runtime.progress import listening
from p4q_edge.stages import RunFiles, learn_stage, open_source, prepare

if TYPE_CHECKING:
    from p4q_edge.stages import Learned, Prepared, Source

logger = logging.getLogger(__name__)

Stages = Literal["calibrate", "learn"]

FAILED, TOLD, TELLER = "p4q-edge/failed", "p4q-edge/told", "p4q-edge/teller"
"""Notes: why one of the others failed, that the first tells the user, and which of the others does where it is gone."""
ENDED = (
    "torchrun ended this process: another one ended, which its table below then names, or it was itself asked to. What "
    "was computed is kept: run the same command again to go on"
)
TOLD_WITHIN_S = 3.0
"""How long another process leaves it to the first to say what happened."""
FIRST_SPEAKS_S = 10.0
"""The same of one that torchrun ends: it kills after 30 s."""


class Work(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the first process asks the others to take part in; all read the same images and the same run folder."""

    stages: Stages
    recipe: Recipe
    folder: str


class _Failure(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    message: str


def calibrated(recipe: Recipe, folder: Path) -> "Prepared":
    """Stages `load` and `calibrate` of a recipe, by all processes that there are."""
    with _divided("calibrate", recipe, folder) as team:
        return prepare(_opened(recipe, team), RunFiles(folder=folder))


def learned(recipe: Recipe, folder: Path, *, split: Split | None = None) -> "Learned":
    """Run all stages up to `fold` of a recipe in all processes that there are; `split` is what its data gave."""
    files = RunFiles(folder=folder)
    with _divided("learn", recipe, folder) as team:
        return learn_stage(prepare(_opened(recipe, team, split), files), files)


def _opened(recipe: Recipe, team: Team, split: Split | None = None) -> "Source":
    """Open a recipe in all processes, which must find the same; `split` is what its data gave."""
    if team.size == 1:
        return open_source(recipe, split)
    opened: Source | P4QEdgeError
    try:
        opened = open_source(recipe, split, team)
    except P4QEdgeError as error:
        opened = error
    require_same(team, opened)
    if isinstance(opened, P4QEdgeError):
        raise opened
    return opened


_DIVIDING: ContextVar[bool] = ContextVar("dividing", default=False)
"""Whether the others are at work, so that they do not wait for a word from the first process."""


@contextmanager
def _divided(stages: Stages, recipe: Recipe, folder: Path) -> Iterator[Team]:
    """Ask the other processes to take part in what is done within."""
    team = present_team()
    if team.size > 1:
        team.tell(msgspec.json.encode(Work(stages=stages, recipe=recipe, folder=str(folder.resolve()))))
        _DIVIDING.set(True)
    yield team
    _DIVIDING.set(False)  # not after an error: they would wait for the rest of the work


def run_in_team(arguments: Sequence[str], run: Callable[[], int]) -> int:
    """Run a command among the processes that torchrun started, and return this one's exit code.

    Whatever happens is told once, by the first process; by another one only where the first is gone.

    Args:
        arguments: of the command, the same in all processes.
        run: runs it.
    """
    try:
        with joined_team(command_card(arguments)) as team:
            return _lead(team, run) if team.first else _follow(team)
    except ProcessLostError:
        atexit.register(_end_at_once)
        raise


def _end_at_once() -> None:
    """End this process, all of whose words are written, without the interpreter's end.

    A thread of torch that still waits for the others would abort that, with a page of addresses.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    end_process(ProcessLostError.exit_code, word=None)


def _last_word() -> str | None:
    """Return what the one of all processes says that is asked for its last word first."""
    return f"error: {ENDED}" if claim(TELLER) else None


def _lead(team: Team, run: Callable[[], int]) -> int:
    """Run the command, then let the others end."""
    Interruption.last_word = staticmethod(_last_word)
    try:
        code = run()
        team.tell()
    except BaseException as error:
        with suppress(RuntimeError):  # whoever kept the notes is gone
            post(TOLD, "yes")
        if not isinstance(error, ProcessLostError) and not _DIVIDING.get():
            team.tell()
        failure = posted(FAILED)
        if failure is not None and isinstance(error, ProcessLostError | KeyboardInterrupt):
            raise _error_of(failure) from error
        if isinstance(error, KeyboardInterrupt):
            raise ProcessLostError(ENDED) from error
        raise
    return code


def _follow(team: Team) -> int:
    """Take part in what the first process asks for, until it asks for nothing; says nothing as long as all is well.

    Raises:
        SystemExit: something failed; the team must not be left in an orderly way, which others would have to join.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends at once: there is nothing to tidy up
    farewell = _Farewell()
    farewell.watch()
    root = logging.getLogger("p4q_edge")
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        with listening(_Silent()):
            while asked := team.tell():
                _take_part(team, msgspec.json.decode(asked, type=Work))
        return 0
    except ProcessLostError as error:
        farewell.leave_to_caller()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, for as long as it takes to say one line
        if not _was_told(team) and claim(TELLER):
            root.setLevel(level)
            logger.error("%s", error)
        raise SystemExit(error.exit_code) from error
    except Exception as error:  # whatever it is, the first process tells it
        farewell.leave_to_caller()
        what = str(error) if isinstance(error, P4QEdgeError) else f"{type(error).__name__}: {error}"
        names_process = isinstance(error, P4QEdgeError) and error.names_process
        message = what if names_process else f"{what} (in process {team.rank})"
        post(FAILED, msgspec.json.encode(_Failure(kind=type(error).__name__, message=message)).decode())
        raise SystemExit(error.exit_code if isinstance(error, P4QEdgeError) else 1) from error


class _Farewell:
    """torchrun's signal to another process, which may come before it can know that the first one is gone.

    It goes on for `GRACE_SECONDS`, to notice that and to say so.
    """

    def __init__(self) -> None:
        self._left = threading.Event()

    def watch(self) -> None:
        """Let SIGTERM end this process a moment later, also where native code computes."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # one that was ignored is not, as nobody else ends this process
        on_signals((signal.SIGTERM,), lambda *_: None, self._end)

    def leave_to_caller(self) -> None:
        """Do not end the process: whoever calls this says what happened, and ends it."""
        self._left.set()

    def _end(self, number: int) -> None:
        if self._left.wait(GRACE_SECONDS):
            return
        # What the first process computes may keep it from saying so for longer.
        end_process(128 + number, word=None if _told_within(FIRST_SPEAKS_S) else _last_word())


def _take_part(team: Team, work: Work) -> None:
    files = RunFiles(folder=Path(work.folder))
    with memory_in_words():
        prepared = prepare(_opened(work.recipe, team), files)
        if work.stages == "learn":
            learn_stage(prepared, files)


def _was_told(team: Team) -> bool:
    """Return whether the first process says what happened; of two it is the one that is gone."""
    return _told_within(TOLD_WITHIN_S if team.size > 2 else 0.0)


def _told_within(seconds: float) -> bool:
    end = time.monotonic() + seconds
    while posted(TOLD) is None:
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)
    return True


def _error_of(text: str) -> P4QEdgeError:
    failure = msgspec.json.decode(text, type=_Failure)
    kind = getattr(errors, failure.kind, P4QEdgeError)
    error: P4QEdgeError = kind(failure.message)
    return error


class _Silent:
    """Listens to progress for a process that shows none."""

    def update(self, name: str, fraction: float, detail: str = "") -> None:
        pass

    def finish(self, name: str) -> None:
        pass
