"""Heads that belong to an engine: small files in the folder `<engine>.heads`, found by their names."""

from __future__ import annotations

import re
from pathlib import Path

from p4q_edge.runtime.artifacts.bundle import SUFFIX, read_bundle
from p4q_edge.runtime.artifacts.card import Card, read_card, read_card_bytes, verify_engine
from p4q_edge.runtime.artifacts.head import MAX_HEAD_BYTES, EngineHead, Head, load_head, read_head
from p4q_edge.runtime.artifacts.signature import Keys, Kind
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.storage import atomic_write, read_bounded

BUILT_IN = "built-in"
"""Name of the head that is folded into the engine."""
MAX_HEADS = 1024

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def heads_folder(engine: str | Path) -> Path:
    """Return the folder of an engine's heads."""
    engine = Path(engine)
    return engine.with_name(engine.name + ".heads")


def stored_heads(engine: str | Path) -> dict[str, Path]:
    """Return the files of an engine's heads by name.

    Raises:
        UsageError: there are too many.
    """
    found = sorted(heads_folder(engine).glob("*.safetensors"))
    if len(found) > MAX_HEADS:
        raise UsageError(f"{heads_folder(engine)} holds {len(found)} heads; at most {MAX_HEADS} are used. Remove some.")
    return {path.stem: path for path in found}


def require_fit(head: Head, card: Card, *, name: str) -> None:
    """Raise `ArtifactError` unless a head was made for the model of an engine."""
    head.require_fit(name=name, embedding_dim=card.embedding_dim, weights_sha256=card.model.weights_sha256)


def add_head(engine: str | Path, source: str | Path, *, name: str | None = None, force: bool = False) -> str:
    """Copy a head (a `.safetensors` file, or that of a bundle) to those of an engine, and return its name.

    Raises:
        UsageError: the name cannot be used, or is taken and `force` is false.
        ArtifactError: the head was made for another model.
    """
    source = Path(source)
    name = source.stem if name is None else name
    if not _NAME.fullmatch(name) or name == BUILT_IN:
        raise UsageError(
            f"{name!r} cannot be the name of a head; expected up to 64 letters, digits, dots, dashes and underscores, "
            f"and not {BUILT_IN!r}. Add --name NAME."
        )
    head = open_head(source)
    require_fit(head, read_card(engine), name=name)
    atomic_write(heads_folder(engine) / f"{name}.safetensors", head.to_bytes(), force=force)
    return name


def remove_head(engine: str | Path, name: str) -> Path:
    """Remove a head from those of an engine, and return the file that was removed.

    Raises:
        UsageError: there is none of this name, or it is the one folded into the engine.
    """
    stored = stored_heads(engine)
    if name == BUILT_IN:
        raise UsageError(f"the built-in head is part of {engine} and cannot be removed. Others: {_listed(stored)}.")
    _require_stored(engine, name, stored)
    stored[name].unlink()
    return stored[name]


def open_head(source: str | Path, *, trusted: Keys = None) -> Head:
    """Return the head in a `.safetensors` file, or that of a bundle; `trusted` as in `Keys`."""
    source = Path(source)
    if source.suffix == SUFFIX:
        return read_bundle(source, trusted=trusted).head()
    return load_head(source, trusted=trusted)


def engine_head(engine: str | Path, name: str) -> EngineHead:
    """Return a head of an engine by name; `BUILT_IN` is the one folded into it.

    Raises:
        UsageError: there is none of this name.
    """
    return read_card(engine).head if name == BUILT_IN else find_head(engine, name)


def find_head(engine: str | Path, name: str) -> Head:
    """Return a head of an engine by name.

    Raises:
        UsageError: there is none of this name, or it is the one folded into the engine.
    """
    stored = stored_heads(engine)
    if name == BUILT_IN:
        raise UsageError(f"the built-in head is part of {engine}. Name the bundle instead of the engine to export it.")
    _require_stored(engine, name, stored)
    return load_head(stored[name])


def _require_stored(engine: str | Path, name: str, stored: dict[str, Path]) -> None:
    if name not in stored:
        raise UsageError(f"{engine} has no head {name!r}; it has {', '.join([BUILT_IN, *stored])}.")


def _listed(stored: dict[str, Path]) -> str:
    return ", ".join(stored) or "none"


def deciding_bytes(artifact: str | Path) -> tuple[Kind, bytes]:
    """Return what an artifact is and the bytes that decide what it answers, after all that they vouch for was checked.

    Raises:
        InputError: a file is missing.
        CorruptArtifactError: it is damaged, or not what its card or manifest describes.
    """
    artifact = Path(artifact)
    suffix = artifact.suffix.lower()
    if suffix == SUFFIX:
        return "bundle", read_bundle(artifact, trusted=()).deciding_bytes
    if suffix == ".safetensors":
        head = read_bounded(artifact, limit_bytes=MAX_HEAD_BYTES, kind="head")
        read_head(head, source=str(artifact))
        return "head", head
    data, card = read_card_bytes(artifact, trusted=())
    verify_engine(artifact, card)
    return "engine", data
