"""Each lint rule, on the exported toy with exactly one thing broken."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from p4q_edge.graph.lint_rules import RULES, LintFinding, check_lint, lint
from p4q_edge.quant import attention_products as products
from p4q_edge.runtime.errors import QualityGateError

Model = onnx.ModelProto
ATTENTION = "encoder.trunk.transformer.resblocks.0.attn"
LINEAR = "encoder.trunk.transformer.resblocks.0.mlp.c_fc"


def node_named(model: Model, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def set_constant(model: Model, name: str, array: np.ndarray) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def constant_of(model: Model, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def newer_opset(model: Model) -> None:
    model.opset_import[0].version = 21


def newer_ir(model: Model) -> None:
    model.ir_version = 11


def fp8_on_one_side(model: Model) -> None:
    restore = node_named(model, f"{LINEAR}/DequantizeLinear_2")
    for name in (restore.input[0], restore.input[2]):
        set_constant(model, name, constant_of(model, name).astype(np.float32).astype(ml_dtypes.float8_e4m3fn))


def shape_of_the_image(model: Model) -> None:
    model.graph.node.append(helper.make_node("Shape", ["image"], ["batch"], name="extra"))


def foreign_operator(model: Model) -> None:
    model.graph.node.append(helper.make_node("Shape", ["logits"], ["sizes"], name="extra"))


def newer_operator(model: Model) -> None:
    model.graph.node.append(helper.make_node("Gelu", ["embedding"], ["bent"], name="extra"))


def unsigned_zero_point(model: Model) -> None:
    quantize = node_named(model, f"{LINEAR}/QuantizeLinear")
    set_constant(model, quantize.input[2], np.array(0, np.uint8))
    restore = node_named(model, f"{LINEAR}/DequantizeLinear")
    set_constant(model, restore.input[2], np.array(0, np.uint8))


def shifted_zero_point(model: Model) -> None:
    set_constant(model, node_named(model, f"{LINEAR}/QuantizeLinear").input[2], np.array(3, np.int8))


def shared_zero_point(model: Model) -> None:
    restore = node_named(model, f"{LINEAR}/DequantizeLinear")
    restore.input[2] = node_named(model, f"{LINEAR}/QuantizeLinear").input[2]


def absent_zero_point(model: Model) -> None:
    del node_named(model, f"{LINEAR}/DequantizeLinear").input[2]


def negative_scale(model: Model) -> None:
    name = node_named(model, f"{LINEAR}/QuantizeLinear").input[1]
    set_constant(model, name, -constant_of(model, name))


def subnormal_scale(model: Model) -> None:
    set_constant(model, node_named(model, f"{LINEAR}/QuantizeLinear").input[1], np.array(3e-5, np.float16))


def scale_per_channel(model: Model) -> None:
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        node = node_named(model, f"{LINEAR}/{kind}")
        model.graph.initializer.append(numpy_helper.from_array(np.full(64, 0.1, np.float16), f"many_{kind}"))
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(64, np.int8), f"zeros_{kind}"))
        node.input[1], node.input[2] = f"many_{kind}", f"zeros_{kind}"
        node.attribute.append(helper.make_attribute("axis", 2))


def scales_along_the_inputs(model: Model) -> None:
    restore = node_named(model, f"{LINEAR}/DequantizeLinear_2")
    weight = constant_of(model, restore.input[0])
    set_constant(model, restore.input[1], np.full(weight.shape[0], 0.1, np.float16))
    set_constant(model, restore.input[2], np.zeros(weight.shape[0], np.int8))
    restore.attribute[0].i = 0


def quantized_constant(model: Model) -> None:
    restore = node_named(model, f"{LINEAR}/DequantizeLinear_2")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((64, 256), np.float16), "float_weight"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float16), "one_scale"))
    for name in ("zero_q", "zero_dq"):
        model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), name))
    quantize = helper.make_node("QuantizeLinear", ["float_weight", "one_scale", "zero_q"], ["w8"], name="extra")
    model.graph.node.insert(0, quantize)
    restore.input[:] = ["w8", "one_scale", "zero_dq"]


def integers_used_directly(model: Model) -> None:
    integers = node_named(model, f"{LINEAR}/QuantizeLinear").output[0]
    model.graph.node.append(helper.make_node("Cast", [integers], ["raw"], name="extra", to=TensorProto.FLOAT))


def quantized_residual(model: Model) -> None:
    restored = node_named(model, f"{LINEAR}/DequantizeLinear").output[0]
    model.graph.node.append(helper.make_node("Add", [restored, restored], ["twice"], name="extra"))


def quantized_softmax(model: Model) -> None:
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    product = next(node for node in model.graph.node if softmax.output[0] in node.input)
    model.graph.initializer.append(numpy_helper.from_array(np.array(1 / 127, np.float16), "p_scale"))
    for name in ("p_zero", "p_zero_dq"):
        model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), name))
    position = list(model.graph.node).index(product)
    pair = [
        helper.make_node("QuantizeLinear", [softmax.output[0], "p_scale", "p_zero"], ["p8"], name="extra_q"),
        helper.make_node("DequantizeLinear", ["p8", "p_scale", "p_zero_dq"], ["p"], name="extra"),
    ]
    for node in reversed(pair):
        model.graph.node.insert(position, node)
    product = node_named(model, product.name)
    product.input[0] = "p"


def quantized_operands(model: Model, block: int) -> None:
    """Quantize query, key, softmax and value of a block's attention."""
    softmax = [node for node in model.graph.node if node.op_type == "Softmax"][block]
    scores = next(node for node in model.graph.node if softmax.input[0] in node.output)
    mixed = next(node for node in model.graph.node if softmax.output[0] in node.input)
    for product, index in ((scores, 0), (scores, 1), (mixed, 0), (mixed, 1)):
        name = f"extra_{product.name}_{index}"
        model.graph.initializer.append(numpy_helper.from_array(np.array(0.01, np.float16), f"{name}_scale"))
        for end in ("zero", "zero_dq"):
            model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), f"{name}_{end}"))
        position = next(i for i, node in enumerate(model.graph.node) if node.name == product.name)
        inputs = [f"{name}_scale", f"{name}_zero"]
        model.graph.node.insert(
            position, helper.make_node("DequantizeLinear", [f"{name}_8", inputs[0], f"{name}_zero_dq"], [f"{name}_x"])
        )
        model.graph.node.insert(
            position, helper.make_node("QuantizeLinear", [product.input[index], *inputs], [f"{name}_8"])
        )
        node_named(model, product.name).input[index] = f"{name}_x"


