"""A server in a process of its own."""

from __future__ import annotations

import signal
import subprocess


class Child:
    """`p4q-edge serve` as a process of its own, with the line that it wrote once it listened."""

    def __init__(self, process: subprocess.Popen[str], line: str) -> None:
        self.process, self.url, self.line = process, line.split()[0], line.strip()

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Ask it to stop; return its exit code and what it wrote to stderr."""
        self.process.send_signal(number)
        return self.process.wait(60), self.process.stderr.read() if self.process.stderr else ""
