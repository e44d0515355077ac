"""Swapped modules compute what the originals did; folds change nothing but the ranges."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.calibration.calibrate import calibrate_encoder, observe
from p4q_edge.models.folded_classifier import FoldedClassifier, run_folded
from p4q_edge.models.image_tower import ImageEncoder, find_cross_attention
from p4q_edge.models.load import LoadedModel, to_batch
from p4q_edge.quant import affine
from p4q_edge.quant.attention import Attention, CrossAttention
from p4q_edge.quant.channel_folds import ChannelFold, fold_channels, norm_readers
from p4q_edge.quant.linear import Phase, QuantLinear, quant_linears, running_in
from p4q_edge.quant.observers import ChannelRange, MagnitudeHistogram, weight_scale
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.quant.swap import quantize_modules


def _encoder(toy: LoadedModel) -> ImageEncoder:
    return ImageEncoder(toy.clip.visual)


def test_swapped_encoder_equals_open_clip(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    batch = to_batch(toy_pixels, toy_clip.preprocess)
    encoder = _encoder(toy_clip)
    kept = quantize_modules(encoder, QuantScheme(), cross_attention=find_cross_attention(encoder, batch[:2]))
    assert kept == []
    assert len(quant_linears(encoder)) == 2 * 4 + 1
    torch.testing.assert_close(encoder(batch), toy_clip.clip.encode_image(batch), atol=1e-5, rtol=1e-5)


def test_attention_equals_torch_with_a_mask() -> None:
    torch.manual_seed(0)
    reference = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    x = torch.randn(3, 5, 32)
    mask = torch.full((5, 5), float("-inf")).triu(1)
    expected = reference(x, x, x, attn_mask=mask, need_weights=False)[0]
    actual, _ = Attention.from_multihead(reference, QuantScheme())(x, x, x, attn_mask=mask, need_weights=False)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)


def test_attention_refuses_foreign_keys() -> None:
    attention = Attention.from_multihead(nn.MultiheadAttention(32, 4, batch_first=True), QuantScheme())
    x = torch.randn(1, 2, 32)
    with pytest.raises(ValueError, match="self-attention only"):
        attention(x, x.clone(), x)


class _Pooler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, 32))
        self.own = nn.MultiheadAttention(32, 4, batch_first=True)
        self.pool = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.own(x, x, x, need_weights=False)[0]
        pooled: Tensor = self.pool(self.query.expand(len(x), -1, -1), x, x, need_weights=False)[0]
        return pooled


def test_cross_attention_is_found_by_watching_and_its_linears_are_swapped() -> None:
    torch.manual_seed(0)
    model, x = _Pooler().eval(), torch.randn(2, 3, 32)
    cross = find_cross_attention(model, x)
    assert cross == {"pool"}
    expected = model(x)
    scheme = QuantScheme(weight_bits=4, attention_bits=8)
    assert quantize_modules(model, scheme, cross_attention=cross) == []
    torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=1e-5)
    linears = quant_linears(model)
    assert {f"pool.{name}" for name in ("query", "key", "value", "out_proj")} <= set(linears)
    assert {linear.scheme.weight_bits for linear in linears.values()} == {8}


@pytest.mark.parametrize("special", [{"add_zero_attn": True}, {"add_bias_kv": True}, {"batch_first": False}])
def test_special_attentions_of_torch_stay_as_they_are(special: dict[str, bool]) -> None:
    model = nn.Sequential(nn.MultiheadAttention(32, 4, **({"batch_first": True} | special)))
    assert quantize_modules(model, QuantScheme(), cross_attention=frozenset()) == ["0"]


def test_cross_attention_with_widths_of_its_own() -> None:
    torch.manual_seed(0)
    reference = nn.MultiheadAttention(32, 4, kdim=24, vdim=16, bias=False, batch_first=True).eval()
    query, key, value = torch.randn(2, 3, 32), torch.randn(2, 5, 24), torch.randn(2, 5, 16)
    ours = CrossAttention.from_multihead(reference)
    expected = reference(query, key, value, need_weights=False)[0]
    torch.testing.assert_close(ours(query, key, value)[0], expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="no attention weights"):
        ours(query, key, value, need_weights=True)


def test_keep_float_patterns_name_module_paths(toy_clip: LoadedModel) -> None:
    encoder = _encoder(toy_clip)
    scheme = QuantScheme(keep_float=("projection", "*.0.mlp.*"))
    kept = quantize_modules(encoder, scheme, cross_attention=frozenset())
    assert kept == [
        "trunk.transformer.resblocks.0.mlp.c_fc",
        "trunk.transformer.resblocks.0.mlp.c_proj",
        "projection",
    ]


def test_folds_change_nothing_in_float_and_even_out_the_ranges(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    batch = to_batch(toy_pixels, toy_clip.preprocess)
    encoder = _encoder(toy_clip)
    quantize_modules(encoder, QuantScheme(), cross_attention=frozenset())
    before = encoder(batch)
    observe(encoder, lambda: encoder(batch), Phase.RANGING)
    folded = fold_channels(encoder, QuantScheme(fold_strength=1.0), batch)
    assert len(folded) == 2 * 2 + 1 + 2  # two norms a block, the last norm, the values of each block
    torch.testing.assert_close(encoder(batch), before, atol=2e-5, rtol=1e-4)
    in_proj = encoder.trunk.transformer.resblocks[0].attn.in_proj
    fresh = ChannelRange()
    with torch.no_grad():
        block = encoder.trunk.transformer.resblocks[0]
        fresh.observe(block.ln_1(encoder.trunk._embeds(batch)))
    low, high = fresh.require()
    torch.testing.assert_close(high, -low, atol=1e-4, rtol=1e-3)  # centred
    assert float(high.max() / high.min()) < 1.01  # one range for all channels
    recorded_low, recorded_high = in_proj.channel_range.require()
    torch.testing.assert_close(recorded_high, high, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(recorded_low, low, atol=1e-4, rtol=1e-3)


def test_folded_per_tensor_equals_the_per_channel_reference() -> None:
    """The fold's integers are those of per-channel asymmetric quantization with a common step after division by r."""
    torch.manual_seed(0)
    x = torch.randn(500, 16) * torch.logspace(-2, 1, 16) + torch.linspace(-5, 5, 16)
    linear = QuantLinear(torch.randn(8, 16), torch.randn(8), QuantScheme())
    expected_float = linear(x)
    observed = ChannelRange()
    observed.observe(x)
    fold = ChannelFold.from_range(observed, 1.0)
    linear.channel_range = observed
    folded_x = (x - fold.centre) / fold.ratio
    fold.into_consumer(linear)
    torch.testing.assert_close(linear(folded_x), expected_float, atol=1e-4, rtol=1e-4)
    scale = affine.scale_for(folded_x.abs().amax(), 127)
    per_tensor = affine.dequantize(affine.quantize(folded_x, scale, -128, 127), scale)
    channel_scale = scale * fold.ratio
    per_channel = affine.quantize(x - fold.centre, channel_scale, -128, 127) * channel_scale + fold.centre
    torch.testing.assert_close(per_tensor * fold.ratio + fold.centre, per_channel, atol=1e-4, rtol=1e-4)


