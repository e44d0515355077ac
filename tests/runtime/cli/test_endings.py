"""However a command is ended, it ends soon, with its code and one line."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec
import pytest

from p4q_edge.runtime.artifacts.card import read_card, write_card
from p4q_edge.runtime.cli import interruption
from p4q_edge.runtime.cli.interruption import Interruption

MAIN = "import sys; from p4q_edge.runtime.cli.main import main; sys.exit(main())"
# A library that computes in native code without end, or is imported without end.
STUCK = """
import os, sys, time, types
from p4q_edge.runtime.cli import command, main as _
import p4q_edge.runtime.cli.main as cli
def native():
    import ctypes, threading
    threading.Timer(0.2, lambda: print("started", file=sys.stderr, flush=True)).start()
    mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex), lock(mutex)  # without the interpreter's lock, deaf to signals
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            print("started", file=sys.stderr, flush=True)
            while True:
                try:
                    time.sleep(60)
                except KeyboardInterrupt:
                    raise ImportError("numpy is broken")
if sys.argv.pop(1) == "import":
    sys.meta_path.insert(0, Finder())
else:
    cli._dispatch = lambda arguments: native()
sys.exit(cli.main())
"""


def _ended(*arguments: object, program: str = MAIN, stdout: int | IO[bytes] = subprocess.PIPE) -> tuple[int, str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    result = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, timeout=300, check=False)
    return result.returncode, result.stderr.decode()


@pytest.mark.parametrize("where", ["native", "import"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_with_its_code_and_one_line(
    tiny_engine: Path, photo: Path, where: str, number: int, code: int
) -> None:
    command = [sys.executable, "-c", STUCK, where, "classify", str(tiny_engine), str(photo)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"started\n"
        process.send_signal(number)
        process.wait(timeout=60)  # asleep for 60 s otherwise; the grace is 1.5 s
        errors = process.stderr.read().decode()
    assert process.returncode == code
    assert errors.splitlines() in (["interrupted"], ["error: interrupted"]), errors


COUNTING = """
import os, signal, sys, threading, time
import p4q_edge.runtime.cli.main as cli
from p4q_edge.runtime.cli import interruption, progress_bar
from p4q_edge.runtime.progress import task
if "deaf" not in sys.argv:
    interruption.GRACE_SECONDS = 100.0  # however slow the machine is, it ends by itself before
progress_bar.SHOWN_AFTER_S = progress_bar.LINE_EVERY_S = 0.0
progress_bar.PULSE_S = 0.01
stop = progress_bar.ProgressBar.stop
def stopped(bar):
    stop(bar)
    with bar._lock:  # a line that the pulse has begun comes to its end
        print("stopped", file=sys.stderr, flush=True)
progress_bar.ProgressBar.stop = stopped
def deaf(arguments):
    with task("learn", total=1):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        finally:
            time.sleep(0.1)
            if "deaf" in sys.argv:
                time.sleep(60)
cli._dispatch = deaf
sys.exit(cli.main())
"""


@pytest.mark.parametrize(("how", "last"), [("soon", "error: interrupted"), ("deaf", "interrupted")])
def test_a_command_that_a_signal_ends_counts_no_further(how: str, last: str) -> None:
    code, errors = _ended(how, program=COUNTING)
    assert code == 130
    lines = errors.splitlines()
    after = lines[lines.index("stopped") :]
    assert [line for line in after if line != "stopped"] == [last], errors[-1000:]


def test_the_last_word_takes_the_place_of_a_bar_on_a_terminal() -> None:
    terminal, end = pty.openpty()
    program = (
        "import os; from p4q_edge.runtime.cli.interruption import end_process; os.write(2, b'bar'); end_process(130)"
    )
    assert subprocess.run([sys.executable, "-c", program], stderr=end, timeout=60, check=False).returncode == 130
    assert os.read(terminal, 100) == b"bar\r\033[Kinterrupted\r\n"
    os.close(terminal)
    os.close(end)


@pytest.mark.parametrize("stderr", ["closed", "full"])
def test_a_stderr_that_takes_no_line_holds_no_command(stderr: str) -> None:
    """As `2>&1 | less` does that was left, or stands still."""
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", STUCK, "native"], stdout=subprocess.DEVNULL, stderr=writing)
    try:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            assert pipe.readline() == b"started\n"
            if stderr == "closed":
                pipe.close()
            os.set_blocking(writing, False)
            with suppress(BlockingIOError, BrokenPipeError):
                while True:
                    os.write(writing, bytes(4096))
            os.set_blocking(writing, True)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=120) == 130
    finally:
        process.kill()
        process.wait()
        os.close(writing)


IMPORTING = """
import sys
sys.path.insert(0, sys.argv[1])
from p4q_edge.runtime.cli import interruption
interruption.GRACE_SECONDS = 100.0  # the import may take as long as it takes
interruption.Interruption().watch()
try:
    import slow
    while True:
        pass
