"""The quantizable convolution: its grid, its phases, its bias."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from p4q_edge.quant import affine, conv_swap
from p4q_edge.quant.conv import QuantConv2d, TensorGrid, running_as_cpu_graph
from p4q_edge.quant.conv_swap import fit_convolutions, fix_conv_scales, swap_convolutions
from p4q_edge.quant.linear import Phase, running_in
from p4q_edge.quant.macs import count_macs
from p4q_edge.quant.placement import GridPoint
from p4q_edge.quant.scheme import QuantScheme, RoundingName

SCHEME = QuantScheme(observer="minmax", weight_observer="minmax", headroom=1.0)


def calibrated(conv: nn.Conv2d, x: Tensor, scheme: QuantScheme = SCHEME) -> QuantConv2d:
    """A convolution with scales from one batch."""
    quant = QuantConv2d(conv, scheme)
    for phase in (Phase.RANGING, Phase.CALIBRATING):
        with running_in(quant, phase):
            quant(x)
    quant.scale_weight()
    assert quant.input.fix_scale()
    return quant


def random_conv(seed: int = 0, **options: int) -> nn.Conv2d:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Conv2d(16, 8, 3, **options).requires_grad_(False)


def random_input(seed: int = 0) -> Tensor:
    return torch.randn(2, 16, 7, 7, generator=torch.Generator().manual_seed(seed))


def correlated_input(seed: int) -> Tensor:
    """Channels that are mixtures of four: of independent ones the nearest rounding is the best already."""
    mixing = torch.randn(16, 4, generator=torch.Generator().manual_seed(100))
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(12, 16, 12, 12, generator=generator)
    return torch.einsum("ij,njhw->nihw", mixing, torch.randn(12, 4, 12, 12, generator=generator)) + 0.1 * own


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 2]), st.sampled_from([0, 1, 2]), st.sampled_from([1, 4]))
def test_float_is_the_convolution_it_came_from(seed: int, stride: int, padding: int, groups: int) -> None:
    conv, x = random_conv(seed, stride=stride, padding=padding, groups=groups), random_input(seed)
    assert torch.equal(QuantConv2d(conv, SCHEME)(x), conv(x))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([4, 8]))
def test_quantized_is_the_convolution_of_integers(seed: int, bits: int) -> None:
    scheme = QuantScheme(
        weight_bits=bits, activation_bits=bits, observer="minmax", weight_observer="minmax", headroom=1.0
    )
    x = random_input(seed)
    conv = calibrated(random_conv(seed, padding=1), x, scheme)
    with running_in(conv, Phase.QUANTIZED):
        found = conv(x)
    integers = affine.quantize(x, conv.input.scale, *affine.activation_range(bits))
    weight = conv.integer_weight()
    assert int(weight.abs().max()) <= affine.weight_range(bits)[1]
    exact = F.conv2d(integers.double(), weight.double(), padding=1)
    exact = exact * (conv.input.scale.double() * conv.weight_scale.double()[:, None, None]) + conv.bias[:, None, None]
    assert torch.allclose(found.double(), exact, atol=1e-5)


def test_weights_have_a_scale_for_each_output_channel() -> None:
    conv = random_conv()
    conv.weight *= torch.linspace(0.5, 2, 8)[:, None, None, None]
    quant = calibrated(conv, random_input())
    expected = affine.scale_for(conv.weight.abs().amax((1, 2, 3)), 127)
    assert torch.equal(quant.weight_scale, expected)
    assert (quant.quantized_weight() - conv.weight).abs().amax((1, 2, 3)).le(quant.weight_scale / 2 * 1.001).all()


def test_a_nearly_dead_channel_has_a_scale_that_fp16_holds() -> None:
    conv = random_conv()
    conv.weight[0] *= 1e-6
    quant = calibrated(conv, random_input())
    assert float(quant.weight_scale.min()) == affine.SMALLEST_NORMAL_FP16
    assert (quant.quantized_weight()[0] == 0).all()


def test_a_layer_of_small_weights_keeps_its_digits() -> None:
    conv = random_conv()
    conv.weight *= 1e-3
    quant = calibrated(conv, random_input())
    assert (quant.quantized_weight() - conv.weight).abs().max() <= quant.weight_scale.max() / 2 * 1.001
    assert float(quant.weight_scale.max()) < affine.SMALLEST_NORMAL_FP16


def test_the_cpu_form_has_integer_weights_and_float_inputs() -> None:
    x = random_input()
    conv = calibrated(random_conv(), x)
    with running_as_cpu_graph(conv):
        found = conv(x)
    assert torch.equal(found, F.conv2d(x, conv.quantized_weight(), conv.bias))
    assert conv.phase is Phase.FLOAT


def test_a_pair_runs_in_float_and_quantized_at_once() -> None:
    x = random_input()
    conv = calibrated(random_conv(), x)
    with running_in(conv, Phase.PAIRED):
        exact, actual = conv(torch.cat([x, x])).chunk(2)
    assert torch.allclose(exact, conv.exact(x), atol=1e-6)
    assert torch.allclose(actual, conv.quantized(x), atol=1e-6)


def test_without_calibration_it_says_so() -> None:
    conv = QuantConv2d(random_conv(), SCHEME)
    with running_in(conv, Phase.QUANTIZED), pytest.raises(RuntimeError, match="no scale yet; calibrate the model"):
        conv(random_input())


def test_paddings_without_numbers_are_refused() -> None:
    for conv in (nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")):
        with pytest.raises(ValueError, match="expected a convolution with a padding of zeros in numbers"):
            QuantConv2d(conv, SCHEME)


class Residual(nn.Module):
    """Two convolutions; the tensor between them is read by the second and by an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.first = random_conv(1)
        self.act = nn.ReLU()
        self.second = nn.Conv2d(8, 8, 1).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        result: Tensor = self.second(y) + y
        return result


