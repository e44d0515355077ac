"""The exported graphs: what they compute, what they store, and what refuses to be exported."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from module_outputs import reference_outputs
from numpy.typing import NDArray
from onnx import numpy_helper

from p4q_edge.graph.export import (
    ExportedGraphs,
    attention_quantizations,
    export_classifier,
    linear_quantizations,
)
from p4q_edge.graph.lint_rules import lint
from p4q_edge.graph.parity import compare_outputs, run_in_onnxruntime
from p4q_edge.graph.passes.base import GraphPassError
from p4q_edge.models.folded_classifier import FoldedClassifier
from p4q_edge.quant.attention import attentions, quant_products
from p4q_edge.quant.attention_products import softmax_scale
from p4q_edge.quant.linear import Phase, quant_linears
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.runtime.engines.openvino.library import compile_model, compile_options
from p4q_edge.runtime.errors import QualityGateError
from p4q_edge.runtime.statistics.rounding_limits import least_cosine

Exported = tuple[ExportedGraphs, FoldedClassifier]
Fold = Callable[[QuantScheme], FoldedClassifier]


def test_every_graph_computes_what_the_fake_quantized_module_computes(toy_graphs: Exported) -> None:
    graphs, _ = toy_graphs
    assert graphs.unsound == {}
    cosines = {name: value for name, value in graphs.parity.flat().items() if ".cosine_" in name}
    assert len(cosines) == 9  # three outputs of three runs
    assert min(cosines.values()) > 0.999
    assert graphs.parity.flat()["fp32.top1_agreement"] == 1.0


def test_graph_and_weights_concatenate_to_a_valid_model(toy_graphs: Exported) -> None:
    graphs, _ = toy_graphs
    for part in (graphs.fp16, graphs.fp32):
        model = onnx.load_from_string(part + graphs.weights)
        onnx.checker.check_model(model, full_check=True)
        assert model.ir_version <= 10
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]


def test_the_fragment_holds_every_integer_weight_and_nothing_but_initializers(toy_graphs: Exported) -> None:
    graphs, model = toy_graphs
    fragment = onnx.load_from_string(graphs.weights)
    names = {tensor.name for tensor in fragment.graph.initializer}
    assert {f"{path}.weight_int8" for path in quant_linears(model)} <= names
    assert not fragment.graph.node
    assert not fragment.graph.input
    for part in (graphs.fp16, graphs.fp32):
        kept = {tensor.name for tensor in onnx.load_from_string(part).graph.initializer}
        assert not kept & names


def test_stored_integers_are_those_of_the_module(toy_graphs: Exported, fp32_model: onnx.ModelProto) -> None:
    _, model = toy_graphs
    stored = {t.name: numpy_helper.to_array(t) for t in fp32_model.graph.initializer}
    for path, linear in quant_linears(model).items():
        np.testing.assert_array_equal(stored[f"{path}.weight_int8"].T, linear.integer_weight().numpy())
        np.testing.assert_array_equal(stored[f"{path}.weight_scale"], linear.weight_scale.numpy())
        assert stored[f"{path}.input_scale"] == linear.input_scale.numpy()


def test_interface_of_the_graphs(fp16_model: onnx.ModelProto, fp32_model: onnx.ModelProto) -> None:
    for model in (fp16_model, fp32_model):
        (image,) = model.graph.input
        assert image.name == "image"
        assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert image.type.tensor_type.shape.dim[0].dim_param
        assert [(o.name, o.type.tensor_type.elem_type) for o in model.graph.output] == [
            (name, onnx.TensorProto.FLOAT) for name in ("logits", "embedding", "features")
        ]


@pytest.mark.parametrize("batch", [1, 3, 24])
def test_any_batch_size_runs(toy_graphs: Exported, images: NDArray[np.uint8], batch: int) -> None:
    graphs, _ = toy_graphs
    whole = run_in_onnxruntime(graphs.fp32 + graphs.weights, images)
    part = run_in_onnxruntime(graphs.fp32 + graphs.weights, images[:batch])
    assert part["embedding"].shape == (batch, 32)
    np.testing.assert_allclose(part["embedding"], whole["embedding"][:batch], atol=2e-2)


def test_node_names_tell_the_module_and_no_path_of_this_machine(toy_graphs: Exported) -> None:
    graphs, _ = toy_graphs
    for part in (graphs.fp16, graphs.fp32):
        model = onnx.load_from_string(part)
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)
        assert "encoder.trunk.transformer.resblocks.1.mlp.c_fc/MatMul" in names
        assert b".py" not in part
        assert not model.graph.value_info


def test_export_repeats_byte_for_byte(toy_graphs: Exported, images: NDArray[np.uint8]) -> None:
    graphs, model = toy_graphs
    again = export_classifier(model, images)
    assert (again.fp16, again.fp32, again.weights) == (graphs.fp16, graphs.fp32, graphs.weights)


def test_the_class_token_alone_passes_the_last_linears(fp32_model: onnx.ModelProto) -> None:
    inferred = onnx.shape_inference.infer_shapes(fp32_model)
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in inferred.graph.value_info}
    products = {node.name: ranks[node.output[0]] for node in fp32_model.graph.node if node.op_type == "MatMul"}
    last, first = "encoder.trunk.transformer.resblocks.1", "encoder.trunk.transformer.resblocks.0"
    assert products[f"{first}.mlp.c_fc/MatMul"] == 3
    assert products[f"{last}.mlp.c_fc/MatMul"] == products[f"{last}.attn.out_proj/MatMul"] == 2
    assert products[f"{last}.attn.in_proj/MatMul"] == 3


@pytest.mark.parametrize(
    ("weight_bits", "activation_bits"),
    [(4, 4), *(pytest.param(*other, marks=pytest.mark.slow) for other in ((4, 8), (6, 6)))],
)
def test_narrow_widths_are_carried_on_int8(
    fold_toy: Fold, images: NDArray[np.uint8], weight_bits: int, activation_bits: int
) -> None:
    model = fold_toy(QuantScheme(weight_bits=weight_bits, activation_bits=activation_bits))
    graphs = export_classifier(model, images)
    assert graphs.parity.flat()["fp32_unoptimized.cosine_features"] > least_cosine(activation_bits)
    proto = onnx.load_from_string(graphs.fp32 + graphs.weights)
    count = Counter(node.op_type for node in proto.graph.node)
    assert count["Clip"] == (count["QuantizeLinear"] if activation_bits < 8 else 0)
    high = 2 ** (weight_bits - 1) - 1
    for tensor in onnx.load_from_string(graphs.weights).graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8:
            assert np.abs(numpy_helper.to_array(tensor).astype(int)).max() <= high


def test_attention_products_are_quantized_on_request(fold_toy: Fold, images: NDArray[np.uint8]) -> None:
    model = fold_toy(QuantScheme(quantize_attention=True))
    graphs = export_classifier(model, images)
    products = quant_products(model)
    for part in ("fp16", "fp32"):
        proto = onnx.load_from_string(getattr(graphs, part) + graphs.weights)
        names = {t.name for t in proto.graph.initializer}
        stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        first, last = (f"encoder.trunk.transformer.resblocks.{block}.attn" for block in (0, 1))
        suffix = ".fp16" if part == "fp16" else ""
        assert {f"{first}.{name}_scale{suffix}" for name in ("query", "key", "softmax", "value")} <= names
        assert not any(name.startswith(f"{last}.query_scale") for name in names)  # it asks for the class token alone
        assert {finding.rule for finding in lint(proto)} == {"placement"}
        assert not lint(proto, quantized_attention=True)
        for name in ("query", "key", "value"):
            assert stored[f"{first}.{name}_scale{suffix}"] == getattr(products[first], name).scale.numpy()
        assert float(stored[f"{first}.softmax_scale{suffix}"]) == softmax_scale(8)
    assert list(products) == [first]
    assert graphs.parity.flat()["fp32_unoptimized.cosine_features"] > 0.999
    assert openvino_products(graphs.fp32 + graphs.weights, first) == [{"i8"}, {"i8"}]


def openvino_products(model: bytes, attention: str) -> list[set[str]]:
    """Return the types of the operands of an attention's two products, which `Bfloat16Remainder` takes as exact."""
    pytest.importorskip("openvino")
    compiled = compile_model(model, compile_options("f32", threads=1), batch=1, name="toy")
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        told = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
        types = {value.get_element_type().get_type_name() for value in node.inputs()}
        if told["layerType"] == "MatMul" and node.get_friendly_name().startswith(f"{attention}/"):
            found.append(types)
        # With AVX-512 one holds both products; its operands are query, key and value.
        for name in told["originalLayersNames"].split(",") if told["layerType"] == "Subgraph" else ():
            found += [types] if re.fullmatch(rf"{re.escape(attention)}/MatMul(_\d+)?", name) else []
    return found


