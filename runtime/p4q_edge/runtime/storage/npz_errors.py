"""What NumPy raises on `.npz` files that are damaged or of another kind; it promises no common class."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib

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
    SystemError,  # of words with characters that Unicode does not have
    tokenize.TokenError,
    struct.error,
    *_UNPACKING,
)
