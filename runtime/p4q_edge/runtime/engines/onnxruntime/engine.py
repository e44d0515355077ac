"""ONNX Runtime on a CPU."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from p4q_edge.runtime.artifacts import OnnxRuntimeBuild, check_model, verify_digest
from p4q_edge.runtime.choices import CpuProfile
from p4q_edge.runtime.engines.contract import INPUT, MAX_MODEL_BYTES, not_an_engine, require_batch, require_outputs
from p4q_edge.runtime.engines.kept_copies import read_kept_copy
from p4q_edge.runtime.engines.onnxruntime.external_weights import split_weights
from p4q_edge.runtime.errors import (
    CorruptArtifactError,
    EnvironmentNotAbleError,
    IncompatibleEngineError,
    P4QEdgeError,
)
from p4q_edge.runtime.machine import cpu as machine
from p4q_edge.runtime.storage import one_line, quoted, read_bounded, sha256_bytes

if TYPE_CHECKING:
    from p4q_edge.runtime.artifacts import Card

logger = logging.getLogger(__name__)

OPTIMIZED = ".optimized"
"""What the name of an engine's optimized copy adds to that of the engine."""
FLOAT_ACTIVATIONS = ("session.qdq_matmulnbits_accuracy_level", "1")
"""Session entry by which products with INT4 weights keep their inputs in FP32: else ONNX Runtime puts these on an 8-bit
grid of its own."""
_ERRORS_ONLY = 3  # ONNX Runtime's severity scale


