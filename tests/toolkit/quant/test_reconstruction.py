"""Rounding, factors and offsets by the output's error; learned scales: never worse, and exactly what is stored."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from p4q_edge.calibration.calibrate import calibrate_encoder
from p4q_edge.graph.export import export_classifier, linear_quantizations
from p4q_edge.models.batches import encode_batches
from p4q_edge.models.folded_classifier import FoldedClassifier
from p4q_edge.models.load import LoadedModel, to_batch
from p4q_edge.quant import affine, reconstruction
from p4q_edge.quant.least_squares import Moments, Seen, correct_affine, paired_pass
from p4q_edge.quant.linear import Phase, QuantLinear, quant_linears, running_in
from p4q_edge.quant.rounding import choose_rounding
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.stages.encoder_file import restore_encoder, save_encoder

SEEDS = st.integers(0, 2**31)
LEVERS = {
    "descent": {"weight_rounding": "descent"},
    "affine": {"affine_correction": True},
    "scales": {"scale_epochs": 30},
    "together": {"reconstruction_epochs": 30},
    "all": {"weight_rounding": "descent", "affine_correction": True, "scale_epochs": 1},
}


QUICK = ("affine", "together")
"""The levers that the quick tests try: a fit of closed form, and one by gradients."""
LEVERS_BY_TIME = [lever if lever in QUICK else pytest.param(lever, marks=pytest.mark.slow) for lever in LEVERS]


@pytest.fixture(autouse=True, scope="module")
def few_steps() -> Iterator[None]:
    """Rates for the few steps that a toy is given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruction, "INTEGER_RATE", 5e-3)
        patch.setattr(reconstruction, "SCALE_RATE", 2e-3)
        yield


def _problem(seed: int, bits: int) -> tuple[QuantLinear, Tensor, Tensor]:
    """A calibrated linear with correlated inputs, those inputs quantized, and the outputs that it should give."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 12, generator=generator) * torch.logspace(-1, 1, 5)[:, None]
    linear = QuantLinear(weight, torch.randn(5, generator=generator), QuantScheme(weight_bits=bits))
    linear.requires_grad_(False)
    linear.scale_weight()
    x = torch.randn(64, 12, generator=generator) @ torch.randn(12, 12, generator=generator) + 1.0
    linear.input_scale = affine.scale_for(x.abs().amax(), 127)
    seen = linear.quantized_input(x + 0.1 * torch.randn(64, 12, generator=generator))
    return linear, seen, F.linear(x, linear.weight, linear.bias)


def _best_error(linear: QuantLinear, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of each output channel with its best bias, the plain way."""
    difference = (y - x @ linear.quantized_weight().T).double()
    return (difference - difference.mean(0)).square().mean(0)


@given(SEEDS, st.integers(2, 8))
@settings(max_examples=25, deadline=None)
def test_moments_give_the_error_of_the_rows(seed: int, bits: int) -> None:
    linear, x, y = _problem(seed, bits)
    moments = Moments.of(x, y)
    difference = moments.error(linear.quantized_weight()) - _best_error(linear, x, y)
    assert bool((difference.abs() <= 1e-6 * moments.target_square).all())
    remaining = (y - x @ linear.quantized_weight().T - moments.best_bias(linear.quantized_weight())).mean(0)
    torch.testing.assert_close(remaining, torch.zeros(5), atol=1e-4, rtol=0)


@pytest.mark.parametrize("how", ["adaround", "descent"])
@given(seed=SEEDS, bits=st.integers(2, 8))
@settings(max_examples=15, deadline=None)
def test_chosen_rounding_stays_in_range_and_never_costs_more_than_nearest(how: str, seed: int, bits: int) -> None:
    linear, x, y = _problem(seed, bits)
    nearest, scale = linear.integer_weight(), linear.weight_scale.clone()
    before = _best_error(linear, x, y)
    choose_rounding(linear, Moments.of(x, y), how)  # type: ignore[arg-type]
    assert bool((_best_error(linear, x, y) <= before + 1e-6 * y.double().var(0)).all())
    chosen = linear.integer_weight()
    low, high = affine.weight_range(bits)
    assert low <= int(chosen.min()) <= int(chosen.max()) <= high
    assert torch.equal(linear.weight_scale, scale)
    if how == "adaround":
        assert int((chosen.int() - nearest.int()).abs().max()) <= 1


@pytest.mark.parametrize("how", ["adaround", "descent"])
def test_chosen_rounding_finds_what_nearest_misses(how: str) -> None:
    before, after = 0.0, 0.0
    for seed in range(5):
        linear, x, y = _problem(seed, 3)
        before += float((_best_error(linear, x, y) / y.var(0)).mean())
        choose_rounding(linear, Moments.of(x, y), how)  # type: ignore[arg-type]
        after += float((_best_error(linear, x, y) / y.var(0)).mean())
    assert after < 0.75 * before


