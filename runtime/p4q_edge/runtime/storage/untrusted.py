"""JSON and safetensors from untrusted sources: bounded before anything is allocated, typed, no pickle."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import msgspec

from p4q_edge.runtime.errors import ArtifactError, CorruptArtifactError
from p4q_edge.runtime.storage.terminal import one_line

if TYPE_CHECKING:
    import numpy as np

MAX_JSON_BYTES = 16 << 20
MAX_JSON_DEPTH = 32
MAX_TENSORS = 256
MAX_HEADER_BYTES = 8 << 20

_T = TypeVar("_T")
# What an upgrade meets in a document of another form; `ArtifactError` is none of these.
_MISFITS = (OverflowError, RecursionError, KeyError, TypeError, AttributeError, ValueError, IndexError)
_NO_STRUCTURE = bytes(sorted(set(range(256)) - set(b'[]{}"')))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""Of the depth, as signed bytes."""
_DTYPES = {"F32": "<f4", "F16": "<f2", "U8": "|u1", "I8": "|i1", "I32": "<i4", "I64": "<i8"}


Upgrade: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""From the JSON values of a document of one schema to those of the next."""


class _Versioned(msgspec.Struct, frozen=True, kw_only=True):
    schema_version: int


def encode_json(value: object) -> bytes:
    """Return `value` as indented JSON with sorted keys: the same value always gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2) + b"\n"


def decode_json(data: bytes, struct: type[_T], *, source: str) -> _T:
    """Return `data` as a `struct`; unknown keys, wrong types and deep nesting are errors.

    Raises:
        CorruptArtifactError: not JSON, too large, too deep, or not of this structure.
        ArtifactError: a schema number that this version does not know.
    """
    if len(data) > MAX_JSON_BYTES:
        raise CorruptArtifactError(
            f"{source} has {len(data)} bytes of JSON; at most {MAX_JSON_BYTES} are read. Get the file again."
        )
    if json_depth(data) > MAX_JSON_DEPTH:
        raise CorruptArtifactError(
            f"{source} nests JSON more than {MAX_JSON_DEPTH} deep, which is not read. Get the file again."
        )
    try:
        if "schema_version" in getattr(struct, "__struct_fields__", ()):
            _require_schema(msgspec.json.decode(data, type=_Versioned).schema_version, struct, source=source)
        return msgspec.json.decode(data, type=struct)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise _misfit(error, source) from error


def convert_json(document: dict[str, Any], struct: type[_T], *, source: str, upgrade: Upgrade | None = None) -> _T:
    """Return a document that was decoded as JSON values as a `struct`, upgraded first where it has the schema before.

    Raises:
        CorruptArtifactError: not of this structure.
        ArtifactError: a schema number that this version does not know.
    """
    try:
        if "schema_version" in getattr(struct, "__struct_fields__", ()):
            version = msgspec.convert(document, _Versioned).schema_version
            if _require_schema(version, struct, source=source, upgrade=upgrade):
                assert upgrade is not None
                document = upgrade(document)
        # Through text once more, in which arrays are tuples and keys are words.
        return msgspec.json.decode(msgspec.json.encode(document), type=struct)
    except (msgspec.MsgspecError, *_MISFITS) as error:
        raise _misfit(error, source) from error


def _misfit(error: Exception, source: str) -> CorruptArtifactError:
    """Return what is said of a document of another form; a key that is unknown may be one of a later version."""
    said = one_line(error)
    newer = " If a newer version wrote it, upgrade p4q-edge-runtime." if "unknown field" in said else ""
    return CorruptArtifactError(
        f"{source} is not what this version writes: {said}. Get the file again, or build it again.{newer}"
    )


def _require_schema(version: int, struct: Any, *, source: str, upgrade: Upgrade | None = None) -> bool:
    """Return whether a document is of the schema before that of a structure, and raise unless it can be read."""
    current = next(field.default for field in msgspec.structs.fields(struct) if field.name == "schema_version")
    if version == current - 1 and upgrade is not None:
        return True
    if version != current:
        known = f"schema {current}" if upgrade is None else f"schemas {current - 1} and {current}"
        newer = "Upgrade p4q-edge-runtime." if version > current else "Build it again with this version."
        raise ArtifactError(f"{source} has schema {version}; this version reads {known}. {newer}")
    return False


def json_depth(data: bytes) -> int:
    """Return how deep objects and arrays are nested in a JSON text; brackets inside strings do not count.

    The time grows linearly with any bytes.
    """
    # Two backslashes stand for one, and a quote after the single one that is left does not end its string. Of strings
    # that are nothing but brackets then, two that touch may as well be one.
    quoted = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    structure = quoted.translate(None, delete=_NO_STRUCTURE).replace(b'""', b"")
    brackets = b"".join(structure.split(b'"')[::2])
    return max(accumulate(array("b", brackets.translate(_STEPS)), initial=0))


def save_tensors(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file; the same contents always give the same bytes.

    The library keeps the metadata in a hash map, whose order changes from run to run, so the header is
    written again with sorted keys.
    """
    # numpy and safetensors are imported here so that `--help` needs neither.
    import numpy as np
    from safetensors.numpy import save

    data = save({name: np.asarray(array, order="C") for name, array in tensors.items()}, dict(metadata))
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + header_bytes]), sort_keys=True, ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + header_bytes :]


def load_tensors(data: bytes, *, source: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file; the arrays are read-only views of `data`.

    Raises:
        CorruptArtifactError: not safetensors, too many tensors, an unexpected dtype, or a header too large.
    """
    import numpy as np
    from safetensors import SafetensorError, deserialize

    header_bytes = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header_bytes > min(MAX_HEADER_BYTES, len(data) - 8):
        raise CorruptArtifactError(f"{source} is not a safetensors file: its header is cut off. Get it again.")
    header = data[8 : 8 + header_bytes]
    if json_depth(header) > MAX_JSON_DEPTH:
        raise CorruptArtifactError(f"{source} has a safetensors header nested too deep. Get it again.")
    try:
        entries = deserialize(data)  # type: ignore[no-untyped-call]
        metadata = json.loads(header).get("__metadata__") or {}
    except (SafetensorError, ValueError) as error:
        said = one_line(error)
        raise CorruptArtifactError(f"{source} is not a safetensors file: {said}. Get it again.") from error
    if len(entries) > MAX_TENSORS:
        raise CorruptArtifactError(
            f"{source} has {len(entries)} tensors; at most {MAX_TENSORS} are read. Get it again."
        )
    arrays = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise CorruptArtifactError(
                f"{source}: tensor {name!r} has dtype {entry['dtype']}; expected one of {', '.join(_DTYPES)}. "
                "Write it again with a dtype of this list."
            )
        array = np.frombuffer(entry["data"], dtype=_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        arrays[name] = array
    return arrays, metadata