class OnnxRuntimeEngine:
    """An ONNX model in a CPU session; `run` may be called from several threads at once."""

    def __init__(
        self,
        model: Path | bytes | memoryview,
        *,
        profile: CpuProfile = "exact",
        threads: int | None = None,
        optimized: bool = False,
        name: str = "",
    ) -> None:
        """Load a model.

        Args:
            model: the model's file or bytes. That of an optimized one must not change while it is loaded.
            profile: `exact` makes x86 processors without VNNI add without saturation.
            threads: threads of one run; None takes one a physical core that this process may keep busy.
            optimized: the model was rewritten for this processor before, and is loaded as it is.
            name: what errors call the model.

        Raises:
            EnvironmentNotAbleError: ONNX Runtime is not installed.
            CorruptArtifactError: it is not an ONNX model, or one that is not complete in itself.
            IncompatibleEngineError: this version of ONNX Runtime cannot run it.
        """
        import_onnxruntime()
        self._name = name or str(model)
        self._errors = session_errors()
        data = read_model(model) if isinstance(model, Path) else model
        check_model(data, name=self._name)
        options = session_options(profile, threads=threads, optimized=optimized)
        try:
            # Where the library still rewrites the model, it must find the weights in it.
            self._session: Any = open_optimized(data, options) if optimized else open_session(bytes(data), options)
        except self._errors as error:
            raise load_error(error, name=self._name) from error
        self._outputs = tuple(output.name for output in self._session.get_outputs())
        self._shape = self._input_shape()

    @classmethod
    def from_card(cls, path: Path, card: Card, *, threads: int | None = None) -> OnnxRuntimeEngine:
        """Load the engine of a card, from its optimized copy where that was made by this library on this processor.

        The bytes that are hashed are those that are loaded, so that nothing can change the file between the two.

        Raises:
            IncompatibleEngineError: the card is of another library's engine.
            CorruptArtifactError: the engine or its optimized copy is not the one of the card.
        """
        build = card.build
        if not isinstance(build, OnnxRuntimeBuild):
            raise IncompatibleEngineError(
                f"the card of {path} describes a {card.backend} engine; expected one of ONNX Runtime. "
                f"Build again: p4q-edge build model.p4q --engine {quoted(path)} --force"
            )
        profile, recorded = build.options.kept_profile, build.optimized
        copy = optimized_path(path)
        made_here = fingerprint().items() <= card.built_with.items()
        if recorded is None or not made_here or not copy.is_file():
            if made_here and recorded is not None:
                logger.info("%s is missing; loading %s takes longer without it", copy, path)
            engine = read_model(path)
            verify_digest(sha256_bytes(engine), path, card)
            return cls(engine, profile=profile, threads=threads, name=str(path))
        optimized = read_kept_copy(copy, path, card, recorded, limit_bytes=MAX_MODEL_BYTES, kind="copy")
        return cls(optimized, profile=profile, threads=threads, optimized=True, name=str(path))

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self._shape

    @property
    def output_names(self) -> tuple[str, ...]:
        return self._outputs

    def run(self, image: np.ndarray, outputs: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
        """Return the named outputs (all of them for None) of images (N, 3, H, W) uint8, RGB."""
        if self._session is None:
            raise P4QEdgeError(f"{self._name} was closed. Load it again.")
        names = self._outputs if outputs is None else outputs
        require_batch(image, self._shape[1:])
        try:
            values = self._session.run(list(names), {"image": image})
        except self._errors as error:
            raise P4QEdgeError(f"{self._name} failed in ONNX Runtime: {one_line(error)}") from error
        return dict(zip(names, values, strict=True))

    def close(self) -> None:
        self._session = None

    def _input_shape(self) -> tuple[int, int, int, int]:
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if inputs else []
        fits = len(inputs) == 1 and inputs[0].name == "image" and inputs[0].type == "tensor(uint8)"
        if not fits or len(shape) != 4 or shape[1] != 3 or not all(isinstance(side, int) for side in shape[2:]):
            raise not_an_engine(self._name, INPUT)
        require_outputs(self._outputs, name=self._name)
        return (shape[0] if isinstance(shape[0], int) else -1, 3, shape[2], shape[3])


def open_session(model: bytes, options: Any) -> Any:
    """Return an inference session of ONNX Runtime on the CPU."""
    # The fusion would turn a product of two dimensions (the class token's) into a Gemm, for which there is no integer
    # kernel with float output: its weights would be dequantized in every run.
    return import_onnxruntime().InferenceSession(
        model,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["MatMulAddFusion"],
        # Else it prints to stdout that it tries the same once more.
        enable_fallback=0,
    )


def open_optimized(model: bytes | memoryview, options: Any) -> Any:
    """Return an inference session of a model that is loaded as it is; its large weights are copied once, into it."""
    small, weights = split_weights(model)
    values = import_onnxruntime().OrtValue
    options.add_external_initializers(list(weights), [values.ortvalue_from_numpy(each) for each in weights.values()])
    # Whose memory the session does not hold: `weights` lives until it has its own.
    return open_session(small, options)


def read_model(path: Path) -> bytes:
    """Return the bytes of a model's file.

    Raises:
        InputError: it is missing, no regular file, or too large.
    """
    return read_bounded(path, limit_bytes=MAX_MODEL_BYTES, kind="engine")


def load_error(error: Exception, *, name: str) -> P4QEdgeError:
    """Return what an exception of ONNX Runtime while it loads the model `name` means."""
    if type(error).__name__ in ("NotImplemented", "InvalidGraph", "Fail"):
        return IncompatibleEngineError(
            f"ONNX Runtime {import_onnxruntime().__version__} cannot run {name}: {one_line(error)}. "
            "Upgrade it: pip install --upgrade onnxruntime"
        )
    return CorruptArtifactError(
        f"ONNX Runtime cannot read {name}: {one_line(error)}. Build it again with `p4q-edge build`."
    )


def optimized_path(engine: Path) -> Path:
    """Return the path of the optimized copy of an engine: `out.onnx` -> `out.onnx.optimized`."""
    return engine.with_name(engine.name + OPTIMIZED)


def session_options(profile: CpuProfile, *, threads: int | None = None, optimized: bool = False) -> Any:
    """Return ONNX Runtime's session options for a CPU profile; an optimized model is loaded as it is."""
    runtime = import_onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.inter_op_num_threads = 1
    # Threads that wait for work would keep their cores busy: they take them from the decoding of the next images, from
    # other sessions of this process, and on a machine that others use as well every run waits for the slowest thread.
    # One pool for all sessions would not do: of ONNX Runtime's own, Python cannot tell the threads not to wait busily.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(*FLOAT_ACTIVATIONS)
    if optimized:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    machine.check_threads(threads)
    options.intra_op_num_threads = machine.usable_cores() if threads is None else threads
    if profile in ("exact", "convolutions") and machine.saturates():
        # Makes the weights unsigned, whose kernels do not saturate. Where VNNI is, it would only halve the speed.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def fingerprint() -> Mapping[str, str]:
    """Return what decides the values of an engine: two machines with equal answers compute the same."""
    return {"onnxruntime": import_onnxruntime().__version__, "cpu": machine.cpu()}


def import_onnxruntime() -> Any:
    """Import ONNX Runtime.

    Raises:
        EnvironmentNotAbleError: it is not installed.
    """
    # Imported here so that the package can be imported, and TensorRT used, without it.
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentNotAbleError(
            "ONNX Runtime is not installed; .onnx engines need it. Run: pip install 'p4q-edge-runtime[onnxruntime]'"
        ) from error
    return onnxruntime


def session_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of ONNX Runtime, which have no common class but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NotImplemented")
    return (*(getattr(state, name) for name in names), state.RuntimeException, RuntimeError, ValueError)
