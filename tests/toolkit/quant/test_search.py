"""The search chooses by the error on images that a range was not taken from, and its gain changes nothing in float."""

from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from p4q_edge.calibration import calibrate_encoder
from p4q_edge.models import ImageEncoder, LoadedModel, encode_batches, to_batch
from p4q_edge.quant import (
    STRENGTHS,
    OutputWeights,
    QuantLinear,
    QuantScheme,
    Ranges,
    Rows,
    Seen,
    activation_readers,
    affine,
    choose_input,
    output_weights,
    quant_linears,
    quantize_modules,
)
from p4q_edge.quant.search import candidates, clips, gain_of
from p4q_edge.stages.encoder_file import restore_encoder, save_encoder

SEEDS = st.integers(0, 2**31)
TOKENS, WIDTH = 5, 12


def _problem(seed: int, bits: int = 8, *, outlier: float = 1.0) -> tuple[QuantLinear, Seen, OutputWeights]:
    """A linear of uneven channels whose first token, which counts most, has one large channel."""
    generator = torch.Generator().manual_seed(seed)
    linear = QuantLinear(torch.randn(7, WIDTH, generator=generator), torch.randn(7, generator=generator), QuantScheme())
    linear.scheme = QuantScheme(weight_bits=bits, activation_bits=bits)
    linear.requires_grad_(False)
    x = F.gelu(torch.randn(16, TOKENS, WIDTH, generator=generator)) * torch.logspace(-1, 0.5, WIDTH)
    x[:, 0, 3] = outlier * (1 + 0.1 * torch.rand(16, generator=generator))
    weights = OutputWeights(positions=torch.tensor([4.0, 1.0, 1.0, 1.0, 0.0]), channels=torch.ones(7))
    return linear, Seen(exact=x, actual=x, target=linear(x)), weights


@given(SEEDS, st.integers(4, 8))
@settings(max_examples=15, deadline=None)
def test_the_choice_is_never_worse_than_min_max_without_gain(seed: int, bits: int) -> None:
    linear, seen, weights = _problem(seed, bits, outlier=9.0)
    rows = Rows.of(seen, weights)
    all_errors = {(c.strength, c.clip): c.error for c in candidates(linear, rows, STRENGTHS)}
    chosen = choose_input(linear, rows, strengths=STRENGTHS)
    assert chosen.error == min(all_errors.values())
    headroom = linear.scheme.headroom if bits == 8 else 1.0
    assert chosen.error <= all_errors[0.0, headroom]


def test_eight_bits_cut_nothing_off_and_four_may() -> None:
    for bits, least in ((8, 1.15), (4, 0.0)):
        linear, seen, weights = _problem(0, bits, outlier=9.0)
        assert choose_input(linear, Rows.of(seen, weights), strengths=STRENGTHS).clip >= least
        assert (min(clips(linear.scheme)) < 1.0) is (bits < 8)


@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_a_gain_changes_nothing_before_quantization(seed: int) -> None:
    linear, seen, _ = _problem(seed)
    gain = gain_of(seen.actual.abs().flatten(0, 1).amax(0), 0.7)
    assert torch.equal(gain.half().float(), gain)  # the FP16 graph multiplies by the same number
    linear.set_gain(gain)
    torch.testing.assert_close(linear(seen.actual), seen.target, rtol=1e-4, atol=1e-4)
    linear.set_gain(1 / gain)
    torch.testing.assert_close(linear(seen.actual), seen.target, rtol=1e-4, atol=1e-4)


def test_gains_even_out_channels_and_bound_dead_ones() -> None:
    largest = torch.tensor([0.0, 1.0, 16.0])
    assert gain_of(largest, 0.0).tolist() == [1.0, 1.0, 1.0]
    gain = gain_of(largest, 0.5)
    assert float(gain[1] / gain[2]) == pytest.approx(4.0, rel=1e-3)
    assert float(gain[0]) == pytest.approx(1e-3**-0.5, rel=1e-3)
    assert bool(torch.isfinite(gain_of(torch.zeros(3), 0.85)).all())


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("inf"), float("nan")])
def test_a_gain_that_no_weight_could_undo_is_refused(wrong: float) -> None:
    linear, _, _ = _problem(0)
    with pytest.raises(ValueError, match="gains are positive and finite"):
        linear.set_gain(torch.full((WIDTH,), wrong))


