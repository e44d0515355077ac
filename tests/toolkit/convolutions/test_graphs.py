"""Convolutions in exported graphs: both graphs compute what the module computes, with one set of weights."""

import copy
from collections import Counter
from collections.abc import Callable, Collection

import numpy as np
import onnx
import pytest
import torch
from module_outputs import reference_outputs
from onnx import numpy_helper
from torch import Tensor, nn

from p4q_edge.calibration.calibrate import calibrate_encoder
from p4q_edge.graph.analysis.convolutions import conv_layers, differing_convolutions
from p4q_edge.graph.export import (
    ExportedGraphs,
    Quantizations,
    conv_quantizations,
    export_classifier,
)
from p4q_edge.graph.lint_rules import lint
from p4q_edge.graph.parity import compare_outputs, run_in_onnxruntime
from p4q_edge.graph.proof.noise import weights_of_seven_bits
from p4q_edge.graph.proof.verdict import CandidateGraph, narrow_convolutions
from p4q_edge.models.folded_classifier import FoldedClassifier
from p4q_edge.models.load import LoadedModel
from p4q_edge.quant.conv import quant_convs
from p4q_edge.quant.linear import Phase, quant_linears, running_in
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.runtime.artifacts import check_exported
from p4q_edge.runtime.engines.onnxruntime import integer_convolutions, without_overflow
from p4q_edge.runtime.statistics import NOISE_FACTOR
from p4q_edge.stages.encoder_file import restore_encoder, save_encoder

Tower = Callable[[str], nn.Module]
Wrap = Callable[[nn.Module], LoadedModel]
Export = Callable[[str], tuple[ExportedGraphs, FoldedClassifier]]
DIM = 24


def classifier(model: LoadedModel, photos: Tensor, scheme: QuantScheme) -> FoldedClassifier:
    encoder = calibrate_encoder(model, photos, scheme).encoder
    text = torch.randn(5, DIM, generator=torch.Generator().manual_seed(0))
    return FoldedClassifier(encoder, None, text, logit_scale=20.0, logit_bias=None, preprocess=model.preprocess)


@pytest.fixture(scope="session")
def exports() -> dict[str, tuple[ExportedGraphs, FoldedClassifier]]:
    """Keeps what was exported."""
    return {}


@pytest.fixture
def export(
    tower: Tower, as_model: Wrap, photos: Tensor, exports: dict[str, tuple[ExportedGraphs, FoldedClassifier]]
) -> Export:
    """Exports a tower by name; not to be changed."""

    def make(name: str) -> tuple[ExportedGraphs, FoldedClassifier]:
        if name not in exports:
            scheme = QuantScheme(depthwise=name == "padded", stem=name == "padded")
            model = classifier(as_model(tower(name)), photos, scheme)
            exports[name] = export_classifier(model, photos.numpy()), model
        return exports[name]

    return make


def complete(graphs: ExportedGraphs) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    return tuple(onnx.load_from_string(graph + graphs.weights) for graph in (graphs.fp16, graphs.fp32))  # type: ignore[return-value]


def without_batch_norms_or_findings(model: onnx.ModelProto) -> bool:
    return not lint(model) and not any(node.op_type == "BatchNormalization" for node in model.graph.node)


@pytest.mark.parametrize(
    "name", ["resnet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fastvit", "padded"))]
)
def test_graphs_of_a_tower(export: Export, name: str) -> None:
    """The gates of the export hold, both graphs are clean, and the CPU's has no quantized convolution."""
    graphs, model = export(name)
    half, single = complete(graphs)
    assert without_batch_norms_or_findings(half)
    assert without_batch_norms_or_findings(single)
    assert {node.path for node in conv_layers(half)} == set(quant_convs(model))
    assert conv_layers(single) == []
    assert all(node.input_scale for node in conv_layers(half))
    assert graphs.parity.flat()["fp32.cosine_embedding"] > 0.9999
    assert graphs.parity.flat()["placed.cosine_embedding"] > 0.999


