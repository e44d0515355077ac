"""Reading what `--json` wrote with the structure that states it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec


def read_document(out: str, struct: type[msgspec.Struct]) -> Any:
    """Return the one document in `out`, whose keys and types are exactly those of the structure."""
    values = json.loads(out)  # one document, or this fails
    stated = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    version = stated["schema_version"].default if "schema_version" in stated else 1
    assert values["schema_version"] == version
    if "schema_version" not in stated:
        del values["schema_version"]
    needed = {name for name, field in stated.items() if field.default is not msgspec.UNSET}
    assert needed <= set(values) <= set(stated), set(stated) ^ set(values)
    return msgspec.convert(values, struct, dec_hook=_path)


def _path(kind: type, value: Any) -> Any:
    return Path(value) if kind is Path else value