def quantized_class_attention(model: Model) -> None:
    quantized_operands(model, 1)  # the last block asks for the class token alone


def norm_in_parts(model: Model) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "last"))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["embedding", "last"], ["row_mean"], name="m"),
            helper.make_node("Add", ["row_mean", "row_mean"], ["padded"], name="a"),
            helper.make_node("Sqrt", ["padded"], ["deviation"], name="extra"),
        ]
    )


def float_product(model: Model) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones((32, 4), np.float32), "wide"))
    model.graph.node.append(helper.make_node("MatMul", ["embedding", "wide"], ["wide_logits"], name="extra"))


def batch_norm_left(model: Model) -> None:
    names = [f"norm_{part}" for part in ("scale", "bias", "mean", "variance")]
    model.graph.initializer.extend(numpy_helper.from_array(np.ones(32, np.float32), name) for name in names)
    model.graph.node.append(helper.make_node("BatchNormalization", ["embedding", *names], ["normed"], name="extra"))


BROKEN: list[tuple[Callable[[Model], None], str, str]] = [
    (newer_opset, "opset", ""),
    (newer_ir, "opset", ""),
    (shape_of_the_image, "uint8-input", "extra"),
    (foreign_operator, "operators", "extra"),
    (newer_operator, "operators", "extra"),
    (unsigned_zero_point, "zero-point", f"{LINEAR}/QuantizeLinear"),
    (shifted_zero_point, "zero-point", f"{LINEAR}/QuantizeLinear"),
    (shared_zero_point, "zero-point", f"{LINEAR}/DequantizeLinear"),
    (absent_zero_point, "zero-point", f"{LINEAR}/DequantizeLinear"),
    (negative_scale, "scale", f"{LINEAR}/QuantizeLinear"),
    (subnormal_scale, "scale", f"{LINEAR}/QuantizeLinear"),
    (scale_per_channel, "activation-per-tensor", f"{LINEAR}/QuantizeLinear"),
    (scales_along_the_inputs, "weight-axis", f"{LINEAR}/DequantizeLinear_2"),
    (quantized_constant, "weight-axis", "extra"),
    (integers_used_directly, "pairs", f"{LINEAR}/QuantizeLinear"),
    (quantized_residual, "placement", f"{LINEAR}/DequantizeLinear"),
    (quantized_softmax, "placement", "extra"),
    (quantized_softmax, "attention", f"{ATTENTION}/Softmax"),
    (quantized_class_attention, "attention", "encoder.trunk/Softmax"),
    (fp8_on_one_side, "one-format", f"{LINEAR}/MatMul"),
    (norm_in_parts, "layer-norm", "extra"),
    (batch_norm_left, "batch-norm", "extra"),
    (float_product, "fp16-remainder", "extra"),
]


def test_exported_graphs_are_clean(fp16_model: Model, fp32_model: Model) -> None:
    assert lint(fp16_model) == []
    assert lint(fp32_model) == []


@pytest.mark.parametrize(("break_it", "rule", "node"), BROKEN, ids=[f"{f.__name__}-{rule}" for f, rule, _ in BROKEN])
def test_each_mistake_is_found_and_named(
    fp16_model: Model, break_it: Callable[[Model], None], rule: str, node: str
) -> None:
    break_it(fp16_model)
    found = {(finding.rule, finding.node) for finding in lint(fp16_model)}
    assert (rule, node) in found


def test_every_rule_has_a_mistake_that_breaks_it() -> None:
    assert {rule for _, rule, _ in BROKEN} == set(RULES)


def test_quantized_attention_passes_when_asked_for(fp16_model: Model) -> None:
    quantized_operands(fp16_model, 0)
    assert lint(fp16_model, quantized_attention=True) == []
    assert {finding.rule for finding in lint(fp16_model)} == {"placement"}


@pytest.mark.parametrize(("limit", "value"), [("MAX_TOKENS", 4), ("HEAD_SIZES", frozenset({32}))])
def test_attention_of_a_size_that_does_not_fuse(
    fp16_model: Model, monkeypatch: pytest.MonkeyPatch, limit: str, value: object
) -> None:
    monkeypatch.setattr(products, limit, value)
    quantized_operands(fp16_model, 0)
    (finding,) = lint(fp16_model, quantized_attention=True)
    assert finding.rule == "attention"
    assert "heads of 16 and 5 tokens" in finding.message


def test_a_finding_stops_the_export_and_names_node_and_rule() -> None:
    findings = [LintFinding(rule="scale", node="x/QuantizeLinear", message="expected positive finite scales")] * 3
    with pytest.raises(QualityGateError, match=r"lint: scale at x/QuantizeLinear: expected positive .*and 2 more"):
        check_lint(findings)
    check_lint([])
