"""Build an engine unless it is current."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from p4q_edge.runtime.artifacts import Card, card_path, read_card
from p4q_edge.runtime.builders.build import (
    BuildOptions,
    backend_of,
    build_engine,
    cpu_backend,
    recorded_options,
    require_tensorrt,
)
from p4q_edge.runtime.builders.candidates import require_cpu_libraries
from p4q_edge.runtime.choices import BackendName
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.storage import (
    StageCode,
    complete_switch,
    encode_json,
    is_outdated,
    is_unchanged,
    replaced,
    require_writable,
    sha256_bytes,
    sha256_file,
    stage_key,
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
    record = record_path(engine)
    asked = _asked(engine, backend=backend, options=options)
    key, files = engine_key(bundle, engine, backend=backend, options=options), [engine, card_path(engine)]
    if is_unchanged(record, key, files) and not force:
        logger.info("build: unchanged, %s", engine)
        return read_card(engine)
    force = force or is_outdated(record, files, asked=asked)
    require_writable(engine, force=force)
    with replaced(record, key, files, asked=asked):
        return build_engine(bundle, engine, backend=backend, force=force, options=options, progress=progress)


def require_replaceable(engine: Path, *, backend: BackendName | None, options: BuildOptions) -> None:
    """Refuse an engine that `build_unless_current` would refuse, before the bundle is made that takes minutes.

    What lies beside no record of a run is left to the look at the recipe.

    Raises:
        UsageError: it was changed since it was built, or other options made it.
    """
    complete_switch(engine)
    record, files = record_path(engine), [engine, card_path(engine)]
    asked = _asked(engine, backend=backend, options=options)
    if engine.exists() and record.is_file() and not is_outdated(record, files, asked=asked):
        raise UsageError(
            f"{engine} exists already and was built with other options, or was changed since; add --force to replace "
            "it, or name another --engine"
        )


def require_able(engine: Path, *, backend: BackendName | None, options: BuildOptions) -> None:
    """Refuse what `build_engine` would refuse whatever the bundle, before the bundle is made that takes minutes.

    Raises:
        UsageError: an option is out of range, the suffix names no backend, or the environment no profile.
        EnvironmentNotAbleError: the backend is not installed.
    """
    chosen = backend_of(engine, backend)
    if chosen == "tensorrt":
        require_tensorrt(engine)
    elif chosen == "tensorrt-rtx":
        from p4q_edge.runtime.engines.tensorrt import RTX, import_library

        import_library(RTX)
    else:
        require_cpu_libraries(options.cpu_request(cpu_backend(backend), has_forms=False))


def record_path(engine: Path) -> Path:
    """Return where the run folder beside an engine records what the engine was built from."""
    return engine.with_suffix(".run") / f"{engine.name}.record.json"


def engine_key(bundle: Path, engine: Path, *, backend: BackendName | None, options: BuildOptions) -> str:
    """Return the key of an engine: of the bundle, the options and the code that builds it."""
    asked = _asked(engine, backend=backend, options=options)
    return stage_key(BUILD, inputs=[sha256_file(bundle), asked], recipe=None)


def _asked(engine: Path, *, backend: BackendName | None, options: BuildOptions) -> str:
    chosen = backend_of(engine, backend)
    return sha256_bytes(encode_json([chosen, recorded_options(options, chosen)]))
