"""INT4 weights of a stranger's bundle, whose parts contradict each other."""

from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto

from p4q_edge.graph import ExportedGraphs
from p4q_edge.models import FoldedClassifier
from p4q_edge.runtime.builders.candidates import CpuRequest, cpu_candidates
from p4q_edge.runtime.builders.tensorrt.narrow_weights import flavour_of, with_fp16_weights
from p4q_edge.runtime.engines.onnxruntime import float_weights
from p4q_edge.runtime.errors import CorruptArtifactError

Exported = tuple[ExportedGraphs, FoldedClassifier]
Model = onnx.ModelProto


def restoring(model: Model) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.input and node.input[0].endswith(".weight_int4"))


def set_attribute(model: Model, name: str, value: int) -> None:
    next(a for a in restoring(model).attribute if a.name == name).i = value


def weight_and_scale(model: Model) -> tuple[TensorProto, TensorProto]:
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    weight, scale = restoring(model).input
    return stored[weight], stored[scale]


def cut_data(model: Model) -> None:
    weight, _ = weight_and_scale(model)
    weight.raw_data = weight.raw_data[:-1]


def cut_scales(model: Model) -> None:
    _, scale = weight_and_scale(model)
    scale.raw_data = scale.raw_data[:-1]


def numbers_elsewhere(model: Model) -> None:
    weight, _ = weight_and_scale(model)
    weight.ClearField("raw_data")
    weight.int32_data.extend([1] * 10)


def negative_shape(model: Model) -> None:
    weight_and_scale(model)[0].dims[0] = -64


def no_output(model: Model) -> None:
    restoring(model).ClearField("output")


def block_of(size: int) -> Callable[[Model], None]:
    return lambda model: set_attribute(model, "block_size", size)


def axis_of(axis: int) -> Callable[[Model], None]:
    return lambda model: set_attribute(model, "axis", axis)


HOSTILE = {
    "data": cut_data,
    "scales": cut_scales,
    "elsewhere": numbers_elsewhere,
    "negative": negative_shape,
    "no output": no_output,
    "block of 0": block_of(0),
    "block of -1": block_of(-1),
    "block of 7": block_of(7),
    "block of 4 GB": block_of(2**24),
    "block of 4 PB": block_of(2**44),
    "axis 1": axis_of(1),
    "axis 9": axis_of(9),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_weights_that_contradict_themselves_are_told_in_words(
    int4_graphs: Exported, change: Callable[[Model], None]
) -> None:
    """A bundle may come from a stranger, and a block size alone says how much memory its scales would take."""
    graphs, _ = int4_graphs
    whole = onnx.load_from_string(graphs.fp16 + graphs.weights)
    change(whole)
    for_gpus = whole.SerializeToString()
    assert flavour_of(for_gpus) == "int4"
    with pytest.raises(CorruptArtifactError, match="as the exporter writes it"):
        with_fp16_weights(for_gpus)
    for_cpus = onnx.load_from_string(graphs.fp32 + graphs.weights)
    change(for_cpus)
    for act in (float_weights, lambda model: cpu_candidates(model, CpuRequest(choice="auto", backend="onnxruntime"))):
        with pytest.raises(CorruptArtifactError, match=r"as the exporter writes it: .*Export the bundle again"):
            act(for_cpus.SerializeToString())


def test_a_name_that_is_no_text_is_told_in_words(int4_graphs: Exported) -> None:
    graphs, _ = int4_graphs
    broken = (graphs.fp16 + graphs.weights).replace(b".weight_int4", b".\xffeight_int4")
    assert flavour_of(broken) != "int4"
    with pytest.raises(CorruptArtifactError, match=r"is no model: .*Export the bundle again"):
        with_fp16_weights(broken)