@pytest.mark.slow
def test_rotary_positions_are_operators_that_a_bundle_may_have(export: Export) -> None:
    graphs, model = export("rotary")
    assert graphs.unsound == {}
    assert quant_linears(model)
    for graph in complete(graphs):
        assert {"Neg", "Unsqueeze"} <= {node.op_type for node in graph.graph.node}
        assert not lint(graph)
        check_exported(graph.SerializeToString(), name="graph")


def test_weights_are_stored_once_as_integers(export: Export) -> None:
    """Neither graph keeps a large constant of its own, and the shared ones have a byte for each quantized weight."""
    graphs, model = export("resnet")
    large = 4096
    for graph in (graphs.fp16, graphs.fp32):
        own = onnx.load_from_string(graph).graph.initializer
        assert [t.name for t in own if np.prod(t.dims) > large] == []
    quantized = sum(conv.weight.numel() for conv in quant_convs(model).values())
    shared = onnx.load_from_string(graphs.weights).graph.initializer
    assert (
        sum(np.prod(t.dims) for t in shared if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4) == quantized
    )


def test_the_cpu_graph_computes_the_module_quantized_as_it_is(export: Export, photos: Tensor) -> None:
    graphs, model = export("resnet")
    found = run_in_onnxruntime(graphs.fp32 + graphs.weights, photos.numpy())
    alike = compare_outputs(reference_outputs(model, photos.numpy(), as_cpu_graph=True), found)
    other = compare_outputs(reference_outputs(model, photos.numpy()), found)
    assert 1 - alike["cosine_embedding"] < 1e-5 < 1 - other["cosine_embedding"]


def test_a_cpu_with_quantized_convolutions_computes_the_module_quantized_as_for_gpus(
    export: Export, photos: Tensor
) -> None:
    graphs, model = export("resnet")
    made = integer_convolutions(graphs.fp16 + graphs.weights, graphs.fp32 + graphs.weights)
    reference = reference_outputs(model, photos.numpy())
    alike = compare_outputs(reference, run_in_onnxruntime(made, photos.numpy(), optimized=False))
    # As near as the same graph before it was stored in FP16, and nearer than that.
    placed, half = (graphs.parity.agreement[name].cosine_embedding for name in ("placed", "fp16"))
    assert placed is not None
    assert half is not None
    assert 1 - alike["cosine_embedding"] < min(2 * (1 - placed) + 1e-7, 1 - half)
    layers = conv_layers(onnx.load_from_string(made))
    assert {layer.path for layer in layers} == {layer.path for layer in conv_layers(complete(graphs)[0])}
    noise = graphs.parity.noise
    assert noise["convolutions"].median_loss <= noise["fp16"].median_loss
    assert noise["seven_bit_convolutions"].worst_loss > noise["convolutions"].worst_loss
    narrow = without_overflow(made)
    seven = compare_outputs(reference, run_in_onnxruntime(narrow, photos.numpy(), optimized=False))
    assert 1 - seven["cosine_embedding"] < NOISE_FACTOR**2 * noise["seven_bit_convolutions"].worst_loss
    integers = [
        one for one in onnx.load_from_string(narrow).graph.initializer if one.name.endswith("conv2.weight_int8")
    ]
    assert {np.abs(numpy_helper.to_array(one)).max() > 63 for one in integers} == {True}  # behind a ReLU


def test_weights_of_seven_bits_are_those_that_the_graph_does_not_show_to_be_safe(export: Export) -> None:
    graphs, model = export("resnet")
    half, _ = complete(graphs)

    def narrow() -> Collection[str]:
        return narrow_convolutions([CandidateGraph(name="placed", kind="fp16", model=half.SerializeToString())])

    assert not narrow()
    for node in half.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Tanh"
    assert narrow() == set(quant_convs(model))
    assert not narrow_convolutions([])
    path, first = next(iter(quant_convs(model).items()))
    with running_in(model, Phase.QUANTIZED):
        with weights_of_seven_bits(model, narrow={path}):
            assert int(first.integer_weight().abs().max()) == 63
        assert int(first.integer_weight().abs().max()) > 63


def readers_of(model: onnx.ModelProto, name: str) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node if name in node.input)


