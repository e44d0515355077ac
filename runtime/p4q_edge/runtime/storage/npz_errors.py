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


_HALVES, _ESCAPES = (0xD800, 0xDFFF), (0xDC80, 0xDCFF)
"""Halves of pairs, which alone are no character; and those of them that stand for bytes of names of files in Python."""


def beyond_unicode(words: npt.NDArray[np.str_], *, names_of_files: bool = False) -> bool:
    """Return whether strings hold what is no character, of which no text can be written.

    Args:
        words: of any shape.
        names_of_files: take the halves of pairs with which Python writes bytes that are no UTF-8, as names of files
            may have them (PEP 383).
    """
    import numpy as np

    if not words.dtype.itemsize:
        return False
    letters = np.ascontiguousarray(words).view(np.dtype(words.dtype.str[0] + "u4"))
    halves = (letters >= _HALVES[0]) & (letters <= _HALVES[1])
    if names_of_files:
        halves &= (letters < _ESCAPES[0]) | (letters > _ESCAPES[1])
    return bool((halves | (letters > sys.maxunicode)).any())
