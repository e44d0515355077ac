"""Accuracy on demand: the limit holds, with linears that matter in float, here, in the file and in the graph."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from p4q_edge.calibration import calibrate_encoder
from p4q_edge.calibration.keep_in_float import embedding_loss, rank_by_sensitivity
from p4q_edge.graph import linear_quantizations
from p4q_edge.models import Batches, LoadedModel, encode_batches, to_batch
from p4q_edge.quant import Phase, QuantLinear, QuantScheme, quant_linears, running_in
from p4q_edge.runtime.errors import QualityGateError
from p4q_edge.stages.encoder_file import restore_encoder, save_encoder

NARROW = {"weight_bits": 3, "activation_bits": 4}


def _batches(model: LoadedModel, images: Tensor) -> Batches:
    return Batches(images=images, spec=model.preprocess, size=8)


def _loss(model: LoadedModel, encoder: torch.nn.Module, images: Tensor) -> float:
    batches = _batches(model, images)
    teacher = torch.nn.functional.normalize(encode_batches(model.clip.visual, batches).double(), dim=-1)
    return embedding_loss(encoder, teacher, batches)


def test_the_limit_holds_and_only_some_linears_are_in_float(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    plain = calibrate_encoder(toy_clip, toy_pixels, QuantScheme(**NARROW))  # type: ignore[arg-type]
    before = _loss(toy_clip, plain.encoder, toy_pixels)
    limited = calibrate_encoder(toy_clip, toy_pixels, QuantScheme(**NARROW, max_cosine_loss=before / 2))  # type: ignore[arg-type]
    assert _loss(toy_clip, limited.encoder, toy_pixels) <= before / 2
    linears = quant_linears(limited.encoder)
    assert 0 < len(limited.in_float) < len(linears)
    assert set(limited.in_float) <= set(limited.kept_float)
    assert linear_quantizations(limited.encoder).keys() == linears.keys() - set(limited.in_float)
    with running_in(limited.encoder, Phase.FLOAT):
        assert _loss_in_float(toy_clip, limited.encoder, toy_pixels) < 1e-5


def _loss_in_float(model: LoadedModel, encoder: torch.nn.Module, images: Tensor) -> float:
    batch = to_batch(images, model.preprocess)
    outputs = (encoder(batch), model.clip.encode_image(batch))
    return float(1 - torch.nn.functional.cosine_similarity(*outputs).mean())


def test_a_limit_that_holds_anyway_keeps_nothing_in_float(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    assert calibrate_encoder(toy_clip, toy_pixels, QuantScheme(max_cosine_loss=0.5)).in_float == ()


def test_a_limit_below_what_float_gives_is_refused(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    with pytest.raises(QualityGateError, match=r"max_cosine_loss = 1e-15 cannot be kept: .* Set it to"):
        calibrate_encoder(toy_clip, toy_pixels, QuantScheme(max_cosine_loss=1e-15))


def test_linears_in_float_are_stored_and_restored(toy_clip: LoadedModel, toy_pixels: Tensor, tmp_path: Path) -> None:
    scheme = QuantScheme(**NARROW, max_cosine_loss=1e-3)  # type: ignore[arg-type]
    calibrated = calibrate_encoder(toy_clip, toy_pixels, scheme)
    assert calibrated.in_float
    save_encoder(calibrated, tmp_path / "encoder.safetensors", key="k")
    restored = restore_encoder(tmp_path / "encoder.safetensors", toy_clip, scheme, key="k")
    assert restored is not None
    assert restored.in_float == calibrated.in_float
    batch = to_batch(toy_pixels, toy_clip.preprocess)
    assert torch.equal(calibrated.encoder(batch), restored.encoder(batch))


def test_the_ranking_is_by_gain_for_work_and_changes_nothing(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    encoder = calibrate_encoder(toy_clip, toy_pixels, QuantScheme(**NARROW)).encoder  # type: ignore[arg-type]
    batch = to_batch(toy_pixels, toy_clip.preprocess)
    before = encoder(batch)
    ranking = rank_by_sensitivity(encoder, toy_clip.clip.visual, _batches(toy_clip, toy_pixels))
    assert torch.equal(encoder(batch), before)
    assert {each.path for each in ranking} == quant_linears(encoder).keys()
    shares = [each.per_mac for each in ranking]
    assert shares == sorted(shares, reverse=True)
    assert all(each.macs > 0 for each in ranking)


def test_a_linear_in_float_has_its_own_bias_and_neither_gain_nor_shift() -> None:
    torch.manual_seed(0)
    linear, x = QuantLinear(torch.randn(3, 4), torch.randn(3), QuantScheme()), torch.randn(5, 4)
    linear.requires_grad_(False)
    expected = linear(x)
    linear.input_scale = torch.tensor(0.1)
    linear.set_gain(torch.tensor([0.5, 1.0, 2.0, 3.0]))
    linear.set_shift(torch.tensor([0.5, -1.0, 2.0, 0.0]))
    linear.correct_bias(torch.full((3,), 9.0))
    linear.keep_float()
    for phase in (Phase.FLOAT, Phase.QUANTIZED, Phase.TRACED):
        linear.phase = phase
        torch.testing.assert_close(linear(x), expected, rtol=1e-5, atol=1e-6)
    assert linear.input_gain is linear.input_shift is None
    assert not linear.calibrated


@pytest.mark.parametrize("wrong", [0.0, -0.1, 2.0])
def test_limits_out_of_range_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="max_cosine_loss must be in"):
        QuantScheme(max_cosine_loss=wrong)


def test_a_pattern_that_names_nothing_is_said(
    toy_clip: LoadedModel, toy_pixels: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    calibrate_encoder(toy_clip, toy_pixels, QuantScheme(keep_float=("*.mlp.*", "*.mpl.*"), observer="minmax"))
    assert "the image tower has no module '*.mpl.*'" in caplog.text
    assert "'*.mlp.*'" not in caplog.text