@given(SEEDS)
@settings(max_examples=15, deadline=None)
def test_a_shift_changes_nothing_before_quantization(seed: int) -> None:
    linear, seen, _ = _problem(seed)
    generator = torch.Generator().manual_seed(seed)
    gain, shift = torch.rand(WIDTH, generator=generator) + 0.5, torch.randn(WIDTH, generator=generator)
    linear.set_gain(gain)
    linear.set_shift(shift)
    torch.testing.assert_close(linear.gained(seen.actual), seen.actual * gain + shift)
    torch.testing.assert_close(linear(seen.actual), seen.target, rtol=1e-4, atol=1e-4)
    linear.set_shift(-shift)
    torch.testing.assert_close(linear(seen.actual), seen.target, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrong", [float("inf"), float("nan")])
def test_a_shift_that_no_bias_could_undo_is_refused(wrong: float) -> None:
    linear, _, _ = _problem(0)
    with pytest.raises(ValueError, match="shifts are finite"):
        linear.set_shift(torch.full((WIDTH,), wrong))


@given(st.floats(0.0, 8.0), st.floats(0.01, 8.0), st.integers(4, 8), st.sampled_from([0.5, 1.0, 1.15]))
def test_a_shifted_grid_holds_the_range_and_zero_with_finer_steps(
    below: float, above: float, bits: int, clip: float
) -> None:
    ranges = Ranges(low=torch.tensor([-below, 0.0]), high=torch.tensor([above, 0.1]))
    quant_min, quant_max = affine.activation_range(bits)
    plain, none = ranges.grid(torch.ones(2), clip, bits, shifted=False)
    scale, shift = ranges.grid(torch.ones(2), clip, bits, shifted=True)
    assert none == 0
    finest = quant_max / (quant_max - quant_min)
    assert 0.998 * finest * float(plain) <= float(scale) <= 1.001 * float(plain)
    reach = clip * max(below, above)
    ends = torch.tensor([-min(below * max(clip, 1.0), reach), 0.0, min(above * max(clip, 1.0), reach)])
    restored = affine.quantize(ends + shift, scale, quant_min, quant_max) * scale - shift
    torch.testing.assert_close(restored, ends, rtol=0, atol=1.1 * float(scale))
    assert abs(float(restored[1])) <= 2.0**-10 * abs(float(shift))  # but for what FP16 leaves of the shift


def test_an_input_that_is_never_far_below_zero_uses_the_whole_grid() -> None:
    errors = []
    for shifted in (False, True):
        linear, seen, weights = _problem(0, outlier=9.0)
        choose_input(linear, Rows.of(seen, weights), strengths=STRENGTHS, shifted=shifted)
        linear.scale_weight()
        error = linear.quantized_input(seen.actual) - linear.gained(seen.actual)
        errors.append(float((error @ linear.weight.T).square().mean()))
    assert errors[1] < 0.4 * errors[0]


def test_large_channels_of_a_token_that_counts_are_kept() -> None:
    linear, seen, weights = _problem(0, outlier=14.0)
    rows = Rows.of(seen, weights)
    choose_input(linear, rows, strengths=STRENGTHS)
    assert linear.input_shift is None
    restored = linear.quantized_input(seen.actual)[:, 0, 3] / linear.input_gain[3]
    torch.testing.assert_close(restored, seen.actual[:, 0, 3], rtol=0.02, atol=0)


def test_a_row_that_nothing_reads_does_not_widen_the_range() -> None:
    linear, seen, weights = _problem(0)
    seen.actual[:, 4] = 1000.0
    choose_input(linear, Rows.of(seen, weights))
    assert float(linear.input_scale) * 127 < 30


def test_one_image_is_enough_and_two_searches_agree() -> None:
    scales = []
    for _ in range(2):
        linear, seen, weights = _problem(3)
        one = Seen(exact=seen.exact[:1], actual=seen.actual[:1], target=seen.target[:1])
        choose_input(linear, Rows.of(one, weights), strengths=STRENGTHS)
        scales.append(linear.input_scale)
    assert torch.equal(*scales)


def test_more_images_than_the_rows_widen_the_range() -> None:
    scales = []
    for bounds in (None, Ranges(low=torch.zeros(WIDTH), high=torch.full((WIDTH,), 50.0))):
        linear, seen, weights = _problem(0)
        choose_input(linear, Rows.of(seen, weights), bounds=bounds)
        scales.append(float(linear.input_scale))
    assert scales[1] > 5 * scales[0]


def test_readers_of_activation_functions_are_found_by_watching(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    encoder = ImageEncoder(toy_clip.clip.visual)
    quantize_modules(encoder, QuantScheme(), cross_attention=frozenset())
    found = activation_readers(encoder, to_batch(toy_pixels[:2], toy_clip.preprocess))
    assert found == [f"trunk.transformer.resblocks.{index}.mlp.c_proj" for index in range(2)]


class _Changed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.drop = nn.GELU(), nn.Dropout()
        self.direct, self.behind = (QuantLinear(torch.eye(4), None, QuantScheme()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.act(x))
        return self.direct(y) + self.behind(y + 1)  # type: ignore[no-any-return]


def test_a_linear_that_reads_something_else_has_no_gain() -> None:
    assert activation_readers(_Changed().eval(), torch.randn(2, 4)) == ["direct"]


def test_only_the_class_token_counts_behind_the_last_attention(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    batch = to_batch(toy_pixels[:4], toy_clip.preprocess)
    encoder = ImageEncoder(toy_clip.clip.visual)
    quantize_modules(encoder, QuantScheme(), cross_attention=frozenset())
    found = output_weights(encoder, [batch])
    last = found["trunk.transformer.resblocks.1.mlp.c_proj"]
    first = found["trunk.transformer.resblocks.0.mlp.c_proj"]
    assert (last.rows_read, first.rows_read) == (1, 5)
    assert bool((last.positions > 0).tolist() == [True, False, False, False, False])
    assert float(first.channels.mean()) == pytest.approx(1.0, abs=1e-5)
    assert found.keys() == quant_linears(encoder).keys()
    again = output_weights(encoder, [batch])
    assert all(torch.equal(found[path].positions, again[path].positions) for path in found)


def _distance(model: LoadedModel, encoder: nn.Module, batch: Tensor) -> float:
    exact = F.normalize(model.clip.encode_image(batch), dim=-1)
    return float(1 - (F.normalize(encode_batches(encoder, [batch]), dim=-1) * exact).sum(-1).mean())


@pytest.mark.parametrize("bits", [8, 4])
def test_the_search_brings_the_encoder_nearer_than_plain_observers(
    toy_clip: LoadedModel, toy_pixels: Tensor, bits: int
) -> None:
    batch = to_batch(toy_pixels, toy_clip.preprocess)
    plain = QuantScheme(weight_bits=bits, activation_bits=bits, observer="minmax", weight_observer="mse")
    searched = QuantScheme(weight_bits=bits, activation_bits=bits)
    errors = [_distance(toy_clip, calibrate_encoder(toy_clip, toy_pixels, s).encoder, batch) for s in (plain, searched)]
    assert errors[1] < errors[0]


def test_gains_and_shifts_are_stored_and_restored(toy_clip: LoadedModel, toy_pixels: Tensor, tmp_path: Path) -> None:
    calibrated = calibrate_encoder(toy_clip, toy_pixels, QuantScheme())
    gained = [n for n, linear in quant_linears(calibrated.encoder).items() if linear.input_gain is not None]
    assert gained
    assert all(name.endswith("c_proj") for name in gained)
    shifted = [n for n, linear in quant_linears(calibrated.encoder).items() if linear.input_shift is not None]
    assert shifted == gained
    save_encoder(calibrated, tmp_path / "encoder.safetensors", key="k")
    restored = restore_encoder(tmp_path / "encoder.safetensors", toy_clip, QuantScheme(), key="k")
    assert restored is not None
    batch = to_batch(toy_pixels, toy_clip.preprocess)
    assert torch.equal(calibrated.encoder(batch), restored.encoder(batch))


def test_without_gains_no_operator_is_added(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    encoder = calibrate_encoder(toy_clip, toy_pixels, QuantScheme(activation_gain=False)).encoder
    assert all(linear.input_gain is linear.input_shift is None for linear in quant_linears(encoder).values())
    assert all(
        torch.equal(affine.representable_scale(linear.input_scale), linear.input_scale)
        for linear in quant_linears(encoder).values()
    )
