"""What this process keeps of the memory that it no longer uses."""

import ctypes
import gc
import sys
from contextlib import suppress


def give_back_memory() -> None:
    """Give memory that nothing in this process uses any more back to the system, where its library knows how to.

    What held it is collected first: a pass through a network leaves circles, and until they are found its activations
    stay. glibc keeps what was freed between two pieces that are in use, which after work with many tensors of some
    megabytes is as much as the weights of a model.
    """
    gc.collect()
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