def quantized_residual(x: Tensor) -> Residual:
    torch.manual_seed(0)
    model = Residual()
    points = [GridPoint(producer="act", conv="second", via="input", sharing=("second",))]
    swap_convolutions(model, ["first", "second"], points, QuantScheme(weight_bits=4, activation_bits=4))
    for phase in (Phase.RANGING, Phase.CALIBRATING):
        with running_in(model, phase):
            model(x)
    assert fix_conv_scales(model, points) == []
    return model


def test_a_grid_quantizes_a_tensor_once_for_all_readers() -> None:
    x = random_input()
    model = quantized_residual(x)
    grid = model.tensor_grids["act"]
    assert isinstance(grid, TensorGrid)
    assert torch.equal(grid.scale, model.second.input.scale)
    with running_in(model, Phase.QUANTIZED):
        found = model(x)
        y = grid.on_grid(model.first(x).relu())
        assert torch.allclose(found, model.second(y) + y)
        assert torch.equal(grid.on_grid(y), y)


def test_a_copy_of_a_model_has_grids_of_its_own() -> None:
    x = random_input()
    model = quantized_residual(x)
    copied = copy.deepcopy(model)
    copied.tensor_grids["act"].scale = model.tensor_grids["act"].scale * 4
    with running_in(model, Phase.QUANTIZED), running_in(copied, Phase.QUANTIZED):
        assert not torch.equal(copied(x), model(x))


def test_they_count_as_integer_work() -> None:
    x = random_input()
    model = quantized_residual(x)
    found = count_macs(model, x)
    assert found.total == found.integer == 25 * (8 * 16 * 9 + 8 * 8)
    assert count_macs(model, x, convolutions=False).integer == 0


@torch.no_grad()
def test_corrected_biases_leave_no_mean_error() -> None:
    x = random_input()
    model = quantized_residual(x)
    exact = model.second.exact(model.first.exact(x).relu())

    def error() -> float:
        with running_in(model, Phase.QUANTIZED):
            found: Tensor = model.second(model.act(model.first(x)))
        return float((found - exact).mean((0, 2, 3)).abs().max())

    before = error()
    fit_convolutions(model, x)
    assert error() < 1e-5 < before
    assert torch.equal(model.second.exact(model.first.exact(x).relu()), exact)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}])
def test_moments_of_a_convolution_give_its_error(options: dict[str, int]) -> None:
    x = random_input()
    conv = calibrated(
        random_conv(**options), x, QuantScheme(weight_bits=4, observer="minmax", weight_observer="minmax")
    )
    moments = conv_swap._moments(conv, x, x)
    conv.correct_bias(moments.best_bias(conv.quantized_weight().flatten(1)))
    measured = (conv.quantized(x) - conv.exact(x)).square().mean((0, 2, 3)).double()
    torch.testing.assert_close(moments.error(conv.quantized_weight().flatten(1)), measured, rtol=1e-3, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("rounding", ["adaround", "descent"])
def test_fitted_roundings_of_narrow_weights_are_nearer_to_the_float_model(rounding: RoundingName) -> None:
    x, fresh = correlated_input(0), correlated_input(7)
    errors = {}
    for how in ("nearest", rounding):
        conv = calibrated(random_conv(), x, QuantScheme(weight_bits=4, observer="minmax", weight_observer="minmax"))
        fit_convolutions(conv, x, how)  # type: ignore[arg-type]
        assert conv.integer_weight().abs().max() <= 7
        errors[how] = float((conv.quantized(fresh) - conv.exact(fresh)).square().mean())
    assert errors[rounding] < errors["nearest"]


@torch.no_grad()
def test_convolutions_of_several_groups_are_rounded_to_the_nearest() -> None:
    x = random_input()
    conv = calibrated(nn.Conv2d(16, 16, 3, groups=16).requires_grad_(False), x)
    fit_convolutions(conv, x, "descent")
    assert conv.integers is None
