"""One digest over all that a document says, in the document: parts of two documents never pass for one."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.storage.files import sha256_bytes
from p4q_edge.runtime.storage.untrusted import Upgrade, convert_json, decode_json, encode_json

SEAL = "content_sha256"
"""Key of the digest. It belongs to the file, not to what is read from it."""

_T = TypeVar("_T", bound=msgspec.Struct)


def encode_sealed(value: msgspec.Struct) -> bytes:
    """Return a structure as JSON, with a digest of all that it says."""
    # As a reader finds it, numbers too.
    document = msgspec.json.decode(msgspec.json.encode(value))
    return encode_json({**document, SEAL: _digest(document)})


def decode_sealed(data: bytes, struct: type[_T], *, source: str, upgrade: Upgrade | None = None) -> _T:
    """Return the structure that `encode_sealed` wrote; documents of versions without digest are read as they are.

    Args:
        data: JSON.
        struct: what it is.
        source: what errors call it.
        upgrade: from the JSON values of the schema before the current one to those of the current one; None where
            that one is not read.

    Raises:
        CorruptArtifactError: it is not such a document, or was changed since it was written.
    """
    document = decode_json(data, dict[str, Any], source=source)
    seal = document.pop(SEAL, None)
    value = convert_json(document, struct, source=source, upgrade=upgrade)
    # Over what is written, not over the structure: that of a later version may have more fields.
    if seal is not None and seal != _digest(document):
        raise CorruptArtifactError(
            f"{source} was changed after it was written: its content has another digest than its {SEAL}. Get it again, "
            "or build it again."
        )
    return value


def _digest(document: dict[str, Any]) -> str:
    """Return the digest of a document that was decoded from JSON."""
    return sha256_bytes(msgspec.json.encode(document, order="sorted"))
