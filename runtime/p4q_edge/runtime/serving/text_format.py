"""Protobuf's text format, as far as Triton's `config.pbtxt` needs it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TypeAlias, Union

Value: TypeAlias = Union[str, int, bool, "Word", "Mapping[str, Value]", "list[Value]"]


class Word(str):
    """A name of an enumeration, which stands without quotes."""

    __slots__ = ()


def to_text(message: Mapping[str, Value]) -> str:
    """Return a message as text: nested messages are mappings, repeated fields lists."""
    return "\n".join(_lines(message, "")) + "\n"


def _lines(message: Mapping[str, Value], indent: str) -> Iterator[str]:
    for name, value in message.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                yield f"{indent}{name} {{"
                yield from _lines(item, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(item)}"


def _scalar(value: Value) -> str:
    if isinstance(value, Word):
        return str.__str__(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    # JSON's escapes are those of the text format, but for characters beyond 16 bits, which stay as they are.
    return json.dumps(value, ensure_ascii=False)
