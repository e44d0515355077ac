"""The bundle `model.p4q`: everything that a device needs to build an engine, in one file.

A zip of stored (not compressed) members with fixed time stamps, so that the same contents give the same bytes.
`graph.fp16.onnx` (TensorRT) and `graph.fp32.onnx` (CPU) hold a model without its large weights;
`weights.onnx` holds these once, for both. Protobuf messages merge when their bytes are concatenated, so a
complete model is the bytes of a graph followed by those of the weights, and no ONNX library is needed here.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from p4q_edge.runtime.artifacts.manifest import Manifest, Member
from p4q_edge.runtime.artifacts.onnx_graph import check_exported
from p4q_edge.runtime.artifacts.schema_one import manifest_of_schema_1
from p4q_edge.runtime.artifacts.signature import Keys, require_signed
from p4q_edge.runtime.choices import GraphKind
from p4q_edge.runtime.errors import CorruptArtifactError, InputError
from p4q_edge.runtime.images import PreprocessSpec
from p4q_edge.runtime.storage import (
    MAX_JSON_BYTES,
    atomic_write,
    decode_json,
    decode_sealed,
    encode_sealed,
    quoted,
    require_writable,
    sha256_bytes,
    sha256_file,
    what_is_at,
)

if TYPE_CHECKING:
    from p4q_edge.runtime.artifacts.golden import Golden
    from p4q_edge.runtime.artifacts.head import Head
    from p4q_edge.runtime.artifacts.recorded_results import RecordedResults

SUFFIX = ".p4q"
MANIFEST = "manifest.json"
GRAPH_FP16 = "graph.fp16.onnx"
GRAPH_FP32 = "graph.fp32.onnx"
WEIGHTS = "weights.onnx"
HEAD = "head.safetensors"
PREPROCESS = "preprocess.json"
GOLDEN = "golden.safetensors"
REFERENCE = "reference.safetensors"
REQUIRED = (GRAPH_FP16, GRAPH_FP32, WEIGHTS, HEAD, PREPROCESS, GOLDEN)

MAX_MEMBERS = 64
MAX_MEMBER_BYTES = 4 << 30
_MEMBER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TIME_STAMP = (1980, 1, 1, 0, 0, 0)
_BLOCK_BYTES = 1 << 20
# What the zipfile module raises on damaged structures; it promises no common class.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    OSError,
    KeyError,
    ValueError,
    OverflowError,
    struct.error,
)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle whose member digests were verified; members are read when asked for."""

    path: Path
    manifest: Manifest
    deciding_bytes: bytes = field(repr=False)
    """Of the manifest, which holds the digests of all members: what a signature signs."""

    def read(self, name: str) -> bytes:
        """Return one member.

        Raises:
            CorruptArtifactError: the bundle has no such member, or its bytes differ from the recorded digest.
        """
        recorded = self.manifest.members.get(name)
        if recorded is None:
            raise CorruptArtifactError(f"{self.path} has no member {name}. Export the bundle again.")
        with _opened(self.path) as archive:
            data = archive.read(name)
        if sha256_bytes(data) != recorded.sha256:
            raise _changed(self.path, name)
        return data

    def model(self, remainder: GraphKind) -> bytes:
        """Return a complete ONNX model whose part that is not quantized is FP16 or FP32.

        Raises:
            CorruptArtifactError: its bytes were changed, or it holds what the exporter does not write.
        """
        graph = GRAPH_FP16 if remainder == "fp16" else GRAPH_FP32
        model = self.read(graph) + self.read(WEIGHTS)
        check_exported(model, name=f"{graph} of {self.path}")
        return model

    def preprocess(self) -> PreprocessSpec:
        """Return how pictures become the engine's input."""
        return decode_json(self.read(PREPROCESS), PreprocessSpec, source=f"{PREPROCESS} of {self.path}")

    def golden(self) -> Golden:
        """Return the golden samples."""
        # Imported here: it needs numpy, and reading a manifest should not.
        from p4q_edge.runtime.artifacts.golden import read_golden

        return read_golden(self.read(GOLDEN), source=f"{GOLDEN} of {self.path}")

    def head(self) -> Head:
        """Return the classification head that is folded into the graphs."""
        from p4q_edge.runtime.artifacts.head import read_head

        return read_head(self.read(HEAD), source=f"{HEAD} of {self.path}")

    def reference(self) -> RecordedResults | None:
        """Return what PyTorch computed on validation images; None where the bundle has no such results."""
        from p4q_edge.runtime.artifacts.recorded_results import read_reference

        if REFERENCE not in self.manifest.members:
            return None
        return read_reference(
            self.read(REFERENCE),
            classes=len(self.manifest.class_names),
            dim=self.manifest.embedding_dim,
            source=f"{REFERENCE} of {self.path}",
        )

    def sha256(self) -> str:
        """Return the digest of the bundle's file."""
        return sha256_file(self.path)


