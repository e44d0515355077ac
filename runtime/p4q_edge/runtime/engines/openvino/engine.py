"""OpenVINO on a CPU."""

from __future__ import annotations

import logging
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from p4q_edge.runtime.artifacts import OpenVINOBuild, check_model
from p4q_edge.runtime.choices import Remainder
from p4q_edge.runtime.engines.contract import require_batch
from p4q_edge.runtime.engines.openvino import library
from p4q_edge.runtime.engines.openvino.kept_models import (
    from_cache,
    keep_in_cache,
    kept_model_path,
    made_here,
    recorded_copy,
    verified_bytes,
)
from p4q_edge.runtime.errors import CorruptArtifactError, IncompatibleEngineError, P4QEdgeError
from p4q_edge.runtime.stage import OUTPUT_NAMES
from p4q_edge.runtime.storage import one_line, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from p4q_edge.runtime.artifacts import Card

logger = logging.getLogger(__name__)

SEVERAL = 8
"""Images that are run together where a call has as many and the engine was built for single ones."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where the model of an engine comes from.

    Attributes:
        model: gives the ONNX model; called only where nothing compiled is kept.
        engine_sha256: its digest, under which compiled models are kept; empty keeps none.
        compiled: the model as it was compiled before, for the batch that the engine was built for.
    """

    model: Callable[[], bytes]
    engine_sha256: str = ""
    compiled: memoryview | None = None


