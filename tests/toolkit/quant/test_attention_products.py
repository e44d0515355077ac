"""Quantized attention products: which attentions have them, what they compute, and that a file keeps them."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from timm.layers.attention import Attention as PlainTimmAttention
from torch import Tensor, nn

from p4q_edge.calibration.calibrate import calibrate_encoder, observe
from p4q_edge.calibration.text import calibrate_text
from p4q_edge.models.image_tower import ImageEncoder, find_attention_owners, tokens_read
from p4q_edge.models.load import LoadedModel, to_batch
from p4q_edge.models.prompts import PromptLearner, initial_context
from p4q_edge.models.text_tower import TextTower
from p4q_edge.quant import affine
from p4q_edge.quant import attention_products as products
from p4q_edge.quant.attention import Attention, TimmAttention, attentions, quant_products
from p4q_edge.quant.attention_products import AttentionProducts, fuses_in_int8, softmax_scale
from p4q_edge.quant.least_squares import Seen, paired_pass
from p4q_edge.quant.linear import Phase, QuantLinear, quant_linears, running_in
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.quant.swap import quantize_modules
from p4q_edge.runtime.errors import InputError
from p4q_edge.stages.encoder_file import restore_encoder, save_encoder

SCHEME = QuantScheme(quantize_attention=True)
FIRST, LAST = (f"trunk.transformer.resblocks.{block}.attn" for block in (0, 1))


def _calibrated_attention(scheme: QuantScheme, *, prefix: int = 0) -> tuple[Attention, Tensor]:
    torch.manual_seed(0)
    attention = Attention.from_multihead(nn.MultiheadAttention(32, 2, batch_first=True), scheme)
    attention.products = AttentionProducts(scheme)
    attention.products.float_prefix = prefix
    x = torch.randn(6, 9, 32)
    for phase in (Phase.RANGING, Phase.CALIBRATING):
        observe(attention, lambda: attention(x), phase)
    for linear in quant_linears(attention).values():
        linear.scale_weight()
        linear.scale_input()
    attention.products.fix_scales()
    return attention, x


def test_all_four_operands_lie_on_their_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is that of a product of integers times its scales, with the softmax on 1/127."""
    attention, x = _calibrated_attention(SCHEME)
    grids = attention.products
    assert grids is not None
    with running_in(attention, Phase.QUANTIZED):
        actual, _ = attention(x)
        q, k, v = attention.project(x)
        low, high = affine.activation_range(8)
        integers = [affine.quantize(t, o.scale, low, high) for t, o in zip((q, k, v), grids.operands, strict=True)]
        scores = (integers[0] @ integers[1].transpose(-2, -1)) * (grids.query.scale * grids.key.scale)
        step = torch.tensor(softmax_scale(8))
        weights = affine.quantize(scores.softmax(-1), step, low, high)
        mixed = (weights @ integers[2]) * (step * grids.value.scale)
        expected = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(actual, expected, atol=2e-3, rtol=1e-3)
    assert softmax_scale(8) == pytest.approx(1 / 127, rel=1e-3)
    assert torch.tensor(softmax_scale(8)).half().float() == softmax_scale(8)


def test_observing_changes_nothing() -> None:
    attention, x = _calibrated_attention(SCHEME)
    plain, _ = attention(x)
    for phase in (Phase.RANGING, Phase.CALIBRATING):
        with running_in(attention, phase):
            torch.testing.assert_close(attention(x)[0], plain, atol=0, rtol=0)


def test_leading_tokens_of_a_text_keep_full_precision() -> None:
    attention, x = _calibrated_attention(SCHEME, prefix=1)
    assert attention.products is not None
    q, k, v = attention.project(x * 50)
    for exact, grid in zip((q, k, v), attention.products.on_grid(q, k, v), strict=True):
        torch.testing.assert_close(grid[..., :1, :], exact[..., :1, :], atol=0, rtol=0)
        assert not torch.allclose(grid[..., 1:, :], exact[..., 1:, :])


def test_gradients_pass_through_all_four_grids() -> None:
    attention, x = _calibrated_attention(SCHEME)
    with running_in(attention, Phase.QUANTIZED):
        for index in range(3):
            parts = [t.detach() for t in attention.project(x)]
            parts[index].requires_grad_()
            attention.attend(*parts).square().sum().backward()
            gradient = parts[index].grad
            assert gradient is not None
            assert float((gradient != 0).float().mean()) > 0.9


