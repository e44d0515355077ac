"""Properties of the one quantization arithmetic."""

import doctest

import hypothesis.strategies as st
import numpy as np
import onnx
import onnx.helper as oh
import pytest
import torch
from hypothesis import given
from onnx.reference import ReferenceEvaluator

from p4q_edge.quant import affine
from p4q_edge.quant.fake import fake_quantize, round_ste

BITS = st.integers(2, 8)
VALUES = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=64).map(torch.tensor)
SCALES = st.floats(2.0**-14, 64.0, width=32).map(torch.tensor)


@given(BITS, SCALES)
def test_quantizing_what_was_dequantized_gives_the_same_integers(bits: int, scale: torch.Tensor) -> None:
    low, high = affine.activation_range(bits)
    integers = torch.arange(low, high + 1).float()
    assert torch.equal(affine.quantize(affine.dequantize(integers, scale), scale, low, high), integers)


@given(VALUES, BITS)
def test_inside_the_range_the_error_is_at_most_half_a_step(x: torch.Tensor, bits: int) -> None:
    _, high = affine.weight_range(bits)
    scale = affine.scale_for(x.abs().amax(), high)
    restored = affine.dequantize(affine.quantize(x, scale, *affine.weight_range(bits)), scale)
    inside = x.abs() <= scale * (high + 0.5)
    assert bool(((restored - x).abs() <= scale * 0.5 * (1 + 1e-6))[inside].all())


@pytest.mark.parametrize("low_high", [(5.0, 6.0), (-6.0, -5.0), (0.0, 0.0), (3.0, 3.0)])
def test_ranges_without_zero_are_not_destroyed(low_high: tuple[float, float]) -> None:
    x = torch.linspace(*low_high, 101)
    low, high = affine.activation_range(8)
    scale = affine.scale_for(x.abs().amax(), high)
    restored = affine.dequantize(affine.quantize(x, scale, low, high), scale)
    assert float((restored - x).abs().max()) <= float(scale) / 2 * (1 + 1e-5)


@given(VALUES, SCALES, BITS)
def test_quantization_is_monotone_and_keeps_zero(x: torch.Tensor, scale: torch.Tensor, bits: int) -> None:
    low, high = affine.activation_range(bits)
    q = affine.quantize(x.sort().values, scale, low, high)
    assert bool((q[1:] >= q[:-1]).all())
    assert float(affine.quantize(torch.zeros(()), scale, low, high)) == 0.0


@given(st.integers(1, 5), st.integers(1, 6), BITS, st.integers(0, 2**31))
def test_per_axis_equals_per_tensor_on_each_slice(rows: int, columns: int, bits: int, seed: int) -> None:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    low, high = affine.weight_range(bits)
    axis = affine.PerAxis(0)
    scale = affine.scale_for(affine.amax_of(x, axis), high)
    whole = affine.quantize(x, affine.broadcast_scale(scale, 2, axis), low, high)
    for row in range(rows):
        assert torch.equal(whole[row], affine.quantize(x[row], scale[row], low, high))


@given(VALUES, SCALES)
def test_equal_to_the_onnx_operators(x: torch.Tensor, scale: torch.Tensor) -> None:
    nodes = [
        oh.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        oh.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    graph = oh.make_graph(
        nodes,
        "qdq",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])],
        [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n"])],
        [
            oh.make_tensor("s", onnx.TensorProto.FLOAT, [], [float(scale)]),
            oh.make_tensor("z", onnx.TensorProto.INT8, [], [0]),
        ],
    )
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)])
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x.numpy()})
    np.testing.assert_array_equal(fake_quantize(x, scale, *affine.activation_range(8)).numpy(), expected)


@given(VALUES, SCALES, BITS)
def test_gradient_is_one_inside_and_zero_outside(x: torch.Tensor, scale: torch.Tensor, bits: int) -> None:
    low, high = affine.activation_range(bits)
    x = x.clone().requires_grad_(True)
    fake_quantize(x, scale, low, high).sum().backward()
    rounded = torch.round(x.detach() / scale)
    inside = (rounded >= low) & (rounded <= high)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, inside.float())


@given(VALUES, SCALES, BITS)
def test_with_and_without_gradient_the_values_are_the_same(x: torch.Tensor, scale: torch.Tensor, bits: int) -> None:
    limits = affine.activation_range(bits)
    assert torch.equal(
        fake_quantize(x.clone().requires_grad_(True), scale, *limits).detach(), fake_quantize(x, scale, *limits)
    )


def test_scale_gets_the_gradient_of_lsq() -> None:
    scale = torch.tensor(0.5, requires_grad=True)
    fake_quantize(torch.tensor([0.6, 100.0]), scale, -4, 3).sum().backward()
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx((1.0 - 0.6 / 0.5) + 3.0)


@given(VALUES, st.floats(0.125, 64.0, width=32), BITS)
def test_the_gradient_of_the_scale_is_the_rounding_error_inside_and_the_bound_outside(
    x: torch.Tensor, step: float, bits: int
) -> None:
    low, high = affine.activation_range(bits)
    scale = torch.tensor(step, requires_grad=True)
    fake_quantize(x, scale, low, high).sum().backward()
    position = (x / step).double()
    rounded = torch.round(x / step).double()
    expected = torch.where(
        rounded < low, float(low), torch.where(rounded > high, float(high), rounded - position)
    ).sum()
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(float(expected), abs=1e-2)


@given(VALUES, SCALES)
def test_floor_and_rest_make_up_the_value(x: torch.Tensor, scale: torch.Tensor) -> None:
    low, rest = affine.floor_and_rest(x, scale)
    assert bool(((rest >= 0) & (rest <= 1)).all())
    torch.testing.assert_close(low + rest, x / scale)


def test_ties_go_to_even() -> None:
    assert round_ste(torch.tensor([0.5, 1.5, 2.5, -0.5])).tolist() == [0.0, 2.0, 2.0, -0.0]


@given(st.floats(0.0, 1e4, width=32).map(torch.tensor))
def test_scales_are_positive_and_fp16_where_fp16_is_precise(amax: torch.Tensor) -> None:
    scale = affine.scale_for(amax, 127)
    assert float(scale) > 0
    if float(amax / 127) >= 2.0**-14:
        assert float(scale.half()) == float(scale)


@pytest.mark.parametrize("bits", [1, 9])
def test_widths_that_int8_cannot_carry_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits must be between 2 and 8 .* got {bits}"):
        affine.weight_range(bits)


def test_the_examples_of_the_docstrings_hold() -> None:
    result = doctest.testmod(affine)
    assert (result.failed, result.attempted >= 9) == (0, True)
