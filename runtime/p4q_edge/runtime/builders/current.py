"""Build an engine unless it is current."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from p4q_edge.runtime.artifacts import Card, card_path, read_card
from p4q_edge.runtime.builders.build import BuildOptions, backend_of, build_engine, recorded_options
from p4q_edge.runtime.choices import BackendName
from p4q_edge.runtime.storage import (
    StageCode,
    complete_switch,
    encode_json,
    is_outdated,
    is_unchanged,
    sha256_bytes,
    sha256_file,
    stage_key,
    write_record,
)

if TYPE_CHECKING:
    from p4q_edge.runtime.builders.tensorrt.worker_process import ShowProgress

logger = logging.getLogger(__name__)

RTX_BINDINGS = ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings")
BUILD = StageCode(
    rooms=("p4q_edge.runtime.builders",),
    libraries=("p4q-edge-runtime", "numpy", "onnxruntime", "openvino", "tensorrt", *RTX_BINDINGS),
)


def build_unless_current(
    bundle: Path,
    engine: Path,
    *,
    backend: BackendName | None = None,
    force: bool = False,
    options: BuildOptions,
    progress: ShowProgress | None = None,
) -> Card:
    """Build an engine as `build_engine`, unless it was built from exactly this and not changed since.

    An engine that the same options made and nobody changed is replaced where its bundle or the code changed.

    The record of what it was built from lies in the run folder beside the engine.
    """
    complete_switch(engine)
    record = engine.with_suffix(".run") / f"{engine.name}.record.json"
    asked = _asked(engine, backend=backend, options=options)
    key, files = engine_key(bundle, engine, backend=backend, options=options), [engine, card_path(engine)]
    if is_unchanged(record, key, files) and not force:
        logger.info("build: unchanged, %s", engine)
        return read_card(engine)
    force = force or is_outdated(record, files, asked=asked)
    card = build_engine(bundle, engine, backend=backend, force=force, options=options, progress=progress)
    write_record(record, key, files, asked=asked)
    return card


def engine_key(bundle: Path, engine: Path, *, backend: BackendName | None, options: BuildOptions) -> str:
    """Return the key of an engine: of the bundle, the options and the code that builds it."""
    asked = _asked(engine, backend=backend, options=options)
    return stage_key(BUILD, inputs=[sha256_file(bundle), asked], recipe=None)


def _asked(engine: Path, *, backend: BackendName | None, options: BuildOptions) -> str:
    chosen = backend_of(engine, backend)
    return sha256_bytes(encode_json([chosen, recorded_options(options, chosen)]))
