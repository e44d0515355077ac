"""What NumPy raises on `.npz` files that are damaged or of another kind, and what it reads without a word."""

from __future__ import annotations

import struct
import sys
import tokenize
import zipfile
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_UNPACKING: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error)
try:
    from lzma import LZMAError
except ImportError:  # a Python without this library, whose zipfile refuses such members with another error
    pass
else:
    _UNPACKING = (*_UNPACKING, LZMAError)

NPZ_ERRORS: tuple[type[Exception], ...] = (
    KeyError,
    ValueError,
    TypeError,
    OSError,
    EOFError,
    RuntimeError,
    MemoryError,
    AttributeError,
    OverflowError,
    SyntaxError,
    tokenize.TokenError,
    struct.error,
    *_UNPACKING,
)
"""NumPy promises no common class."""


def beyond_unicode(words: npt.NDArray[np.str_]) -> bool:
    """Return whether strings hold characters that Unicode does not have, of which Python cannot make words."""
    import numpy as np

    if not words.dtype.itemsize:
        return False
    letters = np.ascontiguousarray(words).view(np.dtype(words.dtype.str[0] + "u4"))
    return bool((letters > sys.maxunicode).any())
