"""Every quantized convolution of a graph by itself: nothing is said of a sound one, and each planted fault is named."""

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from p4q_edge.calibration.calibrate import calibrate_encoder
from p4q_edge.graph.export import Graphs, Quantizations, build_graphs
from p4q_edge.graph.proof.conv_layers import (
    ConvRecord,
    GraphConvolutions,
    record_convolutions,
    wrong_convolutions,
)
from p4q_edge.graph.proof.verdict import CandidateGraph, conv_problem
from p4q_edge.graph.trace import trace_float_graph
from p4q_edge.models.folded_classifier import FoldedClassifier
from p4q_edge.models.load import LoadedModel
from p4q_edge.quant.linear import Phase, running_in
from p4q_edge.quant.scheme import QuantScheme

Built = tuple[Graphs, dict[bool, dict[str, ConvRecord]]]
DIM = 24


@pytest.fixture
def built(
    tower: Callable[[str], nn.Module], as_model: Callable[[nn.Module], LoadedModel], photos: Tensor
) -> Callable[[str], Built]:
    """Makes the graphs of a tower by name, and the records of its module, by whether they are as the CPU's graph."""

    def make(name: str) -> Built:
        scheme = QuantScheme(depthwise=name == "padded", stem=name == "padded")
        loaded = as_model(tower(name))
        encoder = calibrate_encoder(loaded, photos, scheme).encoder
        text = torch.randn(5, DIM, generator=torch.Generator().manual_seed(0))
        module = FoldedClassifier(encoder, None, text, logit_scale=20.0, logit_bias=None, preprocess=loaded.preprocess)
        with running_in(module, Phase.TRACED):
            traced = trace_float_graph(module, photos.shape[2:])
        graphs = build_graphs(traced, Quantizations.of(module))
        records = {cpu: record_convolutions(module, photos.numpy(), as_cpu_graph=cpu) for cpu in (False, True)}
        return graphs, records

    return make


def graphs_of(
    graphs: Graphs, records: dict[bool, dict[str, ConvRecord]]
) -> Iterator[tuple[str, onnx.ModelProto, dict[str, ConvRecord]]]:
    assert graphs.fp16 is not None
    assert graphs.placed is not None
    yield "fp16", graphs.fp16, records[False]
    yield "placed", graphs.placed, records[False]
    yield "fp32", graphs.fp32, records[True]


@pytest.mark.parametrize("name", ["resnet", "fastvit", "padded"])
def test_sound_graphs_raise_no_alarm(built: Callable[[str], Built], name: str) -> None:
    graphs, records = built(name)
    assert records[False]
    assert set(records[False]) == set(records[True])
    for kind, graph, recorded in graphs_of(graphs, records):
        assert set(GraphConvolutions(graph).nodes) == set(recorded), kind
        assert wrong_convolutions(recorded, graph) == {}, kind


def test_none_of_the_planted_faults_is_missed_and_each_is_named(built: Callable[[str], Built]) -> None:
    graphs, records = built("resnet")
    faults = 0
    for kind, graph, recorded in graphs_of(graphs, records):
        tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
        producers = {output: node for node in graph.graph.node for output in node.output}
        for path, node in GraphConvolutions(graph).nodes.items():
            restore = producers[node.input[1]]
            source = producers.get(node.input[0])
            planted = [(restore.input[1], 2.0), (restore.input[1], 0.5)]
            if kind != "fp32":
                assert source is not None
                planted += [(source.input[1], 2.0), (source.input[1], 0.5)]
            for name, factor in planted:
                before = tensors[name].SerializeToString()
                values = numpy_helper.to_array(tensors[name])
                tensors[name].CopyFrom(numpy_helper.from_array(values * values.dtype.type(factor), name))
                assert path in wrong_convolutions({path: recorded[path]}, graph), (kind, path, name, factor)
                tensors[name].ParseFromString(before)
                faults += 1
    assert faults == 10 * len(records[False])


def test_a_wrong_bias_and_wrong_strides_are_named(built: Callable[[str], Built]) -> None:
    graphs, records = built("resnet")
    graph = graphs.fp32
    nodes = GraphConvolutions(graph).nodes
    path = next(path for path, node in nodes.items() if len(node.input) > 2)
    (bias,) = (tensor for tensor in graph.graph.initializer if tensor.name in _behind(graph, nodes[path].input[2]))
    values = numpy_helper.to_array(bias)
    bias.CopyFrom(numpy_helper.from_array((values * values.dtype.type(1.02)), bias.name))
    found = wrong_convolutions(records[True], graph)
    assert list(found) == [path]
    assert found[path].startswith("weight, bias or attributes differ (outputs by up to ")
    (strides,) = (attribute for attribute in nodes[path].attribute if attribute.name == "strides")
    del strides.ints[:]
    strides.ints.extend([3, 3])
    assert wrong_convolutions(records[True], graph)[path].startswith("its result is (1, ")
    candidate = CandidateGraph(name="fp32", kind="fp32", model=graph.SerializeToString(), as_cpu_graph=True)
    said = conv_problem(records[True], candidate)
    assert said is not None
    assert said.startswith(f"1 of its convolutions differs from the module's, first {path}: ")


def _behind(graph: onnx.ModelProto, name: str) -> set[str]:
    """Return the names from which a constant comes through casts, with its own."""
    producers = {output: node for node in graph.graph.node for output in node.output}
    found = {name}
    while name in producers:
        name = producers[name].input[0]
        found.add(name)
    return found


def test_a_convolution_that_is_gone_is_named(built: Callable[[str], Built]) -> None:
    graphs, records = built("resnet")
    path, node = next(iter(GraphConvolutions(graphs.fp32).nodes.items()))
    node.op_type = "ConvTranspose"
    assert wrong_convolutions(records[True], graphs.fp32) == {path: "it has no node with int8 weights"}
    assert np.isfinite(records[True][path].y.numpy()).all()
