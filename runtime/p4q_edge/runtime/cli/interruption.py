"""Ctrl-C and SIGTERM end the command soon, also while a library is imported or computes."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

GRACE_SECONDS = 1.5
"""After which the process ends where it is: native code does not listen to Python's exceptions."""


class Interruption:
    """What a signal asked of this process.

    Attributes:
        signal: number of the first signal that arrived; None so far.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._raised = False

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.signal or signal.SIGINT)

    def watch(self) -> None:
        """Turn SIGINT and SIGTERM into `KeyboardInterrupt`, and end the process if that does not end it."""
        if threading.current_thread() is not threading.main_thread() or os.name != "posix":
            return
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            # One that is ignored, as of a job in the background, stays so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._raise)
        threading.Thread(target=self._end, args=(reading,), daemon=True, name="p4q-edge-interruption").start()

    def _raise(self, number: int, frame: FrameType | None) -> None:
        # The thread may have seen the signal before this handler ran, so that it does not decide who is first.
        self.signal = self.signal or number
        if not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def _end(self, reading: int) -> None:
        while number := os.read(reading, 1):
            if number[0] in (signal.SIGINT, signal.SIGTERM):
                self.signal = self.signal or number[0]
                time.sleep(GRACE_SECONDS)
                os.write(2, b"interrupted\n")
                os._exit(self.exit_code)
