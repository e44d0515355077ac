"""`p4q-edge`, also as `python -m p4q_edge`, so that `torchrun -m p4q_edge` starts it in several processes."""

import os
import signal
import sys


def run() -> int:
    """Run the command with the arguments of this process and return its exit code."""
    # Until the command watches for signals itself: by then it has imported half of the standard library.
    if os.name == "posix" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    from p4q_edge.runtime.cli.main import main

    return main()


def _end(number: int, frame: object) -> None:
    try:
        os.write(2, b"interrupted\n")
    finally:  # also where stderr is a pipe whose reader is gone
        os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(run())