@given(SEEDS, st.integers(2, 8))
@settings(max_examples=25, deadline=None)
def test_the_affine_correction_is_the_least_squares_optimum(seed: int, bits: int) -> None:
    linear, x, y = _problem(seed, bits)
    before, integers, scale = _best_error(linear, x, y), linear.integer_weight(), linear.weight_scale.clone()
    plain = x.double() @ linear.quantized_weight().double().T
    correct_affine(linear, Moments.of(x, y))
    assert torch.equal(linear.integer_weight(), integers)
    assert torch.equal(affine.representable_scale(linear.weight_scale), linear.weight_scale)
    actual = F.linear(x, linear.quantized_weight(), linear.bias)
    error = (y - actual).double().square().mean(0)
    assert bool((error <= before * (1 + 1e-4) + 1e-6 * y.var(0)).all())
    for channel in range(5):  # against the solution of an ordinary least-squares library
        design = torch.stack([plain[:, channel], torch.ones(64, dtype=torch.float64)], 1)
        factor = torch.linalg.lstsq(design, y[:, channel, None].double()).solution[0, 0]
        if float(factor) > 0 and not torch.equal(linear.weight_scale[channel], scale[channel]):
            assert float(linear.weight_scale[channel] / scale[channel]) == pytest.approx(float(factor), rel=2e-3)


def test_a_constant_channel_keeps_its_scale() -> None:
    linear, x, y = _problem(0, 8)
    linear.set_weight(torch.zeros(5, 12))
    linear.scale_weight()
    before = linear.weight_scale.clone()
    correct_affine(linear, Moments.of(x, y))
    assert torch.equal(linear.weight_scale, before)
    torch.testing.assert_close(linear.bias, y.mean(0), rtol=1e-4, atol=1e-4)


class _Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.second = QuantLinear(torch.randn(4, 6), None, QuantScheme(weight_bits=2))
        self.first = QuantLinear(torch.randn(6, 6), torch.randn(6), QuantScheme(weight_bits=2))
        self.requires_grad_(False)
        for linear in (self.first, self.second):
            linear.scale_weight()
            linear.input_scale = torch.tensor(0.05)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))  # type: ignore[no-any-return]


