"""What a library made of an engine before and lies beside it: read with its digest while the engine's is checked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from p4q_edge.runtime.artifacts import verify_engine
from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.storage import quoted, read_buffer, sha256_bytes

if TYPE_CHECKING:
    from p4q_edge.runtime.artifacts import Card, OptimizedCopy


def read_kept_copy(
    copy: Path, engine: Path, card: Card, recorded: OptimizedCopy, *, limit_bytes: int, kind: str
) -> memoryview:
    """Return the bytes of a copy of an engine, which are those that were hashed, as memory that may be written to.

    Args:
        copy: its file.
        engine: the file of the engine, which is checked as well.
        card: the engine's.
        recorded: what the card says of the copy.
        limit_bytes: most that the copy may have.
        kind: what errors call the copy.

    Raises:
        InputError: a file is missing, no regular file, or too large.
        CorruptArtifactError: the engine or its copy is not the one of the card.
    """
    # Both files are as large as the weights: they are hashed side by side.
    with ThreadPoolExecutor(max_workers=1) as other:
        verified = other.submit(verify_engine, engine, card)
        data = read_buffer(copy, limit_bytes=limit_bytes, kind=kind)
        digest = sha256_bytes(data)
        verified.result()
    if recorded.engine_sha256 != card.engine_sha256 or digest != recorded.sha256:
        raise CorruptArtifactError(
            f"{copy} is not the {kind} of {engine} that its card describes. Delete it, or build again: "
            f"p4q-edge build model.p4q --engine {quoted(engine)} --force"
        )
    return data
