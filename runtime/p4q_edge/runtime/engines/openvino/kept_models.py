"""Compiled models that were kept: beside the engine under the digest in its card, or in this user's cache folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from p4q_edge.runtime.artifacts import Card, OpenVINOBuild, verify_digest
from p4q_edge.runtime.choices import Remainder
from p4q_edge.runtime.engines.contract import MAX_MODEL_BYTES
from p4q_edge.runtime.engines.kept_copies import read_kept_copy
from p4q_edge.runtime.engines.openvino import library
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.machine import cpu as machine
from p4q_edge.runtime.storage import kept_path, read_bounded, read_kept, sha256_bytes, write_kept

COMPILED = ".openvino"
"""What the name of an engine's compiled model adds to that of the engine."""
_MAX_BYTES = (4 << 30) - 1
_FORMAT = 1

logger = logging.getLogger(__name__)


def compiled_path(engine: Path) -> Path:
    """Return the path of an engine's compiled model: `out.onnx` -> `out.onnx.openvino`."""
    return engine.with_name(engine.name + COMPILED)


def recorded_copy(engine: Path, card: Card) -> memoryview | None:
    """Return the compiled model beside an engine, or None where none was made on this processor.

    The bytes that are hashed are those that are returned. Whether this version of the library made it says `made_here`.

    Raises:
        CorruptArtifactError: the engine, or the compiled model beside it, is not the one of the card.
    """
    build = card.build
    path = compiled_path(engine)
    if not isinstance(build, OpenVINOBuild) or card.built_with.get("cpu") != machine.cpu() or build.optimized is None:
        return None
    if not path.is_file():
        logger.info("%s is missing; loading %s takes longer without it", path, engine)
        return None
    return read_kept_copy(path, engine, card, build.optimized, limit_bytes=_MAX_BYTES, kind="compiled model")


def made_here(card: Card) -> bool:
    """Return whether this version of the library made what lies beside a card's engine, on this processor."""
    return library.fingerprint().items() <= card.built_with.items()


def verified_bytes(engine: Path, card: Card) -> bytes:
    """Return the bytes of an engine, which are those that its card describes.

    Raises:
        CorruptArtifactError: they are others.
    """
    data = read_bounded(engine, limit_bytes=MAX_MODEL_BYTES, kind="engine")
    verify_digest(sha256_bytes(data), engine, card)
    return data


def kept_model_path(engine_sha256: str, *, remainder: Remainder, batch: int) -> Path | None:
    """Return where this user's cache keeps a compiled model; None without a cache folder.

    The name holds all that a compiled model depends on: the engine, version of OpenVINO, processor, shape.
    """
    facts = {"format": _FORMAT, "engine": engine_sha256, "remainder": remainder, "batch": batch}
    return kept_path("openvino", COMPILED, **{**facts, **library.fingerprint()})


def from_cache(path: Path | None) -> memoryview | None:
    """Return the compiled model in a file of the cache folder; None where there is none that can be believed.

    OpenVINO parses it in native code: a file that somebody else could have written is left alone.
    """
    return read_kept(path, limit_bytes=_MAX_BYTES)


def keep_in_cache(path: Path | None, compiled: Any) -> None:
    """Keep a compiled model for the next load; without a place for it the next load compiles again."""
    try:
        write_kept(path, library.exported(compiled))
    except (UsageError, *library.ERRORS) as error:
        logger.info("the compiled model is not kept: %s", error)
