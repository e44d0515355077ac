"""INT4 weights in the exported graphs: what is stored, what it computes, and what lint and proof see."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from toy_exports import LINEAR, Exported, Model, check_float_profile, half, set_tensor, single, stored

from p4q_edge.calibration import calibrate_encoder
from p4q_edge.graph import ExportedGraphs, export_classifier
from p4q_edge.graph.analysis import differing_linears
from p4q_edge.graph.export import linear_quantizations
from p4q_edge.graph.lint_rules import lint
from p4q_edge.graph.proof.layers import record_layers, wrong_layers
from p4q_edge.models import FoldedClassifier, LoadedModel
from p4q_edge.quant import QuantScheme, quant_linears
from p4q_edge.runtime.builders.onnxruntime import inspect_kernels, optimized_model
from p4q_edge.runtime.builders.tensorrt.narrow_weights import flavour_of, unpacked, with_fp16_weights
from p4q_edge.runtime.engines.onnxruntime import seven_bit_weights
from p4q_edge.runtime.errors import ArtifactError
from p4q_edge.stages.encoder_file import restore_encoder, save_encoder
from p4q_edge.stages.export import block_of


def in_blocks(model: FoldedClassifier) -> dict[str, int]:
    return {path: linear.block for path, linear in quant_linears(model).items() if linear.block is not None}


def test_every_graph_computes_what_the_fake_quantized_module_computes(int4_graphs: Exported) -> None:
    graphs, _ = int4_graphs
    assert graphs.unsound == {}
    assert graphs.narrowest_bits == 8  # the adapter's
    cosines = {name: value for name, value in graphs.parity.flat().items() if ".cosine_" in name}
    assert len(cosines) == 9
    assert min(cosines.values()) > 0.9999


def test_the_graphs_hold_the_integers_and_scales_of_the_module(int4_graphs: Exported) -> None:
    graphs, model = int4_graphs
    linears = quant_linears(model)
    assert len(in_blocks(model)) == len(linears) - 2  # those of the adapter have 8 bits
    for graph in (half(graphs), single(graphs)):
        onnx.checker.check_model(graph, full_check=True)
        assert [(o.domain, o.version) for o in graph.opset_import] == [("", 21)]
        tensors = stored(graph)
        for path, block in in_blocks(model).items():
            tensor = tensors[f"{path}.weight_int4"]
            assert tensor.data_type == TensorProto.INT4
            assert len(tensor.raw_data) == linears[path].weight.numel() // 2
            integers = numpy_helper.to_array(tensor).astype(np.int8)
            np.testing.assert_array_equal(integers.T, linears[path].integer_weight().numpy())
            (node,) = [node for node in graph.graph.node if tensor.name in node.input]
            assert {a.name: a.i for a in node.attribute} == {"axis": 0, "block_size": block}
            assert len(node.input) == 2
        assert not [name for name in tensors if name.endswith(".input_scale") and "adapter" not in name]
    assert differing_linears(single(graphs), linear_quantizations(model)) == ()


def test_the_integers_are_stored_once(int4_graphs: Exported) -> None:
    graphs, model = int4_graphs
    shared = {tensor.name for tensor in onnx.load_from_string(graphs.weights).graph.initializer}
    assert {f"{path}.weight_int4" for path in in_blocks(model)} <= shared


def changed(graphs: ExportedGraphs, change: Callable[[Model], None]) -> Model:
    model = half(graphs)
    change(model)
    return model


def restoring(model: Model) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.input and node.input[0] == f"{LINEAR}.weight_int4")


def set_attribute(model: Model, name: str, value: int) -> None:
    next(a for a in restoring(model).attribute if a.name == name).i = value


def older_opset(model: Model) -> None:
    model.opset_import[0].version = 22


def one_block(model: Model) -> None:
    scale = restoring(model).input[1]
    array = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == scale))
    set_tensor(model, scale, array[:1])
    set_attribute(model, "block_size", 64)


def a_product_of_another_kind(model: Model) -> None:
    restored = restoring(model).output[0]
    model.graph.node.append(helper.make_node("Neg", [restored], ["extra"], name="extra"))


@pytest.mark.parametrize(
    ("change", "rule", "told"),
    [
        (older_opset, "opset", "expected opset 21 beside INT4 weights, got ai.onnx 22"),
        (one_block, "weight-axis", "expected at least two whole blocks of 64 inputs, got blocks of 64"),
        (a_product_of_another_kind, "weight-axis", "expected a MatMul behind an INT4 weight, got Neg"),
    ],
)
def test_lint_sees_what_a_compiler_would_read_otherwise(
    int4_graphs: Exported, change: Callable[[Model], None], rule: str, told: str
) -> None:
    graphs, _ = int4_graphs
    assert lint(changed(graphs, lambda model: None)) == []
    found = lint(changed(graphs, change))
    assert (rule, told) in {(finding.rule, finding.message) for finding in found}


def test_a_wrong_integer_and_a_wrong_scale_are_found(int4_graphs: Exported, images: NDArray[np.uint8]) -> None:
    graphs, model = int4_graphs
    records = record_layers(model, images[:4])
    graph = single(graphs)
    assert wrong_layers(records, graph) == {}
    name = f"{LINEAR}.weight_int4"
    integers = numpy_helper.to_array(stored(graph)[name]).astype(np.int8)
    integers[0, 0] = -integers[0, 0] + (integers[0, 0] == 0)
    set_tensor(graph, name, integers.astype(ml_dtypes.int4))
    assert set(wrong_layers(records, graph)) == {LINEAR}
    assert differing_linears(graph, linear_quantizations(model)) == (LINEAR,)
    graph = single(graphs)
    scale = numpy_helper.to_array(stored(graph)[f"{LINEAR}.weight_scale"]).copy()
    scale[1] *= 1.01
    set_tensor(graph, f"{LINEAR}.weight_scale", scale)
    assert set(wrong_layers(records, graph)) == {LINEAR}


def test_onnx_runtime_reads_the_integers_itself_and_keeps_activations_in_float(
    int4_graphs: Exported, images: NDArray[np.uint8]
) -> None:
    """Without the session's entry it would put activations on an 8-bit grid of its own, 0.6 % off."""
    graphs, model = int4_graphs
    optimized = optimized_model(graphs.fp32 + graphs.weights, "exact", name="toy")
    kernels = inspect_kernels(optimized, "exact", images[:1])
    assert kernels.kernels["MatMulNBits"] == len(in_blocks(model))
    nodes = [node for node in onnx.load_from_string(optimized).graph.node if node.op_type == "MatMulNBits"]
    levels = {a.i for node in nodes for a in node.attribute if a.name == "accuracy_level"}
    assert levels == {1}


