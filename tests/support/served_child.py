"""A server in a process of its own."""

from __future__ import annotations

import signal
import subprocess


class Child:
    """`p4q-edge serve` as a process of its own."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Ask it to stop; return its exit code and what it wrote to stderr."""
        self.process.send_signal(number)
        return self.process.wait(60), self.process.stderr.read() if self.process.stderr else ""
