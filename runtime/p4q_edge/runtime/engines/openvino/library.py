"""OpenVINO itself: importing it, what this processor can do with it, and models compiled for one batch size."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from p4q_edge.runtime.choices import Remainder
from p4q_edge.runtime.engines.contract import INPUT, not_an_engine, require_outputs
from p4q_edge.runtime.errors import (
    EnvironmentNotAbleError,
    IncompatibleEngineError,
    P4QEdgeError,
)
from p4q_edge.runtime.machine import cpu as machine
from p4q_edge.runtime.machine import import_openvino_unreported
from p4q_edge.runtime.storage import one_line

INSTALL = "pip install 'p4q-edge-runtime[openvino]'"
_CPU = "CPU"
ERRORS = (RuntimeError, ValueError, TypeError)
"""What OpenVINO raises: its own exceptions are these."""


def import_openvino(needed_by: str = "") -> Any:
    """Import OpenVINO, without the report of it that its package sends.

    Args:
        needed_by: the engine that was built for it; empty where it was asked for.

    Raises:
        EnvironmentNotAbleError: it is not installed.
    """
    try:
        return import_openvino_unreported()
    except ImportError as error:
        what, other = "--backend openvino needs it", "leave --backend openvino out"
        if needed_by:
            what, other = f"{needed_by} was built for it", "run the same file in ONNX Runtime: --backend onnxruntime"
        raise EnvironmentNotAbleError(f"OpenVINO is not installed, and {what}. Run: {INSTALL}, or {other}") from error


def installed() -> bool:
    """Return whether OpenVINO is installed; it is not imported for that."""
    from importlib.util import find_spec

    try:
        return find_spec("openvino") is not None
    except ValueError:  # what takes its place was made without a specification
        return False


def fingerprint() -> dict[str, str]:
    """Return what decides the values of an engine: two machines with equal answers compute the same."""
    return {"openvino": str(import_openvino().get_version()), "cpu": machine.cpu()}


def remainders() -> tuple[Remainder, ...]:
    """Return the precisions in which this processor has instructions for what is not quantized."""
    able = core().get_property(_CPU, "OPTIMIZATION_CAPABILITIES")
    return ("f32", "bf16") if "BF16" in able else ("f32",)


@functools.cache
def core() -> Any:
    """Return the one entry to OpenVINO of this process; it keeps no cache of its own."""
    return import_openvino().Core()


def compile_options(remainder: Remainder, *, threads: int | None) -> dict[str, Any]:
    """Return OpenVINO's options for one model.

    Raises:
        UsageError: `threads` is out of range.
    """
    machine.check_threads(threads)
    return {
        "INFERENCE_PRECISION_HINT": remainder,
        # One stream: the threads share the work of one image, as those of ONNX Runtime do.
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": machine.usable_cores() if threads is None else threads,
        # Threads that are bound to cores would meet those of other processes there: each process takes the same ones.
        "ENABLE_CPU_PINNING": False,
        # What INT4 weights are multiplied with stays as it is; by default it may get an 8-bit grid.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }


def convert_model(model: bytes, *, name: str) -> Any:
    """Return OpenVINO's form of an ONNX model of this project.

    Raises:
        CorruptArtifactError: it is not a model of this project.
        IncompatibleEngineError: this version of OpenVINO cannot read it.
    """
    try:
        opened = core().read_model(model)
    except ERRORS as error:
        raise _load_error(error, name=name) from error
    inputs, outputs = opened.inputs, {output.get_any_name() for output in opened.outputs}
    shape = inputs[0].get_partial_shape() if len(inputs) == 1 else None
    fits = shape is not None and inputs[0].get_any_name() == "image" and inputs[0].get_element_type() == _u8()
    if not fits or shape is None or len(shape) != 4 or not all(side.is_static for side in list(shape)[1:]):
        raise not_an_engine(name, INPUT)
    require_outputs(sorted(outputs), name=name)
    return opened


def compile_model(model: bytes, options: Mapping[str, Any], *, batch: int, name: str) -> Any:
    """Return a model compiled for `batch` images.

    A fixed shape lets OpenVINO join quantization steps with what is before them, and makes the values of an image the
    same in every batch.

    Raises:
        CorruptArtifactError, IncompatibleEngineError: see `read`.
    """
    opened = convert_model(model, name=name)
    try:
        shape = [batch, *(side.get_length() for side in list(opened.inputs[0].get_partial_shape())[1:])]
        opened.reshape({"image": shape})
        _keep_products_apart(opened)
        return core().compile_model(opened, _CPU, dict(options))
    except ERRORS as error:
        raise _load_error(error, name=name) from error


def _keep_products_apart(opened: Any) -> None:
    """Make what lies between two products of the adapter an output.

    OpenVINO 2026.4.1 joins two small products with a ReLU between them into generated code, and ends the process with a
    segmentation fault while it does for some sizes. It leaves them apart where others read what is between.
    """
    for operator in list(opened.get_ordered_ops()):
        readers = [target.get_node().get_type_name() for target in _targets(operator)]
        if operator.get_type_name() == "Relu" and readers == ["MatMul"]:
            opened.add_outputs([operator.output(0)])


def _targets(operator: Any) -> list[Any]:
    return list(operator.output(0).get_target_inputs()) if operator.get_output_size() else []


def import_compiled(data: memoryview, options: Mapping[str, Any]) -> Any:
    """Return a compiled model from the bytes of `exported`; raises what OpenVINO does where it cannot.

    The model reads its weights where they lie: `data` must be kept as long as the model.
    """
    # A stream would be read through Python, which takes longer and a copy more.
    whole = import_openvino().Tensor(np.frombuffer(data, np.uint8), shared_memory=True)
    return core().import_model(whole, _CPU, dict(options))


def exported(compiled: Any) -> bytes:
    """Return a compiled model as bytes."""
    return bytes(compiled.export_model().getvalue())


def run_error(error: Exception, *, name: str) -> P4QEdgeError:
    """Return what an exception of OpenVINO while it runs the engine `name` means."""
    return P4QEdgeError(f"{name} failed in OpenVINO: {one_line(error)}")


def _load_error(error: Exception, *, name: str) -> P4QEdgeError:
    return IncompatibleEngineError(
        f"OpenVINO {import_openvino().get_version()} cannot run {name}: {one_line(error)}. Build it again, for ONNX "
        "Runtime: p4q-edge build model.p4q --engine out.onnx --backend onnxruntime --force"
    )


def _u8() -> Any:
    return import_openvino().Type.u8
