"""The one rule for "unchanged": whether what lies in a file is what this code would make again from these inputs.

A stage's key is a digest of its inputs, of its part of the recipe, of the source of the rooms that it uses, and of
the versions of the libraries that it computes with. A file carries the key of what made it, or a record beside it
does; either also holds a digest of the contents, which is checked before they are used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from p4q_edge.runtime.errors import CorruptArtifactError, EnvironmentNotAbleError
from p4q_edge.runtime.storage.files import atomic_write, sha256_bytes, sha256_file
from p4q_edge.runtime.storage.untrusted import decode_json, encode_json

if TYPE_CHECKING:
    import numpy as np

LIBRARIES = ("p4q-edge", "p4q-edge-runtime", "torch", "open_clip_torch", "timm")
"""Whose versions every key holds. They are asked for by name only: nothing is imported."""

_IMPORTED = re.compile(rb"^\s*(?:from|import)\s+p4q_edge\.((?:runtime\.)?\w+)", re.MULTILINE)
_FOUNDATION = ("runtime", "runtime.errors", "runtime.lazy", "runtime.choices")
"""Error classes, lazy imports and names of choices decide no figure; `runtime` itself offers rooms names of theirs."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What made some files, the digest of each by its name, and a digest of what was asked for.

    `replacing`: a writer began to replace them, and did not live to say that it had.
    """

    key: str
    sha256: dict[str, str]
    asked: str = ""
    replacing: bool = False


@dataclass(frozen=True, kw_only=True)
class StageCode:
    """The code of a stage.

    Attributes:
        modules: whose own source counts, such as `p4q_edge.stages.pipeline`.
        rooms: packages that the stage uses, such as `p4q_edge.calibration`; what these import counts too.
        libraries: distributions whose versions count.
    """

    modules: tuple[str, ...] = ()
    rooms: tuple[str, ...] = ()
    libraries: tuple[str, ...] = LIBRARIES

    def digest(self) -> str:
        """Return the digest of the source of all modules and rooms."""
        digest = hashlib.sha256()
        for package in (*sorted(self.modules), *rooms_used(self.rooms)):
            for name, source in package_sources(package).items():
                digest.update(f"{package}/{name}:{len(source)}\n".encode())
                digest.update(source)
        return digest.hexdigest()


def stage_key(code: StageCode, *, inputs: object, recipe: object) -> str:
    """Return the digest of everything that a stage's result depends on.

    Args:
        code: what the stage runs.
        inputs: digests of what it reads and other values that decide its result, as JSON values or structs.
        recipe: the part of the recipe that it follows.
    """
    parts = [inputs, recipe, code.digest(), library_versions(code.libraries)]
    return sha256_bytes(msgspec.json.encode(parts, order="sorted"))


def rooms_used(rooms: Iterable[str]) -> tuple[str, ...]:
    """Return rooms and every room that these import, sorted."""
    found: set[str] = set()
    waiting = set(rooms)
    while waiting:
        room = waiting.pop()
        found.add(room)
        for source in package_sources(room).values():
            names = {name.decode() for name in _IMPORTED.findall(source)}
            waiting |= {f"p4q_edge.{name}" for name in names if name not in _FOUNDATION} - found
    return tuple(sorted(found))


def package_sources(package: str) -> dict[str, bytes]:
    """Return the source of a module, or of every module of a package, by its path; nothing in it is imported.

    Raises:
        EnvironmentNotAbleError: it is installed without its source.
    """
    spec = importlib.util.find_spec(package)
    origin = None if spec is None or spec.origin is None else Path(spec.origin)
    if origin is None or origin.suffix != ".py":
        raise EnvironmentNotAbleError(
            f"the source of {package} is not installed, so it cannot be told whether a stage is unchanged. "
            "Install p4q-edge again: pip install --force-reinstall p4q-edge p4q-edge-runtime"
        )
    if origin.name != "__init__.py":
        return {origin.name: origin.read_bytes()}
    folder = origin.parent
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.py"))}


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of distributions; of one that is not installed, an empty text."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def write_record(record: Path, key: str, files: Iterable[Path], *, asked: str = "") -> None:
    """Write beside the files of a stage what made them, and a digest of what was asked for, such as build options."""
    digests = {path.name: sha256_file(path) for path in files}
    atomic_write(record, encode_json(Record(key=key, sha256=digests, asked=asked)), force=True)


@contextmanager
def replaced(record: Path, key: str, files: Sequence[Path], *, asked: str = "") -> Iterator[None]:
    """Replace the files of a stage, which are not there or its own, and write their record behind them.

    A writer that is killed in between leaves files that it had not yet written a record of: that it was about to is
    written before, so that the next run knows them as its own. Where writing fails, the record stays as it was.
    """
    before = record.read_bytes() if record.is_file() else None
    atomic_write(record, encode_json(Record(key="", sha256={}, asked=asked, replacing=True)), force=True)
    try:
        yield
    except BaseException:
        if before is None:
            record.unlink(missing_ok=True)
        else:
            atomic_write(record, before, force=True)
        raise
    write_record(record, key, files, asked=asked)


def is_unchanged(record: Path, key: str, files: Iterable[Path]) -> bool:
    """Return whether the files of a stage are there, were made with this key and were not changed since."""
    known = _record_of(record, files)
    return known is not None and not known.replacing and known.key == key


def is_outdated(record: Path, files: Iterable[Path], *, asked: str = "") -> bool:
    """Return whether the same request wrote the files of a stage and nobody changed them since.

    What made them may have changed: inputs, code, versions. Such files are made again without a question.
    """
    known = _record_of(record, files)
    return known is not None and known.asked == asked


def _record_of(record: Path, files: Iterable[Path]) -> Record | None:
    """Return the record of files that are as they were written; None where they are not, or it is none."""
    paths = list(files)
    if not record.is_file():
        return None
    try:
        known = decode_json(record.read_bytes(), Record, source=str(record))
    except CorruptArtifactError:
        return None
    if known.replacing:
        return known
    if not all(path.is_file() for path in paths):
        return None
    return known if known.sha256 == {path.name: sha256_file(path) for path in paths} else None


def contents_digest(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Return the digest of named arrays and texts, whatever file they lie in."""
    digest = hashlib.sha256(msgspec.json.encode(dict(metadata), order="sorted"))
    for name, array in sorted(tensors.items()):
        digest.update(f"{name}:{array.dtype.str}{array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
