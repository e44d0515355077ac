"""Untrusted text on a terminal or in a page: control characters are shown instead of obeyed."""

from __future__ import annotations

import os
import re
import shlex

# C0 and C1 controls, line and paragraph separators, what changes the direction of writing, and bytes of file names that
# are no UTF-8, which Python keeps as halves of surrogate pairs.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\udc80-\udcff]")
_BYTES = range(0xDC80, 0xDD00)


def printable(text: str, *, keep: str = "") -> str:
    r"""Return a text whose control characters are escapes such as `\x1b` and `\u202e`, but for those of `keep`.

    So are bytes of a file name that is not UTF-8: `caf\xe9.png`, as a shell's `$'caf\xe9.png'` takes them.
    """
    return _STEERING.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), text)


def quoted(path: str | os.PathLike[str]) -> str:
    """Return a path as one word of a shell, for commands that messages tell to run."""
    return shlex.quote(os.fspath(path))


def one_line(said: BaseException | str) -> str:
    """Return a library's words in one line of at most 300 characters, an error's class where it says nothing."""
    return " ".join(str(said).split())[:300] or ("" if isinstance(said, str) else type(said).__name__)


def _escape(character: str) -> str:
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character)
    code = ord(character)
    if code in _BYTES:
        return f"\\x{code - 0xDC00:02x}"
    # Those above ASCII in JSON's own way, so that a document stays one.
    return named or (f"\\x{code:02x}" if code < 127 else f"\\u{code:04x}")
