"""Every linear of a graph by itself: what is wrong with it is said, and nothing is said of a sound one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from p4q_edge.graph.export import ExportedGraphs, export_classifier
from p4q_edge.graph.proof.layers import differing_attentions, record_layers, wrong_layers
from p4q_edge.models.folded_classifier import FoldedClassifier
from p4q_edge.quant.linear import quant_linears
from p4q_edge.quant.scheme import QuantScheme

Exported = tuple[ExportedGraphs, FoldedClassifier]
PATH = "encoder.trunk.transformer.resblocks.0.mlp.c_fc"


def both(graphs: ExportedGraphs) -> dict[str, onnx.ModelProto]:
    return {
        kind: onnx.load_from_string(part + graphs.weights)
        for kind, part in (("fp32", graphs.fp32), ("fp16", graphs.fp16))
    }


def multiply(graph: onnx.ModelProto, name: str, factor: float) -> None:
    (tensor,) = (t for t in graph.graph.initializer if t.name.removesuffix(".fp16") == name)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(values * values.dtype.type(factor), tensor.name))


def test_every_layer_of_both_graphs_is_sound(toy_graphs: Exported, images: NDArray[np.uint8]) -> None:
    graphs, model = toy_graphs
    records = record_layers(model, images[:4])
    assert set(records) == set(quant_linears(model))
    for graph in both(graphs).values():
        assert wrong_layers(records, graph) == {}


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_a_bias_that_is_off_or_gone_is_named(toy_graphs: Exported, images: NDArray[np.uint8], kind: str) -> None:
    graphs, model = toy_graphs
    records = record_layers(model, images[:4])
    graph = both(graphs)[kind]
    multiply(graph, f"{PATH}.bias", 1.01)
    assert list(wrong_layers(records, graph)) == [PATH]
    assert wrong_layers(records, graph)[PATH].startswith("weight or bias differ (outputs by up to ")
    (addition,) = (node for node in graph.graph.node if node.op_type == "Add" and f"{PATH}.bias" in "".join(node.input))
    addition.op_type = "Max"
    assert wrong_layers(records, graph) == {PATH: "it has no bias"}


def test_a_product_that_becomes_an_integer_before_its_bias_is_named(
    toy_graphs: Exported, images: NDArray[np.uint8]
) -> None:
    graphs, model = toy_graphs
    records = record_layers(model, images[:4])
    graph = both(graphs)["fp32"]
    (at,) = (index for index, node in enumerate(graph.graph.node) if node.name == f"{PATH}/MatMul")
    product = graph.graph.node[at]
    there, back = f"{PATH}.whole", product.output[0]
    product.output[0] = f"{PATH}.raw"
    casts = ((product.output[0], there, onnx.TensorProto.INT32), (there, back, onnx.TensorProto.FLOAT))
    for offset, (before, after, to) in enumerate(casts, 1):
        graph.graph.node.insert(at + offset, onnx.helper.make_node("Cast", [before], [after], to=to))
    assert wrong_layers(records, graph) == {PATH: "it has no bias"}


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_an_input_that_is_not_quantized_is_named(toy_graphs: Exported, images: NDArray[np.uint8], kind: str) -> None:
    graphs, model = toy_graphs
    graph = both(graphs)[kind]
    producers = {output: node for node in graph.graph.node for output in node.output}
    (product,) = (node for node in graph.graph.node if node.name == f"{PATH}/MatMul")
    while producers[product.input[0]].op_type in ("QuantizeLinear", "DequantizeLinear"):
        product.input[0] = producers[product.input[0]].input[0]
    found = wrong_layers(record_layers(model, images[:4]), graph)
    assert list(found) == [PATH]
    assert found[PATH].startswith("its input is on another grid (")


def test_wrong_bounds_of_a_narrow_grid_are_named(
    fold_toy: Callable[[QuantScheme], FoldedClassifier], images: NDArray[np.uint8]
) -> None:
    model = fold_toy(QuantScheme(weight_bits=4, activation_bits=4))
    graph = both(export_classifier(model, images))["fp32"]
    multiply(graph, f"{PATH}.input_high", 0.5)
    assert list(wrong_layers(record_layers(model, images[:4]), graph)) == [PATH]


def test_scales_of_attentions_are_compared_and_missing_ones_seen(
    fold_toy: Callable[[QuantScheme], FoldedClassifier], toy_graphs: Exported, images: NDArray[np.uint8]
) -> None:
    model = fold_toy(QuantScheme(quantize_attention=True))
    attention = "encoder.trunk.transformer.resblocks.0.attn"
    for graph in both(export_classifier(model, images)).values():
        assert differing_attentions(model, graph) == ()
        multiply(graph, f"{attention}.key_scale", 2.0)
        assert differing_attentions(model, graph) == (f"{attention}.key",)
    plain = both(toy_graphs[0])["fp32"]
    assert differing_attentions(model, plain) == tuple(
        f"{attention}.{name}" for name in ("query", "key", "value", "softmax")
    )


def test_layers_with_equal_gains_and_shifts_are_told_apart_from_wrong_ones(
    fold_toy: Callable[[QuantScheme], FoldedClassifier], images: NDArray[np.uint8]
) -> None:
    # Of random weights, blocks of one kind get the same ones; the exporter stores them once.
    model = fold_toy(QuantScheme(activation_gain=False))
    width = quant_linears(model)[PATH].weight.shape[1]
    same = {
        path: one for path, one in quant_linears(model).items() if one.weight.shape[1] == width and "encoder" in path
    }
    assert len(same) > 1
    for linear in same.values():
        linear.set_gain(torch.linspace(0.5, 2.0, width).half().float())
        linear.set_shift(torch.linspace(-0.02, 0.02, width).half().float())
        linear.scale_weight()
    records = record_layers(model, images[:4])
    for graph in both(export_classifier(model, images)).values():
        assert wrong_layers(records, graph) == {}
        gains = [tensor.name for tensor in graph.graph.initializer if "input_gain" in tensor.name]
        assert len(gains) == 1
        multiply(graph, gains[0].removesuffix(".fp16"), 1.5)
        assert set(wrong_layers(records, graph)) == set(same)


def test_scales_that_were_lifted_are_those_of_the_module(
    fold_toy: Callable[[QuantScheme], FoldedClassifier], images: NDArray[np.uint8]
) -> None:
    model = fold_toy(QuantScheme())
    linear = quant_linears(model)[PATH]
    small = torch.where(torch.arange(linear.out_features) % 3 == 0, 1.37 * 2.0**-12, 1.0)
    linear.set_weight(linear.weight * small[:, None])
    linear.scale_weight()
    assert float(linear.weight_scale.min()) < 2.0**-14
    graph = both(export_classifier(model, images))["fp16"]
    records = record_layers(model, images[:4])
    assert wrong_layers(records, graph) == {}
    multiply(graph, f"{PATH}.weight_scale_lifted", 1.001)
    assert list(wrong_layers(records, graph)) == [PATH]


@pytest.mark.parametrize("exponent", [-14, *(pytest.param(other, marks=pytest.mark.slow) for other in (-6, -10, -18))])
def test_weights_and_biases_of_a_few_learning_steps_raise_no_alarm(
    fold_toy: Callable[[QuantScheme], FoldedClassifier], images: NDArray[np.uint8], exponent: int
) -> None:
    # An adapter starts at zero: after few steps its scales and biases are below the normal numbers of FP16.
    model = fold_toy(QuantScheme())
    linear = quant_linears(model)[PATH]
    linear.set_weight(linear.weight * 2.0**exponent)
    linear.scale_weight()
    with torch.no_grad():
        linear.bias.copy_(torch.linspace(-1, 1, linear.out_features) * 2.0**exponent * 1.3)
    records = record_layers(model, images[:4])
    graphs = both(export_classifier(model, images))
    for kind, graph in graphs.items():
        assert wrong_layers(records, graph) == {}, kind
        multiply(graph, f"{PATH}.bias", 1.2)
        # What FP16 still tells apart is told: steps of 2**-24 of a bias of up to 1.3 * 2**exponent.
        assert (list(wrong_layers(records, graph)) == [PATH]) or exponent == -18, kind
