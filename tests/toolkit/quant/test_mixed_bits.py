"""Weights of different widths: what counts is measured right, bits are well spent, and all that follows knows them."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from p4q_edge.calibration import calibrate_encoder, mean_weight_bits, set_weight_bits
from p4q_edge.graph import linear_quantizations
from p4q_edge.models import LoadedModel, to_batch
from p4q_edge.quant import (
    QuantConv2d,
    QuantLinear,
    QuantScheme,
    output_weights,
    quant_linears,
    rounding_losses,
    spread_bits,
    weight_sensitivity,
)
from p4q_edge.stages.encoder_file import restore_encoder, save_encoder
from p4q_edge.stages.export import mean_bits_of

SCHEME = QuantScheme(weight_bits=4, mean_weight_bits=6.0)
MIXED = {"weight_bits": 3, "weight_rounding": "descent", "mean_weight_bits": 4.5}


class Two(nn.Module):
    """Two linears with a bend between them, over five rows that are averaged."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = QuantLinear(torch.randn(6, 4, generator=generator), torch.zeros(6), QuantScheme())
        self.second = QuantLinear(torch.randn(3, 6, generator=generator), torch.zeros(3), QuantScheme())
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))).mean(1)


def _rows() -> Tensor:
    return torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(4)) + 2.0


def test_sensitivity_tells_the_loss_of_small_errors_behind_a_corrected_bias() -> None:
    """Over many draws the loss of random errors of a weight is half of what the mean squared gradients say."""
    model, x = Two(), _rows()
    weights = output_weights(model, [x])
    runs = [weight_sensitivity(model, [x], weights, seed=seed) for seed in range(200)]
    generator = torch.Generator().manual_seed(5)
    for path, linear in quant_linears(model).items():
        sensitivity = torch.stack([run[path] for run in runs]).mean(0)
        inputs = x if path == "first" else torch.tanh(model.first(x))
        share = weights[path].positions / weights[path].positions.sum()
        mean = torch.einsum("p,npi->i", share, inputs) / len(x)
        plain, exact = linear.weight.data.clone(), F.normalize(model(x).double(), dim=-1)
        found = 0.0
        for _ in range(400):
            error = 1e-2 * torch.randn(plain.shape, generator=generator)
            linear.weight.data = plain + error
            linear.bias = nn.Parameter(-(error @ mean), requires_grad=False)
            found += float(1 - (F.normalize(model(x).double(), dim=-1) * exact).sum(-1).mean()) / 400
        linear.weight.data, linear.bias = plain, nn.Parameter(torch.zeros(len(plain)), requires_grad=False)
        assert found == pytest.approx(0.5 * 1e-4 * float(sensitivity.sum()), rel=0.15)


def test_sensitivity_leaves_the_model_as_it_was() -> None:
    model, x = Two(), _rows()
    before = model(x)
    weight_sensitivity(model, [x], output_weights(model, [x]))
    assert torch.equal(model(x), before)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(linear._forward_hooks for linear in quant_linears(model).values())


def test_more_bits_are_expected_to_lose_less_and_what_does_not_count_loses_nothing() -> None:
    linear = QuantLinear(
        torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), None, QuantScheme(weight_bits=3)
    )
    losses = rounding_losses(linear, torch.ones(5, 7))
    assert [*losses] == [3, 4, 5, 6, 7]
    assert [*losses.values()] == sorted(losses.values(), reverse=True)
    assert set(rounding_losses(linear, torch.zeros(5, 7)).values()) == {0.0}


@given(
    falls=st.lists(st.lists(st.floats(0.01, 10.0), min_size=3, max_size=3), min_size=1, max_size=4),
    mean=st.floats(4.0, 7.0),
)
def test_bits_are_spent_as_the_best_of_all_ways_would(falls: list[list[float]], mean: float) -> None:
    """Of layers of one size, each bit of which gains less than the one before."""
    losses = {}
    for index, each in enumerate(falls):
        gains = sorted(each, reverse=True)
        losses[f"l{index}"] = {4 + bit: sum(gains[bit:]) for bit in range(4)}
    found = spread_bits(losses, dict.fromkeys(losses, 10), mean)
    assert sum(found.values()) <= mean * len(found) + 1e-9
    best = min(
        sum(losses[path][bits] for path, bits in zip(losses, chosen, strict=True))
        for chosen in product(range(4, 8), repeat=len(losses))
        if sum(chosen) <= mean * len(losses) + 1e-9
    )
    assert sum(losses[path][bits] for path, bits in found.items()) == pytest.approx(best)


@given(
    layers=st.lists(st.tuples(st.integers(1, 50), st.lists(st.floats(0.0, 9.0), min_size=4, max_size=4)), min_size=1),
    mean=st.floats(4.0, 7.0),
)
def test_of_layers_of_any_size_no_bit_that_gains_is_left_that_would_fit(
    layers: list[tuple[int, list[float]]], mean: float
) -> None:
    sizes = {f"l{index}": size for index, (size, _) in enumerate(layers)}
    losses = {f"l{index}": dict(enumerate(each, 4)) for index, (_, each) in enumerate(layers)}
    found = spread_bits(losses, sizes, mean)
    left = mean * sum(sizes.values()) - sum(sizes[path] * bits for path, bits in found.items())
    assert left >= -1e-9
    for path, bits in found.items():
        gains = bits < 7 and losses[path][bits + 1] < losses[path][bits]
        assert not gains or sizes[path] > left - 1e-9


