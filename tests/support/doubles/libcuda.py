"""`libcuda.c` compiled, as a folder in which a process finds `libcuda.so.1`, and what controls it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("libcuda.c")
COMPILER = shutil.which("cc") or shutil.which("gcc")


def compile_library(folder: Path, *options: str) -> Path:
    """Return the compiled double; a warning is an error."""
    assert COMPILER is not None
    library = folder / "libcuda.so.1"
    command = [COMPILER, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", *options]
    done = subprocess.run(
        [*command, "-o", str(library), str(SOURCE)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return library


class LibCuda:
    """The loaded double: which driver it is, what fails, and what was called."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        self._library.fake_log.restype = ctypes.c_char_p
        self._library.fake_current.restype = ctypes.c_void_p
        self._library.fake_reset()

    def driver(self, version: int, *, devices: int = 2) -> None:
        """Be the driver of a CUDA version with so many devices."""
        self._library.fake_driver(version, devices)

    def fail(self, name: str, status: int) -> None:
        """Let a function answer a CUresult; "" lets none."""
        self._library.fake_fail(name.encode(), status)

    @property
    def calls(self) -> list[str]:
        """Names of the functions that were called, in order."""
        return list(self._library.fake_log().decode().split())

    @property
    def unreleased(self) -> int:
        """Allocations, streams, events and graphs that were not given back."""
        return int(self._library.fake_blocks())

    @property
    def depth(self) -> int:
        """How many contexts are current."""
        return int(self._library.fake_depth())

    @property
    def context(self) -> int | None:
        """The context that is current."""
        found: int | None = self._library.fake_current()
        return found
