"""Write runtime/JSON.md: the documents of every command, from the structures that the commands write.

Run: python tools/write_schema_docs.py
"""

import collections.abc
import dataclasses
import inspect
import re
import sys
import types
import typing
from pathlib import Path

import msgspec

from p4q_edge.cli.documents import DOCUMENTS as OF_TOOLKIT
from p4q_edge.runtime.cli.documents import DOCUMENTS as OF_RUNTIME
from p4q_edge.runtime.cli.error_document import ErrorDocument

TARGET = Path(__file__).parent.parent / "runtime" / "JSON.md"
HEAD = """# JSON documents

Written by `python tools/write_schema_docs.py`; a test compares this page with the code.

Every document that `--json` writes has `schema_version`, which rises with any change of meaning; it is 1 where no other
number is given below. Shares lie between 0 and 1, times are in the unit that ends their name, digests are SHA-256. A
failure gives an `ErrorDocument`.

Progress and messages go to stderr. `validate` also writes its document to `ENGINE-stem.report.json`.
"""
NAMES = {float: "number", int: "integer", str: "text", bool: "true or false", type(None): "null", Path: "text"}


def documents() -> dict[str, type]:
    """Return the structure of each document by command line, those of the runtime first."""
    return {**OF_RUNTIME, **OF_TOOLKIT}


def is_record(kind: object) -> bool:
    """Whether a type has fields of its own."""
    return isinstance(kind, type) and (issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind))


def fields_of(record: type) -> dict[str, object]:
    """Return the type of each field by its name in JSON."""
    hints = typing.get_type_hints(record)
    if issubclass(record, msgspec.Struct):
        return {field.encode_name: hints[field.name] for field in msgspec.structs.fields(record)}
    return {field.name: hints[field.name] for field in dataclasses.fields(record)}


def records(roots: typing.Iterable[type]) -> list[type]:
    """Return records and all records in their fields, each once, in the order in which they are met."""
    found: list[type] = []

    def visit(kind: object) -> None:
        for argument in typing.get_args(kind):
            visit(argument)
        if is_record(kind) and kind not in found:
            found.append(kind)  # type: ignore[arg-type]
            for annotation in fields_of(kind).values():  # type: ignore[arg-type]
                visit(annotation)

    for root in roots:
        visit(root)
    return found


def words_of(record: type) -> tuple[str, dict[str, str]]:
    """Return what a docstring says of the record, and of its fields by name, those of its bases too."""
    of_fields: dict[str, str] = {}
    for base in reversed(record.__mro__):
        if is_record(base) and base.__doc__:
            of_fields |= _attributes(inspect.cleandoc(base.__doc__).partition("Attributes:\n")[2].partition("\n\n")[0])
    return inspect.cleandoc(record.__doc__ or "").partition("Attributes:\n")[0].strip(), of_fields


def _attributes(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", "\n" + text):
        names, colon, meaning = entry.strip().partition(": ")
        if colon and re.fullmatch(r"\w+(, \w+)*", names):
            found |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    return found


def described(record: type) -> str:
    """Return a section: what the record is, with type and meaning of each field."""
    what, meanings = words_of(record)
    rows = [f"| `{name}` | {spelled(kind)} | {meanings.get(name, '')} |" for name, kind in fields_of(record).items()]
    table = "\n".join(["| field | type | meaning |", "| --- | --- | --- |", *rows])
    return f"## {record.__name__}\n\n{what}\n\n{table}\n"


def spelled(kind: object) -> str:
    """Return a type as JSON's readers understand it."""
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if kind in NAMES:
        return NAMES[kind]  # type: ignore[index]
    if kind is msgspec.UnsetType:
        return "left out"
    if origin is typing.Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin in (tuple, list, collections.abc.Sequence):
        inner = [spelled(argument) for argument in arguments if argument is not Ellipsis]
        return f"[{', '.join(inner)}, ...]" if Ellipsis in arguments or origin is not tuple else f"[{', '.join(inner)}]"
    if origin in (dict, collections.abc.Mapping):
        return "{" + f"{spelled(arguments[0])}: {spelled(arguments[1])}" + "}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(spelled(argument) for argument in arguments)
    return f"`{kind.__name__}`" if is_record(kind) else "any value"  # type: ignore[attr-defined]


def page() -> str:
    """Return the whole page."""
    rows = [f"| `{line}` | `{record.__name__}` |" for line, record in documents().items()]
    commands = "\n".join(["## Commands", "", "| command | document |", "| --- | --- |", *rows]) + "\n"
    found = records([ErrorDocument, *documents().values()])
    return HEAD + "\n" + "\n".join([commands, *map(described, found)])


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    sys.exit(0)