def read_bundle(path: str | Path, *, trusted: Keys = None) -> Bundle:
    """Open a bundle and verify its structure and the digest of every member.

    Args:
        path: the bundle's file.
        trusted: keys of which one must have signed it, see `Keys`.

    Raises:
        InputError: the file is missing.
        ArtifactError: a signature is asked for, and there is none of these keys.
        CorruptArtifactError: not a bundle, bytes that differ from the recorded digests, or a graph with operators
            that the exporter does not write.
    """
    path = Path(path)
    if not path.is_file():
        photos = f" To start from photographs: p4q-edge init {quoted(path)}" if path.is_dir() else ""
        raise InputError(f"{path} {what_is_at(path)}. Name a bundle ({SUFFIX}) that `p4q-edge build` exported.{photos}")
    with _opened(path) as archive:
        members = archive.infolist()
        _check_members(members, path)
        source = f"{MANIFEST} of {path}"
        deciding = archive.read(MANIFEST)
        require_signed(path, "bundle", deciding, trusted=trusted)
        manifest = decode_sealed(deciding, Manifest, source=source, upgrade=manifest_of_schema_1)
        _check_manifest(manifest, members, path)
        for name, recorded in manifest.members.items():
            # The very bytes of a graph that were hashed are looked through: a later read of others fails.
            graph = archive.read(name) if name in (GRAPH_FP16, GRAPH_FP32) else None
            if (_digest(archive, name) if graph is None else sha256_bytes(graph)) != recorded.sha256:
                raise _changed(path, name)
            if graph and manifest.problem("fp16" if name == GRAPH_FP16 else "fp32") is None:
                check_exported(graph, name=f"{name} of {path}")
    return Bundle(path=path, manifest=manifest, deciding_bytes=deciding)


def write_bundle(
    path: str | Path, manifest: Manifest, members: Mapping[str, bytes | Path], *, force: bool = False
) -> Bundle:
    """Write a bundle; the same arguments always give the same bytes.

    Args:
        path: the bundle to make.
        manifest: its manifest; `members` of it is filled in here.
        members: contents of every member but the manifest, as bytes or as a file to copy.
        force: replace an existing file.

    Raises:
        UsageError: the file exists and `force` is false.
    """
    path = Path(path)
    require_writable(path, force=force)
    absent = [name for name in REQUIRED if name not in members]
    unusable = [name for name in members if not _MEMBER_NAME.fullmatch(name) or name == MANIFEST]
    if absent or unusable:
        raise ValueError(f"a bundle needs the members {absent} and cannot have {unusable}")
    manifest = msgspec.structs.replace(manifest, members={name: _member(members[name]) for name in sorted(members)})
    deciding = encode_sealed(manifest)
    contents: dict[str, bytes | Path] = {**members, MANIFEST: deciding}

    def write(stream: BinaryIO) -> None:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(contents):
                _add(archive, name, contents[name])

    atomic_write(path, write, force=force)
    return Bundle(path=path, manifest=manifest, deciding_bytes=deciding)


def _add(archive: zipfile.ZipFile, name: str, content: bytes | Path) -> None:
    info = zipfile.ZipInfo(name, date_time=_TIME_STAMP)
    info.external_attr = 0o644 << 16
    info.create_system = 3  # Unix, so that the bytes do not depend on the writing system
    info.file_size = len(content) if isinstance(content, bytes) else content.stat().st_size
    with archive.open(info, "w") as target:
        if isinstance(content, bytes):
            target.write(content)
            return
        with content.open("rb") as source:
            while block := source.read(_BLOCK_BYTES):
                target.write(block)


def _member(content: bytes | Path) -> Member:
    if isinstance(content, bytes):
        return Member(size_bytes=len(content), sha256=sha256_bytes(content))
    return Member(size_bytes=content.stat().st_size, sha256=sha256_file(content))


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip for reading; what zipfile raises on damaged bytes becomes `CorruptArtifactError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _ZIP_ERRORS as error:
        raise CorruptArtifactError(
            f"{path} is not an intact bundle: {' '.join(str(error).split())}. Copy or export it again."
        ) from error


def _check_members(members: list[zipfile.ZipInfo], path: Path) -> None:
    """Refuse what a bundle never has, before anything is read: paths, compression, copies, false sizes."""
    available = path.stat().st_size
    names = {member.filename for member in members}
    problem = None
    if len(members) > MAX_MEMBERS:
        problem = f"it has {len(members)} members; at most {MAX_MEMBERS} are read"
    elif len(names) != len(members):
        problem = "two members have one name"
    elif MANIFEST not in names:
        problem = f"it has no {MANIFEST}"
    elif sum(member.file_size for member in members) > available:
        problem = "its members claim more bytes than the file has"
    for member in members:
        if not _MEMBER_NAME.fullmatch(member.filename):
            problem = f"member name {member.filename[:60]!r} is not a plain file name"
        elif member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            problem = f"member {member.filename} is compressed; members of a bundle are stored"
        elif member.file_size > (MAX_JSON_BYTES if member.filename == MANIFEST else MAX_MEMBER_BYTES):
            problem = f"member {member.filename} claims {member.file_size} bytes"
    if problem:
        raise CorruptArtifactError(f"{path} is not a bundle: {problem}. Export it again with `p4q-edge build`.")


def _check_manifest(manifest: Manifest, members: list[zipfile.ZipInfo], path: Path) -> None:
    found = {member.filename: member.file_size for member in members if member.filename != MANIFEST}
    expected = {name: member.size_bytes for name, member in manifest.members.items()}
    absent = [name for name in REQUIRED if name not in found]
    if absent:
        raise CorruptArtifactError(f"{path} lacks {', '.join(absent)}. Export it again with `p4q-edge build`.")
    if found != expected:
        differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise CorruptArtifactError(
            f"{path}: {', '.join(differing)} differ in name or size from {MANIFEST}. Copy or export it again."
        )


def _digest(archive: zipfile.ZipFile, name: str) -> str:
    digest = hashlib.sha256()
    with archive.open(name) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _changed(path: Path, name: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"{path}: the bytes of {name} differ from the digest in {MANIFEST}. Copy or export the bundle again."
    )