def test_products_without_scales_say_so() -> None:
    with pytest.raises(RuntimeError, match="calibrate the model before"):
        AttentionProducts(SCHEME).on_grid(*torch.zeros(3, 1, 1, 2, 16))


def test_only_attentions_of_all_tokens_are_quantized(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    calibrated = calibrate_encoder(toy_clip, toy_pixels, SCHEME)
    assert calibrated.products == (FIRST,)
    assert tokens_read(calibrated.encoder, to_batch(toy_pixels[:2], toy_clip.preprocess)) == {
        FIRST: (5, 5),
        LAST: (5, 1),
    }
    assert calibrate_encoder(toy_clip, toy_pixels, QuantScheme()).products == ()


@pytest.mark.parametrize(("limit", "value"), [("MAX_TOKENS", 4), ("HEAD_SIZES", frozenset({32}))])
def test_a_model_without_attentions_that_fuse_is_refused(
    toy_clip: LoadedModel, toy_pixels: Tensor, monkeypatch: pytest.MonkeyPatch, limit: str, value: object
) -> None:
    """An option that does nothing is refused."""
    monkeypatch.setattr(products, limit, value)
    with pytest.raises(InputError, match=r"no effect on this model: .* set quantization\.quantize_attention = false"):
        calibrate_encoder(toy_clip, toy_pixels, SCHEME)


@pytest.mark.parametrize(
    ("head_size", "tokens", "fuses"), [(64, 512, True), (64, 513, False), (32, 50, True), (80, 50, False)]
)
def test_sizes_that_fuse(head_size: int, tokens: int, fuses: bool) -> None:
    assert fuses_in_int8(head_size=head_size, tokens=tokens) is fuses


def test_products_cost_little(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    batch = to_batch(toy_pixels, toy_clip.preprocess)
    plain = calibrate_encoder(toy_clip, toy_pixels, QuantScheme()).encoder(batch)
    quantized = calibrate_encoder(toy_clip, toy_pixels, SCHEME).encoder(batch)
    assert not torch.equal(plain, quantized)
    assert float(torch.cosine_similarity(plain, quantized, dim=-1).min()) > 0.998


def test_the_range_of_the_values_follows_the_fold(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    encoder = calibrate_encoder(toy_clip, toy_pixels, SCHEME).encoder
    value = quant_products(encoder)[FIRST].value
    fresh = AttentionProducts(SCHEME)
    with torch.no_grad(), running_in(encoder, Phase.FLOAT):
        attention = attentions(encoder)[FIRST]
        x = encoder.trunk.transformer.resblocks[0].ln_1(
            encoder.trunk._embeds(to_batch(toy_pixels, toy_clip.preprocess))
        )
        fresh.observe_ranges(*attention.project(x))
    for found, expected in zip(value.channel_range.require(), fresh.value.channel_range.require(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_a_file_keeps_scales_bits_and_products(toy_clip: LoadedModel, toy_pixels: Tensor, tmp_path: Path) -> None:
    scheme = QuantScheme(weight_bits=4, activation_bits=4, attention_bits=8, quantize_attention=True)
    calibrated = calibrate_encoder(toy_clip, toy_pixels, scheme)
    save_encoder(calibrated, tmp_path / "calibrated.safetensors", key="k")
    restored = restore_encoder(tmp_path / "calibrated.safetensors", toy_clip, scheme, key="k")
    assert restored is not None
    assert (restored.products, restored.attention_owners) == (calibrated.products, calibrated.attention_owners)
    batch = to_batch(toy_pixels, toy_clip.preprocess)
    torch.testing.assert_close(restored.encoder(batch), calibrated.encoder(batch), atol=0, rtol=0)
    assert _bits(restored.encoder) == _bits(calibrated.encoder)


def _bits(model: nn.Module) -> dict[str, tuple[int, int]]:
    return {name: (lin.scheme.weight_bits, lin.scheme.activation_bits) for name, lin in quant_linears(model).items()}


def test_attentions_have_bits_of_their_own(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    scheme = QuantScheme(weight_bits=4, activation_bits=5, attention_bits=7, quantize_attention=True)
    encoder = calibrate_encoder(toy_clip, toy_pixels, scheme).encoder
    for path, bits in _bits(encoder).items():
        assert bits == ((7, 7) if ".attn." in path else (4, 5)), path
    assert quant_products(encoder)[FIRST].bits == 7
    tower = TextTower(toy_clip.clip, scheme)
    assert {bits for path, bits in _bits(tower).items() if ".attn." in path} == {(7, 7)}
    assert {bits for path, bits in _bits(tower).items() if ".attn." not in path} == {(4, 5)}


class _OwnAttention(nn.Module):
    """An attention of a class that nobody knows, with an MLP inside."""

    def __init__(self) -> None:
        super().__init__()
        self.to_all = nn.Linear(16, 48)
        self.back = nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.Linear(16, 16), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_all(x)[:, None].chunk(3, dim=-1)
        mixed: Tensor = self.mlp(self.back(nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]))
        return mixed


def test_linears_of_any_attention_are_found_by_watching() -> None:
    model = nn.Sequential(nn.Linear(16, 16), _OwnAttention())
    owners = find_attention_owners(model, torch.randn(2, 3, 16))
    assert owners == {"1"}
    scheme = QuantScheme(weight_bits=4, activation_bits=4, attention_bits=8)
    quantize_modules(model, scheme, cross_attention=frozenset(), attention_owners=owners)
    assert _bits(model) == {"0": (4, 4), "1.to_all": (8, 8), "1.back": (8, 8), "1.mlp.0": (4, 4)}


def test_timms_attention_is_swapped_and_computes_the_same() -> None:
    torch.manual_seed(0)
    plain = PlainTimmAttention(32, num_heads=2, qkv_bias=True).eval()
    model, x = nn.Sequential(plain), torch.randn(3, 7, 32)
    expected = model(x)
    assert quantize_modules(model, QuantScheme(), cross_attention=frozenset()) == []
    assert isinstance(model[0], TimmAttention)
    torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("special", [{"qk_norm": True, "norm_layer": nn.LayerNorm}, {"gated": True}])
def test_special_attentions_of_timm_keep_their_own_forward(special: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(PlainTimmAttention(32, num_heads=2, **special).eval()), torch.randn(3, 7, 32)
    expected = model(x)
    quantize_modules(model, QuantScheme(), cross_attention=frozenset())
    assert attentions(model) == {}
    assert {"0.qkv", "0.proj"} <= set(quant_linears(model))
    torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=1e-5)


def test_an_encoder_of_timm_quantizes_its_products() -> None:
    torch.manual_seed(0)
    clip = open_clip.CLIP(
        embed_dim=32,
        vision_cfg={"timm_model_name": "vit_tiny_patch16_224", "image_size": 224, "timm_pool": "avg", "timm_proj": ""},
        text_cfg={"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1},
    )
    encoder = ImageEncoder(clip.eval().visual)
    x = torch.randn(1, 3, 224, 224)
    expected = encoder(x)
    quantize_modules(encoder, SCHEME, cross_attention=frozenset())
    torch.testing.assert_close(encoder(x), expected, atol=1e-4, rtol=1e-3)
    used = tokens_read(encoder, x)
    assert len(used) == 12
    assert set(used.values()) == {(197, 197), (197, 196)}  # the average leaves the class token of the last block out


def test_the_quantized_text_tower_quantizes_its_products_and_learns(toy_clip: LoadedModel) -> None:
    tower = TextTower(toy_clip.clip, SCHEME)
    context = initial_context(
        tower, toy_clip.tokenizer, words="a photo of a", num_tokens=0, generator=torch.Generator().manual_seed(0)
    )
    prompts = PromptLearner(tower, toy_clip.tokenizer, ("cat", "dog"), context=context)
    calibrate_text(tower, prompts)
    grids = quant_products(tower)
    assert len(grids) == 2
    assert all(g.calibrated and g.float_prefix == 1 for g in grids.values())
    quantized = prompts()
    for attention in attentions(tower).values():
        attention.phase = Phase.FLOAT
    assert not torch.allclose(quantized, prompts())  # the linears alone give something else
    quantized.square().sum(0)[0].backward()
    assert prompts.context.grad is not None
    assert float(prompts.context.grad.abs().max()) > 0


def test_the_paired_pass_runs_the_products_in_float_and_on_their_grids() -> None:
    attention, x = _calibrated_attention(SCHEME)
    visited: dict[QuantLinear, Seen] = {}
    paired_pass(attention, x, lambda linear, seen: visited.update({linear: seen}))
    with running_in(attention, Phase.FLOAT):
        exact = attention(x)[0]
    read: list[Tensor] = []
    handle = attention.out_proj.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with running_in(attention, Phase.QUANTIZED):
        attention(x)
    handle.remove()
    seen = visited[attention.out_proj]
    torch.testing.assert_close(seen.actual, read[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(seen.target, exact, rtol=1e-4, atol=1e-6)