except KeyboardInterrupt:
    print(slow.DONE, file=sys.stderr)
"""


def test_an_import_is_not_broken_off(tmp_path: Path) -> None:
    """Native modules that are half imported crash later."""
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.2)\nDONE = 'whole'\n"
    )
    assert _ended(tmp_path, program=IMPORTING) == (0, "whole\n")


EARLY = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "p4q_edge.runtime":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from p4q_edge.__main__ import run
sys.exit(run())
"""


def test_a_signal_before_anything_is_imported_is_one_line() -> None:
    assert _ended("--help", program=EARLY) == (130, "interrupted\n")


IGNORED = """
import os, signal, time
from p4q_edge.runtime.cli.interruption import Interruption
signal.signal(signal.SIGINT, signal.SIG_IGN)
Interruption().watch()
os.kill(os.getpid(), signal.SIGINT)
time.sleep(3)  # twice the grace
"""


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As of a job that a shell started in the background."""
    assert _ended(program=IGNORED) == (0, "")


def test_a_signal_that_the_thread_saw_first_is_raised_once() -> None:
    first = Interruption()
    first.signal = signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        first._raise(signal.SIGTERM, None)
    first._raise(signal.SIGINT, None)  # the second waits for the end that the first brings
    assert first.exit_code == 143


def test_whatever_befalls_who_is_asked_for_the_last_word_the_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> str:
        raise OSError("nobody keeps the notes any more")

    ended: list[tuple[int, str | None]] = []
    monkeypatch.setattr(interruption, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(interruption, "end_process", lambda code, *, word: ended.append((code, word)))
    monkeypatch.setattr(Interruption, "last_word", staticmethod(fails))
    with pytest.raises(OSError, match="nobody keeps"):
        Interruption()._end(signal.SIGTERM)
    assert ended == [(143, "interrupted")]


def test_a_full_stdout_is_one_line(tiny_engine: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        for arguments in (("inspect", tiny_engine), ("inspect", tiny_engine, "--json"), ("--help",), ("--version",)):
            code, errors = _ended(*arguments, stdout=full)
            assert code == 1
            assert errors == "error: cannot write to stdout: No space left on device. Direct it elsewhere.\n"


def test_a_closed_stdout_is_one_line(tiny_engine: Path) -> None:
    again = f"[sys.executable, '-c', {MAIN!r}, *sys.argv[1:]]"
    closing = f"import os, sys; os.close(1); os.execv(sys.executable, {again})"
    code, errors = _ended("inspect", tiny_engine, program=closing)
    assert code == 1
    assert errors == "error: cannot write to stdout: it is closed. Direct it elsewhere.\n"


def test_names_that_steer_a_terminal_are_shown(tiny_engine: Path, photo: Path, run: object) -> None:
    names = ("\x1b[2Jevil", "two\nlines", "\u202etfel")
    write_card(tiny_engine, msgspec.structs.replace(read_card(tiny_engine), class_names=names), force=True)
    for arguments in (("classify", tiny_engine, photo), ("inspect", tiny_engine), ("head", "list", tiny_engine)):
        _, out, err = run(*arguments)  # type: ignore[operator]
        assert "\\x1b[2Jevil" in out
        assert "two\\nlines" in out
        assert not set(out + err) & {"\x1b", "\u202e"}
