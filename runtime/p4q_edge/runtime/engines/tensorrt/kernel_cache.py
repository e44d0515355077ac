"""Engines of TensorRT for RTX: their kernels are compiled for the GPU at loading and kept in the cache folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from p4q_edge.runtime.engines.cuda.base import DeviceFacts
from p4q_edge.runtime.engines.tensorrt.library import known_capabilities, rebuild_command
from p4q_edge.runtime.errors import IncompatibleEngineError, UsageError
from p4q_edge.runtime.storage import kept_path, quoted, read_kept, sha256_bytes, write_kept

logger = logging.getLogger(__name__)

MAX_CACHE_BYTES = 512 << 20
_FORMAT = 1


def kernel_cache_path(plan: bytes, *, version: str) -> Path | None:
    """Return where this user's cache keeps the kernels of an engine; None without a cache folder.

    Args:
        plan: the engine's bytes.
        version: of the library. Whether kernels are of this GPU and driver it finds out itself.
    """
    return kept_path("tensorrt-rtx", ".kernels", format=_FORMAT, engine=sha256_bytes(plan), version=version)


class CachedContexts:
    """Makes the execution contexts of an engine, which share compiled kernels; `save` keeps them for the next load."""

    def __init__(self, trt: Any, engine: Any, path: Path | None) -> None:
        """Read the kernels that were kept; the GPU must be current in this thread.

        Args:
            trt: the library's module.
            engine: a loaded engine.
            path: where its kernels are kept; None keeps none.
        """
        self._engine, self._path = engine, path
        self._config = engine.create_runtime_config()
        # Compiled for each batch size before its first run ends: a CUDA graph captured afterwards would else keep the
        # slow kernel for any shape.
        self._config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        # A session captures copies and engine together.
        self._config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        self._cache = self._config.create_runtime_cache()
        self._known = bytes(read_kept(path, limit_bytes=MAX_CACHE_BYTES) or b"")
        if self._known and not self._cache.deserialize(self._known):
            logger.info("%s is of another GPU, driver or library; the kernels are compiled again", path)
        self._config.set_runtime_cache(self._cache)

    def create_execution_context(self) -> Any:
        """Return a new context, or None where there is no memory for one."""
        return self._engine.create_execution_context(runtime_config=self._config)

    def save(self) -> None:
        """Keep the kernels that were compiled; without a place for them the next load compiles again."""
        data = bytes(memoryview(self._cache.serialize()))
        if data == self._known:
            return
        try:
            write_kept(self._path, data)
        except UsageError as error:
            logger.info("the compiled kernels are not kept: %s", error)
            return
        self._known = data


def check_validity(trt: Any, runtime: Any, plan: bytes, *, name: str, gpu: DeviceFacts) -> None:
    """Ask the library whether it can run an engine on the current GPU, before it loads it.

    Args:
        trt: its module.
        runtime: its runtime.
        plan: the engine.
        name: what messages call it.
        gpu: the current one.

    Raises:
        IncompatibleEngineError: it cannot; the message has its reasons.
    """
    validity, found = runtime.get_engine_validity(plan)
    if validity == trt.EngineValidity.INVALID:
        kinds = trt.EngineInvalidityDiagnostics
        reasons = [text for reason, text in _REASONS.items() if found & int(getattr(kinds, reason))]
        raise IncompatibleEngineError(
            f"TensorRT for RTX cannot run {name} on {gpu.name} (compute capability {gpu.compute_capability}): "
            f"{', '.join(reasons) or 'it gives no reason'}. {_way_out(trt, name, gpu.compute_capability)}"
        )
    if validity == trt.EngineValidity.SUBOPTIMAL:
        logger.warning("%s runs slower here than on the GPUs that it was built for", name)


def _way_out(trt: Any, name: str, compute_capability: str) -> str:
    known = known_capabilities(trt)
    if compute_capability in known:
        return f"Run: {rebuild_command(name, capability=compute_capability)}"
    return (
        f"It compiles for {', '.join(sorted(known, key=float))} only. Take TensorRT here: p4q-edge build MODEL.p4q "
        f"--engine {quoted(Path(name).with_suffix('.plan'))}, or a CPU: --engine "
        f"{quoted(Path(name).with_suffix('.onnx'))}"
    )


_REASONS = {
    "VERSION_MISMATCH": "it is of another version of the library",
    "UNSUPPORTED_CC": "it was not built for this GPU",
    "OLD_CUDA_DRIVER": "the CUDA driver is too old",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory",
    "MALFORMED_ENGINE": "the engine is damaged",
    "CUDA_ERROR": "CUDA fails",
}
