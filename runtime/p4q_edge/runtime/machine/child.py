"""Starting modules of this package as processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_START = "import sys; sys.path[:] = filter(None, sys.path); from {module} import main; sys.exit(main())"


def child_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `main()` of a module in a new interpreter.

    `python -m` would import from the current folder first, where a stranger's files may lie.
    """
    return [sys.executable, "-c", _START.format(module=module), *arguments]


def end_with_parent(parent: int) -> None:
    """Let the system kill this process when its parent ends, however that happens; Linux only.

    Args:
        parent: process id of the parent, as the parent itself told.
    """
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had ended before
        os._exit(1)
