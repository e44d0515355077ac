"""Where TensorRT diverges from ONNX Runtime: the same graph in both, the outputs of every linear compared.

A finished plan hides what its kernels pass to each other, so the bundle's TensorRT graph is built once more with the
input and output of every linear as outputs of its own. That forbids some fusions: a difference that only a fused kernel
makes disappears here, and `compare_with_onnxruntime` then names no linear although the plan differs. polygraphy drives
both runtimes.
"""

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from p4q_edge.evaluation.layer_debug import LayerValues, added_error, compare_layers, first_difference
from p4q_edge.graph.analysis import linear_nodes
from p4q_edge.runtime.engines.cuda import open_cuda
from p4q_edge.runtime.engines.tensorrt import import_tensorrt
from p4q_edge.runtime.errors import ArtifactError, EnvironmentNotAbleError
from p4q_edge.runtime.evaluation.report import DebugReport
from p4q_edge.runtime.wording import number_of

logger = logging.getLogger(__name__)

REFERENCE = "the same graph in ONNX Runtime"
# FP16 values between the linears, integer kernels and reciprocal scales: steps apart now and then, and these add up.
TENSORRT_KERNELS = 0.1
_SEVERITY_ERROR = 3

Runner = Callable[[onnx.ModelProto, int], object]
"""From a graph and a largest batch to a polygraphy runner."""


def compare_with_onnxruntime(
    graph: bytes,
    images: NDArray[np.uint8],
    *,
    make_runner: Runner | None = None,
    on_difference: Callable[[str, LayerValues], None] | None = None,
) -> DebugReport:
    """Name the first linear where TensorRT diverges from ONNX Runtime.

    Args:
        graph: the complete ONNX model with FP16 remainder, as the bundle has it for TensorRT.
        images: uint8 (n, 3, H, W).
        make_runner: makes the runner that is compared; TensorRT's by default.
        on_difference: is given the first linear that diverges, and what every linear of TensorRT read and gave.

    Raises:
        EnvironmentNotAbleError: no GPU, no TensorRT, or polygraphy is not installed.
        ArtifactError: the graph has no quantized linears.
    """
    model = onnx.load_model_from_string(graph)
    nodes = linear_nodes(model)
    if not nodes:
        raise ArtifactError("the graph has no quantized linears to compare. Export the bundle again.")
    opened = with_linear_outputs(model)
    # CUDA answers before polygraphy imports TensorRT, whose factories crash without a driver.
    runner = (make_runner or tensorrt_runner)(opened, len(images))
    values = _run(opened, runner, images)
    layers = {
        name: LayerValues(
            inputs={node.path: found[node.input] for node in nodes},
            outputs={node.path: found[node.output] for node in nodes},
        )
        for name, found in values.items()
    }
    findings = compare_layers(layers["reference"], layers["candidate"], [node.path for node in nodes])
    first = first_difference(findings, TENSORRT_KERNELS)
    if first is not None and on_difference is not None:
        on_difference(first.layer, layers["candidate"])
    operators = {node.path: node.operator for node in nodes}
    logger.info(
        "compared %s on %s with %s", number_of(len(findings), "linear"), number_of(len(images), "image"), REFERENCE
    )
    return DebugReport(
        reference=REFERENCE,
        n=len(images),
        tolerance=TENSORRT_KERNELS,
        first=None if first is None else first.layer,
        operator=None if first is None else operators[first.layer],
        layers=findings,
        keep_float=added_error(findings, TENSORRT_KERNELS),
    )


def with_linear_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a graph in which the input and output of every linear are outputs, with their types."""
    inferred = onnx.shape_inference.infer_shapes(model)
    # TensorRT's parser wants the type of every output; ONNX Runtime would infer it.
    types = {value.name: value for value in inferred.graph.value_info}
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    known = {value.name for value in (*opened.graph.input, *opened.graph.output)}
    names = dict.fromkeys(name for node in linear_nodes(model) for name in (node.input, node.output))
    for name in names:
        if name not in known:
            opened.graph.output.append(types[name])
    return opened


def tensorrt_runner(model: onnx.ModelProto, batch: int) -> object:
    """Return polygraphy's runner of a graph in TensorRT, strongly typed; the engine is built when it is first used.

    Raises:
        EnvironmentNotAbleError: no GPU, no TensorRT, or polygraphy is not installed.
    """
    facts = open_cuda().facts
    import_tensorrt(facts)
    trt = _polygraphy("polygraphy.backend.trt")
    sample = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    profile = trt.Profile().add("image", (1, *sample), (batch, *sample), (batch, *sample))
    network = trt.NetworkFromOnnxBytes(model.SerializeToString(), strongly_typed=True)
    return trt.TrtRunner(trt.EngineFromNetwork(network, trt.CreateConfig(profiles=[profile])), name="TensorRT")


def _run(
    model: onnx.ModelProto, candidate: object, images: NDArray[np.uint8]
) -> Mapping[str, Mapping[str, NDArray[Any]]]:
    """Return every output of both runners."""
    onnxrt, comparator = _polygraphy("polygraphy.backend.onnxrt"), _polygraphy("polygraphy.comparator")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SEVERITY_ERROR
    # Nothing fused and nothing reordered: the graph as it is written.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    runners = [onnxrt.OnnxrtRunner(session, name=REFERENCE), candidate]
    results = comparator.Comparator.run(runners, data_loader=[{"image": images}])
    (_, reference), (_, found) = results.items()
    return {"reference": dict(reference[0]), "candidate": dict(found[0])}


def _polygraphy(module: str) -> Any:
    # Imported by name and here: an extra that only --debug needs.
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EnvironmentNotAbleError(
            f"--debug of TensorRT needs polygraphy ({error}). Run: pip install '.[polygraphy]'"
        ) from error