def test_one_pair_behind_the_activation_for_all_readers(export: Export) -> None:
    half, _ = complete(export("resnet")[0])
    producers = {output: node for node in half.graph.node for output in node.output}
    activations = [node for node in half.graph.node if node.op_type == "Relu"]
    shared = 0
    for node in activations:
        (output,) = node.output
        quantizers = [n for n in half.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == output]
        assert len(quantizers) <= 1
        if quantizers:
            assert readers_of(half, output) == {"QuantizeLinear": 1}
            (restored,) = [n for n in half.graph.node if quantizers[0].output[0] in n.input]
            shared += readers_of(half, restored.output[0])["Add"]
    assert shared == 1  # the one block without a convolution in its shortcut
    additions = [n for n in half.graph.node if n.op_type == "Add" and "layer" in n.name]
    kinds = [sorted(producers[name].op_type for name in node.input) for node in additions]
    assert kinds == [["Conv", "DequantizeLinear"]] * len(additions)


def test_pools_between_convolutions_read_restored_tensors(export: Export) -> None:
    half, _ = complete(export("resnet")[0])
    producers = {output: node.op_type for node in half.graph.node for output in node.output}
    pools = [node for node in half.graph.node if node.op_type == "AveragePool"]
    assert len(pools) == 7
    assert {producers[node.input[0]] for node in pools} == {"DequantizeLinear"}


@pytest.mark.slow
def test_small_scales_are_lifted_with_their_bias(tower: Tower, as_model: Wrap, photos: Tensor) -> None:
    visual = tower("timm_resnet")
    conv, norm = visual.layer1[0].conv1, visual.layer1[0].bn1
    norm.weight.data = norm.weight / 1000
    norm.bias.data = norm.bias / 1000
    assert isinstance(conv, nn.Conv2d)
    model = classifier(as_model(visual), photos, QuantScheme(weight_observer="minmax"))
    graphs = export_classifier(model, photos.numpy())
    half, _ = complete(graphs)
    lifted = [t.name for t in half.graph.initializer if "layer1.0.conv1" in t.name and "lifted" in t.name]
    assert sorted(name.partition("conv1.")[2].partition(".")[0] for name in lifted) == [
        "bias_lifted",
        "weight_scale_lifted",
    ]
    assert lint(half) == []


def test_restored_encoders_export_the_same_graphs(
    tower: Tower, as_model: Wrap, photos: Tensor, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, scheme = as_model(tower("fastvit")), QuantScheme()
    calibrated = calibrate_encoder(model, photos, scheme)
    path = tmp_path_factory.mktemp("run") / "calibrated.safetensors"
    save_encoder(calibrated, path, key="k")
    restored = restore_encoder(path, model, scheme, key="k")
    assert restored is not None
    assert restored.grids == calibrated.grids
    assert restored.convolutions == calibrated.convolutions
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(restored.encoder(x), calibrated.encoder(x))
    first, second = (Quantizations.of(found.encoder) for found in (calibrated, restored))
    assert all(np.array_equal(first.convs[path].weight, second.convs[path].weight) for path in first.convs)


def test_a_pair_on_the_convolutions_side_of_an_addition_is_a_finding(export: Export) -> None:
    half, _ = complete(export("resnet")[0])
    broken = copy.deepcopy(half)
    producers = {output: node for node in broken.graph.node for output in node.output}
    addition = next(n for n in broken.graph.node if n.op_type == "Add" and "layer2.1" in n.name)
    side = next(i for i, name in enumerate(addition.input) if producers[name].op_type == "DequantizeLinear")
    addition.input[1 - side] = addition.input[side]
    found = [finding for finding in lint(broken) if finding.rule == "placement"]
    assert [f.message for f in found] == [
        f"expected {addition.name} to add a convolution's result to the quantized tensor"
    ] * len(found)
    assert found


def test_other_integers_or_scales_are_seen(export: Export) -> None:
    graphs, model = export("padded")
    half, _ = complete(graphs)
    convs = conv_quantizations(model)
    path = next(iter(convs))
    name = next(node.input_scale for node in conv_layers(half) if node.path == path)
    for tensor in half.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, name))
    assert path in differing_convolutions(half, convs)
