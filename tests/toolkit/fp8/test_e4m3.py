"""The arithmetic of E4M3 numbers: rounding, scales, gradients, and what a linear makes of them."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from p4q_edge.graph.proof.graph_index import e4m3_step, quantize_linear_to_e4m3
from p4q_edge.quant import QuantLinear, QuantScheme, affine
from p4q_edge.quant.fake import fake_e4m3
from p4q_edge.quant.linear import Phase
from p4q_edge.quant.observers import MagnitudeHistogram, activation_scale
from p4q_edge.recipe import QuantizationSection
from p4q_edge.recipe.schema import DataSection, ModelSection, Recipe
from p4q_edge.runtime.builders.tensorrt.narrow_weights import e4m3_values

FP8 = QuantScheme(number_format="fp8")
SMALLEST, SMALLEST_NORMAL = 2.0**-9, 2.0**-6
numbers = st.floats(-2e3, 2e3, width=32)
scales = st.floats(2.0**-20, 64.0, width=32)


def all_numbers() -> np.ndarray:
    """Every finite E4M3 number, float32, from the smallest."""
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return np.unique(codes[np.isfinite(codes)])


@given(x=st.lists(numbers, min_size=1, max_size=20), scale=scales)
def test_rounding_is_that_of_onnx_and_of_ml_dtypes(x: list[float], scale: float) -> None:
    values, step = np.array(x, np.float32), np.array(scale, np.float32)
    found = affine.to_e4m3(torch.from_numpy(values), torch.from_numpy(step)).numpy()
    plain = np.clip(values / step, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(found, plain)
    np.testing.assert_array_equal(found, by_onnx(values, step))
    np.testing.assert_array_equal(found, quantize_linear_to_e4m3(values, step))
    assert np.isin(found, all_numbers()).all()


def by_onnx(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """What the operator of ONNX gives, by its reference implementation."""
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
    constants = [
        numpy_helper.from_array(scale, "s"),
        numpy_helper.from_array(np.zeros((), ml_dtypes.float8_e4m3fn), "z"),
    ]
    given_, output = (
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [None]),
        helper.make_tensor_value_info("q", TensorProto.FLOAT8E4M3FN, [None]),
    )
    graph = helper.make_graph([node], "g", [given_], [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    found: np.ndarray = np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0]).astype(np.float32)  # type: ignore[index]
    return found


@given(x=numbers, scale=scales)
def test_the_nearest_number_is_taken_and_ties_go_to_the_even_one(x: float, scale: float) -> None:
    position = np.float32(x) / np.float32(scale)
    found = float(affine.to_e4m3(torch.tensor(x), torch.tensor(scale)))
    grid = all_numbers()
    distance = np.abs(grid.astype(np.float64) - np.clip(np.float64(position), -448, 448))
    nearest = grid[distance == distance.min()]
    assert found in nearest
    if len(nearest) > 1:
        assert int(np.array(found, np.float32).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)) % 2 == 0


@given(x=st.floats(-448, 448, width=32))
def test_the_error_is_half_a_step_and_a_sixteenth_at_most(x: float) -> None:
    found = float(affine.to_e4m3(torch.tensor(x), torch.tensor(1.0)))
    assert abs(found - x) <= float(e4m3_step(np.array(x, np.float32))) / 2
    assert abs(found - x) <= max(abs(x) / 16, SMALLEST / 2)


@pytest.mark.parametrize("x", [448.0, 449.0, 464.0, 465.0, 1e30, float("inf")])
def test_what_is_larger_than_the_largest_number_saturates(x: float) -> None:
    assert affine.to_e4m3(torch.tensor([x, -x]), torch.tensor(1.0)).tolist() == [448.0, -448.0]


def test_steps_are_the_distances_of_the_numbers() -> None:
    grid = all_numbers()
    positive = grid[grid >= 0]
    # The distance to the number above: of the lower end of each pair.
    np.testing.assert_array_equal(np.diff(positive), e4m3_step(positive[:-1]))
    assert (positive[1], positive[8]) == (SMALLEST, SMALLEST_NORMAL)


def test_the_device_reads_every_number_without_a_library_for_them() -> None:
    codes = np.arange(256, dtype=np.uint8)
    expected = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(e4m3_values(codes.tobytes()), expected)


@given(amax=st.floats(2.0**-12, 1e4, width=32))
def test_the_largest_value_lies_on_the_largest_number(amax: float) -> None:
    scale = affine.e4m3_scale(torch.tensor(amax))
    assert float(affine.to_e4m3(torch.tensor(amax), scale)) == 448.0
    assert torch.equal(scale, affine.representable_scale(torch.tensor(amax) / 448))


def test_gradients_pass_inside_the_range_and_end_outside() -> None:
    x = torch.tensor([-500.0, -448.0, 0.3, 464.0, 465.0], requires_grad=True)
    fake_e4m3(x, torch.tensor(1.0)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_ranges_are_maxima_whatever_the_observer_is() -> None:
    """A value far from all others costs them nothing, so that nothing is cut off."""
    histogram = MagnitudeHistogram(torch.tensor(100.0))
    histogram.observe(torch.cat([torch.full((10_000,), 0.5), torch.tensor([100.0])]))
    for observer in ("minmax", "percentile", "mse", "search"):
        scheme = QuantScheme(number_format="fp8", observer=observer, headroom=1.0)  # type: ignore[arg-type]
        assert torch.equal(activation_scale(histogram, scheme, bits=8), affine.e4m3_scale(torch.tensor(100.0)))
    assert float(fake_e4m3(torch.tensor(0.5), affine.e4m3_scale(torch.tensor(100.0)))) == pytest.approx(0.5, rel=1 / 16)


def linear(scheme: QuantScheme = FP8) -> QuantLinear:
    generator = torch.Generator().manual_seed(0)
    found = QuantLinear(torch.randn(5, 12, generator=generator), torch.zeros(5), scheme)
    found.scale_weight()
    found.input_scale = affine.e4m3_scale(torch.tensor(3.0))
    return found.requires_grad_(False)


def test_weight_and_input_lie_on_their_grids() -> None:
    found = linear()
    found.phase = Phase.QUANTIZED
    assert found.weight_scale.shape == (5,)
    assert found.float8_weight().dtype is torch.float8_e4m3fn
    restored = found.float8_weight().float() * found.weight_scale[:, None]
    assert torch.equal(found.quantized_weight(), restored)
    assert torch.equal(found.float8_weight().float().abs().amax(1), torch.full((5,), 448.0))
    x = torch.randn(7, 12)
    expected = torch.nn.functional.linear(fake_e4m3(x, found.input_scale), restored, found.bias)
    assert torch.equal(found(x), expected)
    assert not found.sums_integers


def test_scales_follow_weight_and_batch_while_a_layer_is_learned() -> None:
    found = linear()
    found.requires_grad_(True)
    found.phase = Phase.QUANTIZED
    found.follow(True)
    x = torch.randn(6, 12)
    found(x).sum().backward()
    assert found.weight.grad is not None
    assert bool((found.weight.grad != 0).all())
    scaled = found.quantized_input(x) / affine.e4m3_scale(x.abs().amax())
    assert np.isin(scaled.numpy(), all_numbers()).all()


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"weight_bits": 4}, "got weight_bits = 4, activation_bits = 8 and weight_block = None"),
        ({"weight_bits": 4, "activation_bits": 16, "weight_block": 64}, "and weight_block = 64"),
        ({"attention_bits": 8, "weight_rounding": "descent"}, "attention_bits, weight_rounding cannot be had beside"),
        ({"quantize_attention": True}, "NVIDIA's compiler takes attentions with FP8 products apart"),
        ({"scale_epochs": 2}, "scale_epochs cannot be had beside number_format = 'fp8'"),
        ({"activation_bits": 16}, "of 8 bits without blocks, got weight_bits = 8, activation_bits = 16"),
        ({"mean_weight_bits": 7.5}, "mean_weight_bits cannot be had beside number_format = 'fp8'"),
        ({"adapter_bits": 4}, "adapter_bits = 4 is of integers; leave it out beside 'fp8'"),
    ],
)
def test_what_cannot_be_had_together_is_refused(keys: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        QuantizationSection(number_format="fp8", **keys)  # type: ignore[arg-type]


def test_the_published_codes_method_has_no_fp8() -> None:
    recipe = Recipe(
        method="as-released",
        model=ModelSection(name="demo"),
        data=DataSection(train="demo:digits"),
        quantization=QuantizationSection(number_format="fp8"),
    )
    assert "no quantization.weight_block or number_format; leave them out" in recipe.contradiction()