class OpenVINOEngine:
    """An ONNX model in OpenVINO; `run` may be called from several threads at once.

    It is compiled for fixed numbers of images: the one that it was built for, and another one when it is first needed.
    An image has the same values in both.
    """

    def __init__(
        self,
        source: ModelSource,
        *,
        remainder: Remainder = "f32",
        threads: int | None = None,
        batch: int = 1,
        name: str = "an engine",
        profiling: bool = False,
    ) -> None:
        """Load a model.

        Args:
            source: the model.
            remainder: precision of what is not quantized.
            threads: threads of one run; None takes one a core that this process may use.
            batch: images that are run together; single ones run as well.
            name: what errors call it.
            profiling: let OpenVINO time its operators, for `profile`.

        Raises:
            EnvironmentNotAbleError: OpenVINO is not installed.
            CorruptArtifactError: it is not a model of this project.
            IncompatibleEngineError: this version of OpenVINO cannot run it.
        """
        library.import_openvino()
        # Without the memory of what was compiled, which is held as long as its requests are.
        self._name, self._source, self._remainder = name, replace(source, compiled=None), remainder
        self._options = library.compile_options(remainder, threads=threads)
        self._options["PERF_COUNT"] = profiling
        self._lock = threading.Lock()
        self._sizes = (1, batch) if batch > 1 else (1, SEVERAL)
        self._models: dict[int, _Requests] | None = {}
        self._models[batch] = self._load(batch, source.compiled)
        first = self._models[batch].compiled
        self._outputs = OUTPUT_NAMES
        self._widths = {name: first.output(name).get_shape()[1] for name in self._outputs}
        _, channels, height, width = first.inputs[0].get_shape()
        self._shape = (-1, channels, height, width)

    @classmethod
    def from_card(cls, path: Path, card: Card, *, threads: int | None = None) -> OpenVINOEngine:
        """Load the engine of a card, compiled before where that was by this library for this processor.

        Raises:
            EnvironmentNotAbleError: OpenVINO is not installed.
            IncompatibleEngineError: the card is of another library's engine.
            CorruptArtifactError: the engine or its compiled model is not the one of the card.
        """
        build = card.build
        if not isinstance(build, OpenVINOBuild):
            raise IncompatibleEngineError(
                f"the card of {path} describes a {card.backend} engine; expected one of OpenVINO. "
                f"Build again: p4q-edge build model.p4q --engine {quoted(path)} --backend openvino --force"
            )
        options = build.options
        with ThreadPoolExecutor(max_workers=1) as reader:
            # Importing the library takes about as long as reading and hashing a compiled model.
            copy = reader.submit(recorded_copy, path, card)
            # Without a version the card is of an engine that `--backend` takes to another library.
            library.import_openvino(str(path) if build.built_with.openvino else "")
            kept = copy.result() if made_here(card) else None
        if kept is None:
            # Also where a compiled model of the cache spares reading it: the file must be the card's.
            verified_bytes(path, card)
        source = ModelSource(model=lambda: verified_bytes(path, card), engine_sha256=card.engine_sha256, compiled=kept)
        return cls(
            source,
            remainder=options.kept_remainder,
            threads=threads,
            batch=options.batch,
            name=str(path),
        )

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self._shape

    @property
    def output_names(self) -> tuple[str, ...]:
        return self._outputs

    def run(self, image: np.ndarray, outputs: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
        """Return the named outputs (all of them for None) of images (N, 3, H, W) uint8, RGB."""
        if self._models is None:
            raise P4QEdgeError(f"{self._name} was closed. Load it again.")
        names = self._outputs if outputs is None else outputs
        require_batch(image, self._shape[1:])
        if unknown := [name for name in names if name not in self._outputs]:
            raise P4QEdgeError(f"{self._name} failed in OpenVINO: it has no output {', '.join(unknown)}")
        parts = [self._requests(size).run(chunk, names, name=self._name) for size, chunk in _chunks(image, self._sizes)]
        if not parts:
            return {name: np.empty((0, self._widths[name]), np.float32) for name in names}
        if len(parts) == 1:
            return {name: values[: len(image)] for name, values in parts[0].items()}
        return {name: np.concatenate([part[name] for part in parts])[: len(image)] for name in names}

    def close(self) -> None:
        self._models = None

    def compiled(self, batch: int) -> bytes:
        """Return the model as it is compiled for `batch` images, which must be one of its sizes."""
        return library.exported(self._requests(batch).compiled)

    def runtime_model(self, batch: int) -> Any:
        """Return OpenVINO's description of what runs for `batch` images."""
        return self._requests(batch).compiled.get_runtime_model()

    def profile(self, image: np.ndarray) -> list[tuple[str, float]]:
        """Run images of the number that it was built for; return each operator's kind with its milliseconds."""
        request = self._requests(len(image)).compiled.create_infer_request()
        request.infer([np.ascontiguousarray(image)])
        return [
            (f"{one.node_type} {one.exec_type}", one.real_time.total_seconds() * 1e3)
            for one in request.profiling_info
            if one.real_time.total_seconds() > 0
        ]

    def _requests(self, batch: int) -> _Requests:
        models = self._models
        if models is None:
            raise P4QEdgeError(f"{self._name} was closed. Load it again.")
        # Two calls that need the same new size compile it once.
        with self._lock:
            if batch not in models:
                models[batch] = self._load(batch, None)
        return models[batch]

    def _load(self, batch: int, compiled: memoryview | None) -> _Requests:
        """Return the model compiled for `batch` images: kept beside the engine, kept in the cache, or compiled now."""
        if compiled is not None:
            try:
                return _Requests(library.import_compiled(compiled, self._options), memory=compiled)
            except library.ERRORS as error:
                raise CorruptArtifactError(
                    f"the compiled model of {self._name} cannot be read: {one_line(error)}. Delete it, or "
                    f"build again: p4q-edge build model.p4q --engine {quoted(self._name)} --force"
                ) from error
        digest = self._source.engine_sha256
        path = kept_model_path(digest, remainder=self._remainder, batch=batch) if digest else None
        if (kept := from_cache(path)) is not None:
            try:
                return _Requests(library.import_compiled(kept, self._options), memory=kept)
            except library.ERRORS as error:
                logger.info("%s cannot be read, and is rebuilt: %s", path, one_line(error))
        data = self._source.model()
        check_model(data, name=self._name)
        made = library.compile_model(data, self._options, batch=batch, name=self._name)
        if digest:
            keep_in_cache(path, made)
        return _Requests(made)


class _Requests:
    """A compiled model with the requests that threads take turns with: one runs one call at a time."""

    def __init__(self, compiled: Any, *, memory: memoryview | None = None) -> None:
        self.compiled = compiled
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._memory = memory  # of its weights: last, so that it is freed after what reads it

    def run(self, image: np.ndarray, names: tuple[str, ...], *, name: str) -> dict[str, np.ndarray]:
        try:
            try:
                request = self._free.get_nowait()
            except queue.Empty:
                request = self.compiled.create_infer_request()
            request.infer([np.ascontiguousarray(image)], share_inputs=True)
            # The next call with this request overwrites what it gives now.
            values = {output: np.array(request.get_tensor(output).data) for output in names}
        except library.ERRORS as error:
            raise library.run_error(error, name=name) from error
        self._free.put(request)
        return values


def _chunks(image: np.ndarray, sizes: tuple[int, int]) -> Iterator[tuple[int, np.ndarray]]:
    """Give images (N, 3, H, W) as parts of one of two sizes; a last part of more than half the larger is filled up."""
    single, several = sizes
    start, total = 0, len(image)
    while start < total:
        left = total - start
        if 2 * left > several:
            part = image[start : start + several]
            if len(part) < several:
                part = np.concatenate([part, np.repeat(part[-1:], several - len(part), axis=0)])
            yield several, part
            start += several
        else:
            yield single, image[start : start + 1]
            start += 1


def model_source(model: bytes) -> ModelSource:
    """Return a model that nothing is kept of."""
    return ModelSource(model=lambda: model)