def test_a_small_layer_takes_what_a_large_one_leaves() -> None:
    losses = {"large": {4: 100.0, 5: 0.0}, "small": {4: 1.0, 5: 0.0}, "idle": {4: 0.0}}
    assert spread_bits(losses, {"large": 90, "small": 5, "idle": 5}, 4.5) == {"large": 4, "small": 5, "idle": 4}


def test_the_mean_is_of_the_linears_that_are_quantized() -> None:
    """Convolutions have the scheme's bits, and engines for CPUs compute them in float."""
    encoder = nn.Module()
    encoder.first, encoder.second = (
        QuantLinear(torch.ones(2, 2), None, SCHEME),
        QuantLinear(torch.ones(4, 3), None, SCHEME),
    )
    encoder.conv = QuantConv2d(nn.Conv2d(3, 5, 1), SCHEME)
    assert mean_weight_bits(encoder) == 0.0
    for observed in (encoder.first.input_scale, encoder.second.input_scale, encoder.conv.input.scale):
        observed.fill_(0.1)
    assert (mean_weight_bits(encoder), mean_bits_of(SCHEME, encoder)) == (4.0, None)
    set_weight_bits(encoder, {"second": 6})
    assert mean_weight_bits(encoder) == mean_bits_of(SCHEME, encoder) == 5.5
    assert mean_bits_of(replace(SCHEME, mean_weight_bits=None), encoder) is None
    encoder.second.in_float = True
    assert mean_bits_of(SCHEME, encoder) is None
    encoder.first.in_float = True
    assert mean_bits_of(SCHEME, encoder) is None


@pytest.fixture
def plain_loss(toy_clip: LoadedModel, toy_pixels: Tensor) -> Callable[[nn.Module], float]:
    """One minus the mean cosine of an encoder to the float tower."""
    batch = to_batch(toy_pixels, toy_clip.preprocess)

    def loss(encoder: nn.Module) -> float:
        return float(1 - F.cosine_similarity(encoder(batch), toy_clip.clip.encode_image(batch)).mean())

    return loss


def test_an_encoder_keeps_the_mean_and_what_is_exported_and_restored_has_its_widths(
    toy_clip: LoadedModel, toy_pixels: Tensor, plain_loss: Callable[[nn.Module], float], tmp_path: Path
) -> None:
    scheme = QuantScheme(**MIXED)  # type: ignore[arg-type]
    mixed = calibrate_encoder(toy_clip, toy_pixels, scheme)
    assert 4.0 < mean_weight_bits(mixed.encoder) <= 4.5
    uniform = QuantScheme(weight_bits=3, weight_rounding="descent")
    assert plain_loss(mixed.encoder) < 0.5 * plain_loss(calibrate_encoder(toy_clip, toy_pixels, uniform).encoder)
    widths = {path: each.weight_bits for path, each in linear_quantizations(mixed.encoder).items()}
    assert {path: bits for path, bits in widths.items() if bits > 3} == mixed.weight_bits
    for path, each in linear_quantizations(mixed.encoder).items():
        assert abs(each.weight).max() <= 2 ** (widths[path] - 1) - 1
    save_encoder(mixed, tmp_path / "encoder.safetensors", key="k")
    restored = restore_encoder(tmp_path / "encoder.safetensors", toy_clip, scheme, key="k")
    assert restored is not None
    assert restored.weight_bits == mixed.weight_bits
    batch = to_batch(toy_pixels, toy_clip.preprocess)
    assert torch.equal(restored.encoder(batch), mixed.encoder(batch))
    assert {path: each.weight_bits for path, each in linear_quantizations(restored.encoder).items()} == widths


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weight_bits": 4, "mean_weight_bits": 4.0}, "above weight_bits and below 7, got 4 with weight_bits = 4"),
        ({"weight_bits": 4, "mean_weight_bits": 7.0}, "above weight_bits and below 7, got 7 with weight_bits = 4"),
        ({"weight_bits": 4, "mean_weight_bits": float("nan")}, "above weight_bits and below 7, got nan"),
        ({"mean_weight_bits": 5.0}, "above weight_bits and below 7, got 5 with weight_bits = 8"),
        ({"weight_bits": 4, "attention_bits": 8, "mean_weight_bits": 5.0}, "attention_bits fixes .* leave one out"),
    ],
)
def test_means_that_cannot_be_spread_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantScheme(**wrong)  # type: ignore[arg-type]


def test_the_mean_is_part_of_the_name_and_the_widths_are_carried() -> None:
    scheme = QuantScheme(weight_bits=4, mean_weight_bits=4.75)
    assert (scheme.label, scheme.execution) == ("W4A8 (mean_weight_bits = 4.75)", "carried")