def test_the_paired_pass_visits_in_order_and_shows_what_earlier_visits_changed() -> None:
    torch.manual_seed(0)
    model, x = _Chain(), torch.randn(50, 6)
    exact = model(x)
    visited: list[tuple[QuantLinear, Moments]] = []

    def visit(linear: QuantLinear, seen: Seen) -> None:
        moments = Moments.of(linear.quantized_input(seen.actual), seen.target)
        visited.append((linear, moments))
        correct_affine(linear, moments)

    paired_pass(model, x, visit)
    assert [linear for linear, _ in visited] == [model.first, model.second]
    with running_in(model, Phase.QUANTIZED):
        hidden = model.second.quantized_input(F.relu(model.first(x)))
    expected = Moments.of(hidden, exact)
    torch.testing.assert_close(visited[1][1].cross, expected.cross, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(visited[1][1].target_mean, exact.double().mean(0), rtol=1e-5, atol=1e-6)


def _distance(model: LoadedModel, encoder: nn.Module, batch: Tensor) -> float:
    exact = F.normalize(model.clip.encode_image(batch), dim=-1)
    return float(1 - (F.normalize(encode_batches(encoder, [batch]), dim=-1) * exact).sum(-1).mean())


@pytest.mark.parametrize("lever", LEVERS_BY_TIME)
def test_each_lever_brings_the_encoder_nearer_to_the_float_model(
    toy_clip: LoadedModel, toy_pixels: Tensor, lever: str
) -> None:
    batch = to_batch(toy_pixels, toy_clip.preprocess)
    # A searched grid leaves nothing for scales of so small a model.
    base = QuantScheme(weight_bits=4, activation_bits=6, observer="minmax" if lever == "scales" else "search")
    plain = calibrate_encoder(toy_clip, toy_pixels, base).encoder
    scheme = replace(base, **LEVERS[lever])  # type: ignore[arg-type]
    fitted = calibrate_encoder(toy_clip, toy_pixels, scheme).encoder
    assert _distance(toy_clip, fitted, batch) < 0.95 * _distance(toy_clip, plain, batch)


def test_a_reconstruction_that_is_no_better_is_not_taken(
    toy_clip: LoadedModel, toy_pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = QuantScheme(weight_bits=4, activation_bits=6, weight_rounding="descent")
    plain = calibrate_encoder(toy_clip, toy_pixels, scheme).encoder
    monkeypatch.setattr(reconstruction, "SCALE_RATE", 20.0)  # far too high
    learned = calibrate_encoder(toy_clip, toy_pixels, replace(scheme, reconstruction_epochs=2)).encoder
    states = plain.state_dict(), learned.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@given(st.integers(1, 40), st.integers(1, 40), SEEDS)
@settings(max_examples=25, deadline=None)
def test_cut_images_keep_size_and_range(height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, height, width, generator=generator)
    part = reconstruction._cut(images, generator)
    assert part.shape == images.shape
    assert float(images.min()) - 1e-5 <= float(part.min()) <= float(part.max()) <= float(images.max()) + 1e-5


def test_every_image_is_seen_before_any_is_seen_again() -> None:
    batches = reconstruction._batches(6, torch.Generator().manual_seed(0))
    seen = torch.cat([next(batches) for _ in range(3)]).tolist()
    assert sorted(seen[:6]) == sorted(seen[6:12]) == [*range(6)]


def test_scales_that_are_no_better_are_not_taken(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    batch = to_batch(toy_pixels, toy_clip.preprocess)
    scheme = QuantScheme(weight_bits=4, activation_bits=6)
    plain = calibrate_encoder(toy_clip, toy_pixels, scheme).encoder
    learned = calibrate_encoder(toy_clip, toy_pixels, replace(scheme, scale_epochs=2)).encoder
    assert any(linear.input_shift is not None for linear in quant_linears(learned).values())
    assert _distance(toy_clip, learned, batch) <= _distance(toy_clip, plain, batch)


@pytest.mark.parametrize("lever", LEVERS_BY_TIME)
def test_what_was_fitted_is_stored_restored_and_exported_to_the_integer(
    toy_clip: LoadedModel, toy_pixels: Tensor, tmp_path: Path, lever: str
) -> None:
    scheme = QuantScheme(weight_bits=4, activation_bits=8, **LEVERS[lever])  # type: ignore[arg-type]
    calibrated = calibrate_encoder(toy_clip, toy_pixels, scheme)
    save_encoder(calibrated, tmp_path / "encoder.safetensors", key="k")
    restored = restore_encoder(tmp_path / "encoder.safetensors", toy_clip, scheme, key="k")
    assert restored is not None
    batch = to_batch(toy_pixels, toy_clip.preprocess)
    assert torch.equal(calibrated.encoder(batch), restored.encoder(batch))
    exported = linear_quantizations(restored.encoder)
    for name, linear in quant_linears(calibrated.encoder).items():
        stored = (
            torch.from_numpy(exported[name].weight).float() * torch.from_numpy(exported[name].weight_scale)[:, None]
        )
        assert torch.equal(stored, linear.quantized_weight()), name
        for scale in (linear.weight_scale, linear.input_scale):
            assert torch.equal(affine.representable_scale(scale), scale), name


@pytest.mark.parametrize("lever", [*LEVERS_BY_TIME, "biases"])
def test_the_float_phase_stays_the_float_model(toy_clip: LoadedModel, toy_pixels: Tensor, lever: str) -> None:
    batch = to_batch(toy_pixels, toy_clip.preprocess)
    options = LEVERS.get(lever, {"bias_correction": True})
    outputs = []
    for scheme in (QuantScheme(), QuantScheme(weight_bits=3, **options)):  # type: ignore[arg-type]
        encoder = calibrate_encoder(toy_clip, toy_pixels, scheme).encoder
        with running_in(encoder, Phase.FLOAT):
            outputs.append(encoder(batch))
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)


def test_the_graph_has_the_corrected_biases(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    scheme = QuantScheme(weight_bits=3, activation_bits=6, weight_rounding="descent", affine_correction=True)
    encoder = calibrate_encoder(toy_clip, toy_pixels, scheme).encoder
    text = F.normalize(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    classifier = FoldedClassifier(
        encoder, None, text, logit_scale=10.0, logit_bias=None, preprocess=toy_clip.preprocess
    )
    parity = export_classifier(classifier, toy_pixels.numpy()).parity.flat()
    assert parity["fp32_unoptimized.cosine_embedding"] > 0.9999


def test_with_every_lever_off_nothing_is_fitted(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    encoder = calibrate_encoder(toy_clip, toy_pixels, QuantScheme()).encoder
    assert not [name for name in encoder.state_dict() if name.endswith("integers")]
    for linear in quant_linears(encoder).values():
        q = affine.quantize(linear.weight, linear.weight_scale[:, None], *affine.weight_range(8))
        assert torch.equal(linear.integer_weight().float(), q)


def test_a_new_weight_or_scale_drops_the_chosen_rounding() -> None:
    for change in (lambda lin: lin.set_weight(torch.eye(3)), lambda lin: lin.scale_weight()):
        linear = QuantLinear(torch.eye(3), None, QuantScheme())
        linear.set_integers(torch.ones(3, 3, dtype=torch.int8), torch.ones(3))
        assert torch.equal(linear.quantized_weight(), torch.ones(3, 3))
        change(linear)
        assert linear.integers is None
        assert float(linear.quantized_weight()[0, 1].detach()) == 0.0
