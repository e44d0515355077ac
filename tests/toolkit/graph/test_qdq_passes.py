"""Passes that write the Q/DQ grid into a graph, run before and after in ONNX Runtime."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_graphs import count, floats, model_of, two_linears

from p4q_edge.graph.passes.base import GraphPassError, run_passes
from p4q_edge.graph.passes.fragments import StoreWeightsAsFp16
from p4q_edge.graph.passes.insert_qdq import InsertQdq
from p4q_edge.graph.passes.rescale_small_weights import lift
from p4q_edge.graph.quantization import LinearQuantization


def test_linears_that_read_one_tensor_share_its_pair_but_no_zero_point() -> None:
    model, linears = two_linears()
    run_passes(model, [InsertQdq(linears)])
    assert count(model) == {"QuantizeLinear": 1, "DequantizeLinear": 3, "MatMul": 2}
    zeros = [node.inputs[2] for node in model.graph if "Linear" in node.op_type]
    assert len(set(zeros)) == len(zeros)
    assert {"a.weight_int8", "b.weight_int8"} <= set(model.graph.initializers)
    assert not {"wa", "wb"} & set(model.graph.initializers)


def test_large_matrices_are_stored_as_fp16_and_scales_stay_constants() -> None:
    """A linear of 4096 channels (the MLP of ViT-L) has a scale as large as a small matrix."""
    model = model_of(
        "g (float[n,64] x) => (float[n,4096] y) { y1 = MatMul(x, w)  y = Mul(y1, scale) }",
        w=np.ones((64, 4096), np.float32),
        scale=np.full(4096, 0.5, np.float32),
    )
    assert StoreWeightsAsFp16()(model).modified
    assert count(model) == {"Cast": 1, "MatMul": 1, "Mul": 1}
    assert "scale" in model.graph.initializers
    assert model.graph.initializers["w.fp16"].dtype is ir.DataType.FLOAT16


def test_quantized_linear_computes_on_the_grid() -> None:
    model, linears = two_linears()
    run_passes(model, [InsertQdq(linears)])
    x = floats(5, 4)
    grid = np.clip(np.rint(x / np.float32(0.03)), -128, 127) * np.float32(0.03)
    expected = grid @ (linears["a"].weight * linears["a"].weight_scale[:, None]).T
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    np.testing.assert_allclose(session.run(["y"], {"x": x})[0], expected, rtol=1e-5, atol=1e-5)


def test_a_linear_that_is_not_in_the_graph_is_named() -> None:
    model, linears = two_linears()
    with pytest.raises(GraphPassError, match="InsertQdq cannot run: the linear c has 0 MatMul nodes, expected 1"):
        InsertQdq({"c": linears["a"]})(model)


def test_a_weight_of_another_shape_is_named() -> None:
    model, linears = two_linears()
    with pytest.raises(GraphPassError, match=r"the MatMul of a has weight \(4, 3\), expected \(4, 2\)"):
        InsertQdq({"a": linears["b"]})(model)


@given(st.lists(st.floats(min_value=2.0**-24, max_value=1.0, width=32), min_size=1, max_size=20))
def test_lifted_scales_are_normal_fp16_and_exact(values: list[float]) -> None:
    scale = np.array(values, np.float32)
    factor = lift(scale)
    assert (scale * factor >= 2.0**-14).all()
    assert (factor >= 1).all()
    assert (factor[scale >= 2.0**-14] == 1).all()
    assert (scale * factor)[factor > 1].max(initial=0) < 2.0**-13
    np.testing.assert_array_equal(np.exp2(np.round(np.log2(factor))), factor)
    np.testing.assert_array_equal(scale * factor * (1 / factor), scale)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_scale": np.zeros(3, np.float32)}, "weight_scale is positive"),
        ({"weight_scale": np.ones(4, np.float32)}, r"weight_scale is \(out,\)"),
        ({"weight": np.zeros((3, 4), np.int16)}, "weight is int8"),
        ({"weight_bits": 4, "weight": np.full((3, 4), 9, np.int8)}, r"weight lies in \[-7, 7\]"),
        ({"input_scale": 0.0}, "input_scale is positive"),
        ({"input_bits": 9}, "bits must be between 2 and 8"),
    ],
)
def test_a_linear_quantization_checks_itself(change: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {
        "weight": np.zeros((3, 4), np.int8),
        "weight_scale": np.ones(3, np.float32),
        "weight_bits": 8,
        "input_scale": 0.1,
        "input_bits": 8,
    }
    with pytest.raises(ValueError, match=message):
        LinearQuantization(**{**fields, **change})  # type: ignore[arg-type]