def test_a_wrong_scale_of_an_attention_is_refused(
    fold_toy: Fold, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fold_toy(QuantScheme(quantize_attention=True))
    right = attention_quantizations(model)
    wrong = {path: replace(grids, value=grids.value / 4) for path, grids in right.items()}
    monkeypatch.setattr("p4q_edge.graph.export.attention_quantizations", lambda _: wrong)
    with pytest.raises(QualityGateError, match=r"1 operand of attentions, first .*resblocks\.0\.attn\.value"):
        export_classifier(model, images)


def test_an_attention_of_one_token_cannot_be_quantized(fold_toy: Fold, images: NDArray[np.uint8]) -> None:
    model = fold_toy(QuantScheme(quantize_attention=True))
    first, last = attentions(model).values()
    first.products, last.products = None, first.products
    with pytest.raises(GraphPassError, match=r"no attention of all tokens comes from .*resblocks\.1\.attn"):
        export_classifier(model, images)


def test_narrow_attention_products_are_clipped(fold_toy: Fold, images: NDArray[np.uint8]) -> None:
    model = fold_toy(QuantScheme(quantize_attention=True, attention_bits=6))
    graphs = export_classifier(model, images)
    proto = onnx.load_from_string(graphs.fp32 + graphs.weights)
    clips = Counter(node.name.split("/")[0] for node in proto.graph.node if node.op_type == "Clip")
    first, last = (f"encoder.trunk.transformer.resblocks.{block}.attn" for block in (0, 1))
    linears = {f"{attention}.{linear}": 1 for attention in (first, last) for linear in ("in_proj", "out_proj")}
    assert clips == {first: 4, **linears}  # the MLP keeps eight bits
    assert openvino_products(graphs.fp32 + graphs.weights, first) == [{"i8"}, {"i8"}]
    assert graphs.parity.flat()["fp32_unoptimized.cosine_features"] > least_cosine(6)


def test_small_weight_scales_keep_fp16_and_their_numbers(fold_toy: Fold, images: NDArray[np.uint8]) -> None:
    model = fold_toy(QuantScheme())
    linear = quant_linears(model)["encoder.trunk.transformer.resblocks.0.mlp.c_fc"]
    linear.weight_scale[::3] *= 2.0**-12  # far below the smallest normal FP16 number
    linear.set_weight(linear.weight * torch.where(torch.arange(linear.out_features) % 3 == 0, 2.0**-12, 1.0)[:, None])
    graphs = export_classifier(model, images)
    proto = onnx.load_from_string(graphs.fp16 + graphs.weights)
    scales = [t for t in proto.graph.initializer if t.name.endswith("weight_scale_lifted.fp16")]
    assert len(scales) == 1
    assert not lint(proto)


def test_a_product_whose_input_has_a_small_scale_is_in_float32(fold_toy: Fold, images: NDArray[np.uint8]) -> None:
    model = fold_toy(QuantScheme())
    mlp = "encoder.trunk.transformer.resblocks.0.mlp"
    up, down = quant_linears(model)[f"{mlp}.c_fc"], quant_linears(model)[f"{mlp}.c_proj"]
    down.input_scale *= 2.0**-14
    graphs = export_classifier(model, images)
    proto = onnx.load_from_string(graphs.fp16 + graphs.weights)
    assert not lint(proto)
    stored = {t.name: t.data_type for t in proto.graph.initializer}
    assert stored[f"{mlp}.c_proj.input_scale"] == onnx.TensorProto.FLOAT
    assert stored[f"{mlp}.c_proj.weight_scale"] == onnx.TensorProto.FLOAT  # NVIDIA's compiler takes one type only
    assert stored[f"{mlp}.c_fc.input_scale.fp16"] == onnx.TensorProto.FLOAT16
    assert stored[f"{mlp}.c_fc.weight_scale.fp16"] == onnx.TensorProto.FLOAT16
    assert not graphs.unsound
    assert up.calibrated


def test_an_attention_whose_value_has_a_small_scale_stays_between_its_casts(
    fold_toy: Fold, images: NDArray[np.uint8]
) -> None:
    model = fold_toy(QuantScheme(quantize_attention=True))
    attention = attentions(model)["encoder.trunk.transformer.resblocks.0.attn"]
    linear = quant_linears(model)["encoder.trunk.transformer.resblocks.0.attn.in_proj"]
    assert attention.products is not None
    value = torch.where(torch.arange(linear.out_features) < linear.out_features * 2 // 3, 1.0, 2.0**-14)
    linear.set_weight(linear.weight * value[:, None])
    linear.scale_weight()
    linear.bias.data *= value
    attention.products.value.scale *= 2.0**-14
    graphs = export_classifier(model, images)
    proto = onnx.load_from_string(graphs.fp16 + graphs.weights)
    types = {t.name: t.data_type for t in proto.graph.initializer}
    readers = {name: node for node in proto.graph.node for name in node.input}
    pairs = [(node, readers[node.output[0]]) for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    assert all(types[first.input[1]] == types[second.input[1]] for first, second in pairs)
    assert {types[first.input[1]] for first, _ in pairs} == {onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT}
    assert not graphs.unsound
    assert not lint(proto, quantized_attention=True)


def test_linears_that_no_image_reached_stay_float(fold_toy: Fold) -> None:
    model = fold_toy(QuantScheme())
    path = "encoder.trunk.transformer.resblocks.0.mlp.c_fc"
    quant_linears(model)[path].input_scale.zero_()
    assert path not in linear_quantizations(model)


def test_phases_are_restored_after_export(toy_graphs: Exported) -> None:
    _, model = toy_graphs
    assert {linear.phase for linear in quant_linears(model).values()} == {Phase.QUANTIZED}


def test_reference_outputs_have_the_names_of_the_graph(toy_graphs: Exported, images: NDArray[np.uint8]) -> None:
    _, model = toy_graphs
    outputs = reference_outputs(model, images[:2])
    assert {name: array.shape for name, array in outputs.items()} == {
        "logits": (2, 5),
        "embedding": (2, 32),
        "features": (2, 32),
    }


def test_parity_sees_one_wrong_image_and_nan() -> None:
    reference = {"logits": np.eye(3, dtype=np.float32), "embedding": np.eye(3, dtype=np.float32)}
    candidate = {name: array.copy() for name, array in reference.items()}
    assert compare_outputs(reference, candidate) == {
        "cosine_logits": 1.0,
        "cosine_embedding": 1.0,
        "top1_agreement": 1.0,
    }
    candidate["logits"][2] = [1, 0, 0]
    found = compare_outputs(reference, candidate)
    assert found["cosine_logits"] == 0.0
    assert found["top1_agreement"] == pytest.approx(2 / 3)
    candidate["embedding"][0, 0] = np.nan
    assert np.isnan(compare_outputs(reference, candidate)["cosine_embedding"])