def test_the_float_profile_has_the_values_of_the_weights(int4_graphs: Exported, images: NDArray[np.uint8]) -> None:
    graphs, _ = int4_graphs
    assert flavour_of(check_float_profile(graphs, images)) != "int4"


def test_there_is_no_fast_profile(int4_graphs: Exported) -> None:
    graphs, _ = int4_graphs
    with pytest.raises(ArtifactError, match="INT4 weights, whose products are in FP32, so that it has no fast profile"):
        seven_bit_weights(graphs.fp32 + graphs.weights)


def test_the_model_of_an_fp16_plan_holds_the_same_values(int4_graphs: Exported) -> None:
    graphs, model = int4_graphs
    whole = graphs.fp16 + graphs.weights
    assert flavour_of(whole) == "int4"
    written = with_fp16_weights(whole)
    assert flavour_of(written) != "int4"
    restored = onnx.load_from_string(written)
    onnx.checker.check_model(restored, full_check=True)
    tensors = stored(restored)
    original = onnx.load_from_string(whole)
    for path, block in in_blocks(model).items():
        (node,) = [node for node in original.graph.node if f"{path}.weight_int4" in node.input]
        values = {t.name: numpy_helper.to_array(t) for t in original.graph.initializer if t.name in node.input}
        integers, scale = (values[name].astype(np.float32) for name in node.input)
        expected = (integers * np.repeat(scale, block, axis=0)).astype(np.float16)
        np.testing.assert_array_equal(numpy_helper.to_array(tensors[node.output[0]]), expected)
    assert len(restored.graph.node) == len(original.graph.node) - len(in_blocks(model))


def test_an_int4_weight_of_another_kind_is_refused(int4_graphs: Exported) -> None:
    graphs, _ = int4_graphs
    broken = changed(graphs, lambda model: set_attribute(model, "block_size", 8))
    with pytest.raises(ArtifactError, match="is not in blocks as the exporter writes it"):
        with_fp16_weights(broken.SerializeToString())


@pytest.mark.parametrize("count", [1, 2, 7])
def test_halves_of_bytes_are_read_as_onnx_packs_them(count: int) -> None:
    values = np.arange(-8, 8, dtype=np.int8)[:count]
    packed = numpy_helper.from_array(values.astype(ml_dtypes.int4), "w").raw_data
    np.testing.assert_array_equal(unpacked(packed, count), values)


def test_an_encoder_is_restored_with_its_blocks(
    toy_clip: LoadedModel, images: NDArray[np.uint8], tmp_path: Path, int4_graphs: Exported
) -> None:
    scheme = QuantScheme(weight_bits=4, activation_bits=16, weight_block=32, weight_rounding="descent")
    calibrated = calibrate_encoder(toy_clip, torch.from_numpy(images), scheme)
    save_encoder(calibrated, tmp_path / "encoder.safetensors", key="k")
    again = restore_encoder(tmp_path / "encoder.safetensors", toy_clip, scheme, key="k")
    assert again is not None
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(calibrated.encoder(pixels), again.encoder(pixels))


def test_small_weights_are_lifted_into_the_normal_numbers_of_fp16(
    fold_toy: Callable[[QuantScheme], FoldedClassifier], images: NDArray[np.uint8], int4_graphs: Exported
) -> None:
    _, model = int4_graphs
    scheme = replace(next(iter(quant_linears(model).values())).scheme, weight_rounding="nearest")
    tiny = fold_toy(scheme)
    linear = quant_linears(tiny)[LINEAR]
    linear.set_weight(linear.weight.detach() * 2.0**-14)
    linear.scale_weight()
    graphs = export_classifier(tiny, images)
    assert graphs.unsound == {}
    graph = half(graphs)
    assert lint(graph) == []
    scale = next(t for t in graph.graph.initializer if t.name == restoring(graph).input[1])
    assert float(numpy_helper.to_array(scale).min()) >= 2.0**-14


def test_a_bundle_is_told_to_have_blocks_only_where_a_weight_is_in_one(
    fold_toy: Callable[[QuantScheme], FoldedClassifier],
) -> None:
    scheme = QuantScheme(weight_bits=4, activation_bits=16, weight_block=32)
    assert block_of(scheme, fold_toy(scheme).encoder) == 32
    in_float = replace(scheme, keep_float=("*",))
    assert block_of(in_float, fold_toy(in_float).encoder) is None
