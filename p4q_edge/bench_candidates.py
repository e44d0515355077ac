"""What `p4q-edge bench --against` compares with: the same model in full precision, in ONNX Runtime and in PyTorch."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from p4q_edge.command.common import run_recipe_of
from p4q_edge.pipeline import RunFiles, learn_stage, open_source, prepare
from p4q_edge.quant.modules import Phase, set_phase
from p4q_edge.runtime.bench import Candidate
from p4q_edge.runtime.chain import Outputs
from p4q_edge.runtime.engines.onnxruntime import session_options
from p4q_edge.runtime.errors import UsageError


def without_quantization(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same graph in float: no Q/DQ on activations, weights as their dequantized float32 values.

    It has the shape and the cost of the full-precision model; its weights are the quantized ones, so that its
    predictions can be compared.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            graph.initializer.append(_dequantized(node, tensors))
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            renamed[node.output[0]] = renamed.get(node.input[0], node.input[0])
        else:
            kept.append(node)
    for node in kept:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in initializers]
    del graph.initializer[:]
    graph.initializer.extend(copies)
    return result


def fp32(engine: Path, *, threads: int | None = None) -> Candidate:
    """Return the engine's graph in float32 in ONNX Runtime.

    Raises:
        UsageError: the engine is no ONNX model.
    """
    if engine.suffix != ".onnx":
        raise UsageError(f"--against fp32 takes the graph of an .onnx engine, not of {engine}")
    model = without_quantization(onnx.load_model_from_string(engine.read_bytes())).SerializeToString()
    before = time.perf_counter_ns()
    options = session_options("exact", threads=threads)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    load_ms = (time.perf_counter_ns() - before) / 1e6

    def run(batch: NDArray[np.uint8]) -> Outputs:
        logits, embedding = session.run(["logits", "embedding"], {"image": batch})
        return {"logits": logits, "embedding": embedding}

    return Candidate(name="ONNX Runtime FP32", run=run, size_bytes=len(model), load_ms=load_ms)


def pytorch(engine: Path, *, threads: int | None = None) -> Candidate:
    """Return the float classifier of the run folder beside the engine in eager PyTorch.

    Raises:
        UsageError: there is no run folder.
    """
    folder = engine.with_suffix(".run")
    files = RunFiles(folder=folder)
    learned = learn_stage(prepare(open_source(run_recipe_of(folder)), files), files)
    set_phase(learned.classifier, Phase.FLOAT)
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def run(batch: NDArray[np.uint8]) -> Outputs:
        logits, embedding, _ = learned.classifier(torch.from_numpy(batch))
        return {"logits": logits.numpy(), "embedding": embedding.numpy()}

    return Candidate(name="PyTorch FP32", run=run, close=_restoring(before))


def _dequantized(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> onnx.TensorProto:
    integers = numpy_helper.to_array(tensors[node.input[0]]).astype(np.float32)
    scale = numpy_helper.to_array(tensors[node.input[1]]).astype(np.float32)
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    shape = [1] * integers.ndim
    if scale.ndim:
        shape[axis] = -1
    return numpy_helper.from_array(integers * scale.reshape(shape), node.output[0])


def _restoring(threads: int) -> Callable[[], None]:
    return lambda: torch.set_num_threads(threads)
