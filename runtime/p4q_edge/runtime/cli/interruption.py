"""Ctrl-C and SIGTERM end the command soon, also while a library is imported or computes."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 1.5
"""After which the process ends where it is: native code does not listen to Python's exceptions."""
LAST_WORD = "interrupted"
_CLEAR_LINE = b"\r\033[K"
"""Of a terminal, on which a bar may stand."""
_AGAIN_SECONDS = 0.02
_IMPORTING = "<frozen importlib"


def on_signals(
    numbers: Sequence[int], handler: Callable[[int, FrameType | None], object], arrived: Callable[[int], None]
) -> None:
    """Have signals handled, and let a thread know of each that arrives, also while native code computes.

    It is called in the main thread, as all that sets handlers.

    Args:
        numbers: of the signals. One that is ignored, as of a job in the background, stays so.
        handler: runs in the main thread, as soon as that runs Python.
        arrived: runs at once in a thread of all these signals, for one after the other.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)

    def listen() -> None:
        while number := os.read(reading, 1):
            if number[0] in numbers:
                arrived(number[0])

    threading.Thread(target=listen, daemon=True, name="p4q-edge-signals").start()


class Interruption:
    """What a signal asked of this process.

    Attributes:
        signal: number of the first signal that arrived; None so far.
    """

    last_word: Callable[[], str | None] = staticmethod(lambda: LAST_WORD)
    """Line of a process that is ended where it is; None: it says nothing. It is asked in another thread."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._raised = False
        self._arrived: Callable[[], None] | None = None

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.signal or signal.SIGINT)

    def watch(self, arrived: Callable[[], None] | None = None) -> None:
        """Turn SIGINT and SIGTERM into `KeyboardInterrupt`, and end the process if that does not end it.

        Args:
            arrived: called as soon as one of them arrives, in the main thread and in another; it must not wait.
        """
        self._arrived = arrived
        if threading.current_thread() is not threading.main_thread() or os.name != "posix":
            return
        on_signals((signal.SIGINT, signal.SIGTERM), self._raise, self._end)

    def _see(self, number: int) -> None:
        # The thread may see a signal before its handler runs, or after, so that neither decides who is first.
        self.signal = self.signal or number
        if self._arrived is not None:
            self._arrived()

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self._see(number)
        # Libraries in native code do not survive that an import of theirs is broken off: they crash when they are used.
        if not self._raised and not _is_import(frame):
            self._raised = True
            raise KeyboardInterrupt

    def _end(self, number: int) -> None:
        self._see(number)
        end = time.monotonic() + GRACE_SECONDS
        while (left := end - time.monotonic()) > 0:
            if self._raised:
                time.sleep(left)
                break
            time.sleep(_AGAIN_SECONDS)
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        word: str | None = LAST_WORD
        try:
            word = Interruption.last_word()
        finally:  # whatever it met: nobody else ends the process
            end_process(self.exit_code, word=word)


def end_process(exit_code: int, *, word: str | None = LAST_WORD) -> NoReturn:
    """End the process where it is, with a last line where stderr takes one: a full pipe would hold it for ever."""
    try:
        if word is not None and select.select((), (2,), (), 0)[1]:
            line = f"{word}\n".encode()
            os.write(2, _CLEAR_LINE + line if os.isatty(2) else line)
    finally:  # whatever stderr is, as a pipe whose reader is gone
        os._exit(exit_code)


def _is_import(frame: FrameType | None) -> bool:
    """Return whether a frame, or one that called it, imports a module."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORTING):
            return True
        frame = frame.f_back
    return False
