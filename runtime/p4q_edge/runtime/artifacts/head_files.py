"""Files of heads with their signatures: copied byte for byte, replaced and removed together."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from p4q_edge.runtime.artifacts.head import Head, load_head_bytes, read_head
from p4q_edge.runtime.artifacts.signature import SIGNATURE_SUFFIX, read_signature, signature_path
from p4q_edge.runtime.storage import atomic_write, complete_switch, require_writable, switch_files

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HeadFile:
    """What lies in the file of a head and in its signature's.

    Attributes:
        data: the head's bytes, as safetensors.
        signature: the bytes of the signature that signs these; None if there is none.
    """

    data: bytes
    signature: bytes | None = None

    def head(self, *, source: str) -> Head:
        """Return the head; `source` names it in errors."""
        return read_head(self.data, source=source)


def read_head_file(path: Path) -> HeadFile:
    """Return the bytes of a head and of its signature, if there is one that signs them.

    Raises:
        InputError: the file is missing or too large.
        ArtifactError: the environment names keys, and none of these signed it.
        CorruptArtifactError: it is not a head, or its signature is not one.
    """
    data, _ = load_head_bytes(path)
    signature = read_signature(path, "head", data)
    if signature is None and signature_path(path).is_file():
        logger.warning("%s signs another file than %s now is, and is left behind", signature_path(path), path)
    return HeadFile(data=data, signature=signature)


def write_head_file(path: Path, file: HeadFile, *, force: bool = True) -> None:
    """Write a head with its signature, so that a reader meets both or what was there; an older signature goes.

    Raises:
        UsageError: a file exists and `force` is false, or the folder cannot be written.
        P4QEdgeError: the disk is full.
    """
    own = signature_path(path)
    if file.signature is None:
        atomic_write(path, file.data, force=force)
        own.unlink(missing_ok=True)
        return
    for target in (path, own):
        require_writable(target, force=force)
    switch_files(path, {"": file.data, SIGNATURE_SUFFIX: file.signature})


def remove_head_file(path: Path) -> None:
    """Remove a head and its signature; where this ends in between, a signature of nothing is left, and no head."""
    path.unlink(missing_ok=True)
    signature_path(path).unlink(missing_ok=True)


def finish_writing(folder: Path) -> None:
    """Finish what writers of heads in a folder committed and did not live to finish; usually there is nothing.

    Raises:
        UsageError: there is something, and the folder cannot be written.
    """
    for pending in folder.glob(".*.safetensors.next"):
        complete_switch(pending.with_name(pending.name[1:].removesuffix(".next")))
