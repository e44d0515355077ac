"""Write runtime/JSON.md: the documents of every command, from `documents` and the records that they are made of.

Run: python tools/write_schema_docs.py
"""

import dataclasses
import inspect
import sys
import typing
from pathlib import Path

from p4q_edge.runtime.benchmark import measurement as bench
from p4q_edge.runtime.cli import documents
from p4q_edge.runtime.evaluation.report import Report

TARGET = Path(__file__).parent.parent / "runtime" / "JSON.md"
HEAD = """# JSON documents

Written by `python tools/write_schema_docs.py`; a test compares this page with the code.

Every document that `--json` writes has `schema_version`, which rises with any change of meaning. Shares lie between
0 and 1, times are in the unit that ends their name, digests are SHA-256. A failure gives
`{"schema_version": 1, "error": {"type", "message", "exit_code"}}`.

Progress and messages go to stderr. `validate` also writes its document to `ENGINE-stem.report.json`.
"""


def commands() -> str:
    """Return the table of every command and its document."""
    rows = [f"| `{line}` | {words} |" for line, words in documents.WITH_RECORDS.items()]
    for line, keys in documents.DOCUMENTS.items():
        rows.append(f"| `{line}` | " + "; ".join(f"`{key}`: {words}" for key, words in keys.items()) + " |")
    return "\n".join(["## Commands", "", "| command | document |", "| --- | --- |", *rows]) + "\n"


def records(root: type) -> list[type]:
    """Return a record and all records in its fields, each once, in the order in which they are met."""
    found: list[type] = []

    def visit(kind: object) -> None:
        for argument in typing.get_args(kind):
            visit(argument)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind not in found:
            found.append(kind)
            for annotation in typing.get_type_hints(kind).values():
                visit(annotation)

    visit(root)
    return found


def described(record: type) -> str:
    """Return a section: what the record is, and the type of each field."""
    hints = typing.get_type_hints(record)
    fields = [f"| `{field.name}` | `{spelled(hints[field.name])}` |" for field in dataclasses.fields(record)]
    words = inspect.cleandoc(record.__doc__ or "").replace("Attributes:\n", "\n")
    table = "\n".join(["| field | type |", "| --- | --- |", *fields])
    return f"## {record.__name__}\n\n{outdented(words)}\n\n{table}\n"


def outdented(text: str) -> str:
    """Return a docstring with its list of attributes as a list."""
    lines = []
    for line in text.splitlines():
        started = line.startswith("    ") and not line.startswith("        ")
        lines.append("- " + line.strip() if started else "  " + line.strip() if line.startswith("     ") else line)
    return "\n".join(lines).replace("\n\n\n", "\n\n")


def spelled(kind: object) -> str:
    """Return a type as JSON's readers understand it."""
    if kind is type(None):
        return "null"
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin is tuple:
        inner = [spelled(argument) for argument in arguments if argument is not Ellipsis]
        return f"[{inner[0]}, ...]" if Ellipsis in arguments else f"[{', '.join(inner)}]"
    if arguments and origin is not None and isinstance(origin, type) and issubclass(origin, typing.Mapping):
        return "{" + f"{spelled(arguments[0])}: {spelled(arguments[1])}" + "}"
    if arguments:
        return " or ".join(spelled(argument) for argument in arguments)
    names = {float: "number", int: "integer", str: "text", bool: "true or false"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))  # type: ignore[call-overload,no-any-return]


def page() -> str:
    """Return the whole page."""
    found = list(dict.fromkeys([*records(Report), *records(bench.Measured)]))
    return HEAD + "\n" + "\n".join([commands(), *(described(record) for record in found)])


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    sys.exit(0)