class _TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 8)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.linear(y) + self.relu(y)  # type: ignore[no-any-return]


def test_a_norm_with_another_reader_is_not_folded() -> None:
    model = _TwoReaders()
    quantize_modules(model, QuantScheme(), cross_attention=frozenset())
    assert norm_readers(model, torch.randn(2, 8)) == {}


class _ResidualReader(_TwoReaders):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.linear(y) + y  # type: ignore[no-any-return]


def test_a_missed_reader_is_found_by_the_check_afterwards() -> None:
    torch.manual_seed(0)
    model, x = _ResidualReader(), torch.randn(16, 8)
    quantize_modules(model, QuantScheme(), cross_attention=frozenset())
    observe(model, lambda: model(x * torch.logspace(-1, 1, 8)), Phase.RANGING)
    with pytest.raises(RuntimeError, match="fold_norm = false"):
        fold_channels(model, QuantScheme(), x)


def test_logits_before_quantization_are_those_of_the_unfolded_model(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    text = F.normalize(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    encoder = calibrate_encoder(toy_clip, toy_pixels, QuantScheme(fold_strength=1.0)).encoder
    classifier = FoldedClassifier(
        encoder, None, text, logit_scale=toy_clip.logit_scale, logit_bias=None, preprocess=toy_clip.preprocess
    )
    logits, _, _ = run_folded(classifier, toy_pixels, phase=Phase.FLOAT)
    exact = F.normalize(toy_clip.clip.encode_image(to_batch(toy_pixels, toy_clip.preprocess)), dim=-1)
    # Convolution weights are rounded to FP16 in calibration; nothing else differs.
    torch.testing.assert_close(logits, toy_clip.logit_scale * exact @ text.T, atol=2e-2, rtol=1e-3)
    quantized, _, _ = run_folded(classifier, toy_pixels, phase=Phase.QUANTIZED)
    assert not torch.equal(logits, quantized)


def test_folds_lower_the_error_of_quantization(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    batch = to_batch(toy_pixels, toy_clip.preprocess)
    reference = toy_clip.clip.encode_image(batch)
    errors = []
    for fold in (True, False):
        scheme = QuantScheme(fold_norm=fold, fold_value=fold)
        encoder = calibrate_encoder(toy_clip, toy_pixels, scheme).encoder
        errors.append(float((encoder(batch) - reference).norm()))
    assert errors[0] < 0.8 * errors[1]


def test_bias_correction_removes_the_mean_error(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    batch = to_batch(toy_pixels, toy_clip.preprocess)
    shifts = []
    for correct in (False, True):
        scheme = QuantScheme(weight_bits=4, bias_correction=correct)
        encoder = calibrate_encoder(toy_clip, toy_pixels, scheme).encoder
        with running_in(encoder, Phase.FLOAT):
            exact = _encoder(toy_clip)(batch)
        shifts.append(float((encoder(batch) - exact).mean(0).norm()))
    assert shifts[1] < shifts[0]


def test_integer_weights_are_the_quantized_weights() -> None:
    linear = QuantLinear(torch.randn(5, 7), None, QuantScheme(weight_bits=4))
    linear.scale_weight()
    q = linear.integer_weight()
    assert q.dtype is torch.int8
    assert int(q.abs().max()) <= 7
    torch.testing.assert_close(q.float() * linear.weight_scale[:, None], linear.quantized_weight())


def test_quantized_phase_before_calibration_says_so() -> None:
    linear = QuantLinear(torch.eye(2), None, QuantScheme())
    linear.phase = Phase.QUANTIZED
    with pytest.raises(RuntimeError, match="calibrate the model"):
        linear(torch.ones(1, 2))


def test_running_in_restores_the_phase_after_an_error() -> None:
    linear = QuantLinear(torch.eye(2), None, QuantScheme())
    with pytest.raises(ZeroDivisionError), running_in(linear, Phase.RANGING):
        raise ZeroDivisionError
    assert linear.phase is Phase.FLOAT


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
def test_weight_scales_cover_the_channels_each_by_its_own(observer: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 200) * torch.logspace(-2, 1, 6)[:, None]
    scale = weight_scale(weight, bits=8, observer=observer)
    assert bool((scale[1:] > scale[:-1]).all())
    assert bool((scale * 127 > weight.abs().quantile(0.95, dim=1) * 0.5).all())


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_mse_observer_is_never_worse_than_the_maximum(bits: int) -> None:
    x = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0)) ** 3  # long tails
    _, high = affine.activation_range(bits)
    histogram = MagnitudeHistogram(x.abs().amax())
    histogram.observe(x)

    def error(observer: str) -> float:
        scale = affine.scale_for(histogram.clip(observer, quant_max=high, percentile=99.9), high)
        restored = affine.dequantize(affine.quantize(x, scale, *affine.activation_range(bits)), scale)
        return float(F.mse_loss(restored, x))

    assert error("mse") <= error("minmax") * 1.01


def test_ranges_without_data_say_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="run the calibration images"):
        ChannelRange().require()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"percentile": 10.0}, "percentile must be in"),
        ({"headroom": 0.5}, "headroom must be in"),
        ({"fold_strength": 2.0}, "fold_strength must be in"),
        ({"weight_bits": 1}, "weight_bits must be between 2 and 8"),
        ({"attention_bits": 9}, "attention_bits must be between 2 and 8"),
    ],
)
def test_schemes_check_themselves(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantScheme(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bits", "execution", "label"),
    [
        ((8, 8, None), "executed", "W8A8"),
        ((8, 8, 8), "executed", "W8A8"),
        ((4, 8, None), "carried", "W4A8"),
        ((6, 6, 6), "carried", "W6A6"),
        ((4, 4, 8), "carried", "W4A4 (attention W8A8)"),
        ((8, 8, 4), "carried", "W8A8 (attention W4A4)"),
    ],
)
def test_narrow_grids_are_carried(bits: tuple[int, int, int | None], execution: str, label: str) -> None:
    scheme = QuantScheme(weight_bits=bits[0], activation_bits=bits[1], attention_bits=bits[2])
    assert (scheme.execution, scheme.label) == (execution, label)
