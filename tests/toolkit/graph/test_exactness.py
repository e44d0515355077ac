"""What keeps the exported graphs exact: FP16 only where it holds the values, one pair a grid, padded classes."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import parser

from p4q_edge.graph.passes.align_classes import AlignClasses
from p4q_edge.graph.passes.base import run_passes
from p4q_edge.graph.passes.fragments import StoreWeightsAsFp16
from p4q_edge.graph.passes.insert_qdq import InsertQdq
from p4q_edge.graph.passes.to_fp16 import ToFp16
from p4q_edge.graph.quantization import LinearQuantization
from p4q_edge.quant import affine

HEADER = '<ir_version: 10, opset_import: ["": 20]>'


def model_of(text: str, **constants: np.ndarray) -> ir.Model:
    proto = parser.parse_model(f"{HEADER} {text}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in constants.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


@pytest.mark.parametrize("exact", [True, False])
def test_a_matrix_is_stored_as_fp16_only_where_that_loses_nothing(exact: bool) -> None:
    weight = floats(64, 4096)
    weight = weight.astype(np.float16).astype(np.float32) if exact else weight
    model = model_of("g (float[n,64] x) => (float[n,4096] y) { y = MatMul(x, w) }", w=weight)
    x = floats(3, 64)
    before = run(model, x)
    assert StoreWeightsAsFp16()(model).modified == exact
    stored = model.graph.initializers["w.fp16" if exact else "w"]
    assert stored.dtype is (ir.DataType.FLOAT16 if exact else ir.DataType.FLOAT)
    np.testing.assert_array_equal(run(model, x), before)


@pytest.mark.parametrize(("scale", "kept"), [(2.0**-16, True), (0.03, False)])
def test_the_clip_before_a_small_scale_stays_float32(scale: float, kept: bool) -> None:
    """Its bounds are multiples of the scale: in FP16 they would be subnormal and rounded."""
    weight = floats(3, 4)
    step = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
    linear = LinearQuantization(
        weight=np.clip(np.rint(weight / step[:, None]), -127, 127).astype(np.int8),
        weight_scale=step,
        weight_bits=8,
        input_scale=scale,
        input_bits=4,
    )
    model = model_of(
        "g (float[n,4] x) => (float[n,3] y) { z = Mul(x, one)  y = MatMul(z, w) }",
        w=weight.T.copy(),
        one=np.ones(1, np.float32),
    )
    model.graph[1].metadata_props["pkg.torch.onnx.name_scopes"] = str(["", "a", "linear"])
    run_passes(model, [InsertQdq({"a": linear}), ToFp16()])
    (clip,) = (node for node in model.graph if node.op_type == "Clip")
    wanted = ir.DataType.FLOAT if kept else ir.DataType.FLOAT16
    assert [value.dtype for value in (*clip.inputs, *clip.outputs)] == [wanted] * 4
    bounds = [float(value.const_value.numpy()) for value in clip.inputs[1:]]
    exact = [scale * bound for bound in affine.activation_range(4)]
    assert bounds == pytest.approx(exact, rel=1e-7 if kept else 1e-3)


@pytest.mark.parametrize("kind", ["AveragePool", "MaxPool"])
@pytest.mark.parametrize(("scale", "kept"), [(2.0**-22, True), (0.03, False)])
def test_a_pool_of_values_near_zero_stays_float32(kind: str, scale: float, kept: bool) -> None:
    """Their means are no numbers of FP16, and NVIDIA's compiler pools no integers where a Cast stands between."""
    pool = f"{kind} <kernel_shape = [2, 2], strides = [2, 2]> (restored)"
    model = model_of(
        f"g (float[n,3,4,4] x) => (float[n,3,2,2] y) {{ q = QuantizeLinear(x, s, zero)  restored = DequantizeLinear"
        f"(q, s, zero)  pooled = {pool}  p = QuantizeLinear(pooled, s, zero)  y = DequantizeLinear(p, s, zero) }}",
        s=np.float32(scale),
        zero=np.int8(0),
    )
    x = 40 * scale * floats(2, 3, 4, 4)
    before = run(model, x)
    ToFp16()(model)
    (node,) = (node for node in model.graph if node.op_type == kind)
    wanted = ir.DataType.FLOAT if kept else ir.DataType.FLOAT16
    assert [value.dtype for value in (*node.inputs, *node.outputs)] == [wanted] * 2
    if kept:
        np.testing.assert_array_equal(run(model, x), before)


@pytest.mark.parametrize(("change", "pairs"), [({}, 1), ({"input_bits": 4}, 2), ({"input_scale": 0.05}, 2)])
def test_linears_share_a_pair_only_on_one_grid(change: dict[str, float], pairs: int) -> None:
    weights = {"a": floats(3, 4), "b": floats(2, 4)}
    model = model_of(
        "g (float[n,4] x) => (float[n,3] y, float[n,2] z) { y = MatMul(x, wa)  z = MatMul(x, wb) }",
        wa=weights["a"].T.copy(),
        wb=weights["b"].T.copy(),
    )
    linears = {}
    for node, (path, weight) in zip(model.graph, weights.items(), strict=True):
        node.metadata_props["pkg.torch.onnx.name_scopes"] = str(["", path, "linear"])
        step = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
        linears[path] = LinearQuantization(
            weight=np.clip(np.rint(weight / step[:, None]), -127, 127).astype(np.int8),
            weight_scale=step,
            weight_bits=8,
            input_scale=0.03,
            input_bits=8,
        )
    linears["b"] = replace(linears["b"], **change)
    run_passes(model, [InsertQdq(linears)])
    counts = Counter(node.op_type for node in model.graph)
    assert counts["QuantizeLinear"] == pairs
    assert counts["Clip"] == ("input_bits" in change)


@pytest.mark.parametrize(("classes", "columns"), [(1, 8), (7, 8), (8, 16), (9, 16), (16, 24)])
def test_the_classes_are_padded_by_at_least_one_column(classes: int, columns: int) -> None:
    text = f"g (float[n,4] x) => (float[n,{classes}] logits) {{ p = MatMul(x, w)  logits = Mul(p, s) }}"
    model = model_of(text, w=floats(4, classes), s=np.array(10, np.float32))
    x = floats(3, 4)
    before = run(model, x)
    assert AlignClasses()(model).modified
    (product,) = (node for node in model.graph if node.op_type == "MatMul")
    assert tuple(product.inputs[1].const_value.shape) == (4, columns)
    assert [node.op_type for node in model.graph] == ["MatMul", "Slice", "Mul"]
    np.testing.assert_allclose(run(model, x), before, rtol=1e-6)
