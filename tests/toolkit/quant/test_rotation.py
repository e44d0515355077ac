"""The rotated residual stream: exact, and only where nothing but linears and LayerNorms touches it."""

from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from open_clip.transformer import LayerScale
from torch import Tensor, nn

from p4q_edge.calibration import calibrate_encoder, deployed_encoder
from p4q_edge.models import ImageEncoder, LoadedModel, to_batch
from p4q_edge.quant import QuantScheme, rotate_streams, rotation, trace_flow
from p4q_edge.quant.residual_stream import find_streams
from p4q_edge.quant.rotation import hartley, mean_keeping_rotation
from p4q_edge.stages.encoder_file import restore_encoder, save_encoder

SIZES = st.integers(min_value=2, max_value=200)
CHANNEL = 5


@given(size=SIZES)
def test_the_hartley_matrix_is_symmetric_and_its_own_inverse(size: int) -> None:
    matrix = hartley(size)
    torch.testing.assert_close(matrix, matrix.T, atol=1e-12, rtol=0)
    torch.testing.assert_close(matrix @ matrix, torch.eye(size, dtype=torch.float64), atol=1e-9, rtol=0)
    assert float(matrix.abs().max()) <= (2 / size) ** 0.5 + 1e-12


@given(size=SIZES, seed=st.integers(min_value=0, max_value=99))
def test_the_rotation_keeps_lengths_and_the_mean(size: int, seed: int) -> None:
    matrix = mean_keeping_rotation(size, seed=seed)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-9, rtol=0)
    ones = torch.ones(size, dtype=torch.float64)
    torch.testing.assert_close(matrix @ ones, ones, atol=1e-9, rtol=0)
    torch.testing.assert_close(matrix, mean_keeping_rotation(size, seed=seed), atol=0, rtol=0)


@settings(deadline=None)
@given(size=st.integers(min_value=3, max_value=100), seed=st.integers(min_value=0, max_value=99))
def test_a_layer_norm_goes_through_the_rotation(size: int, seed: int) -> None:
    matrix = mean_keeping_rotation(size, seed=seed)
    x = torch.randn(4, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(F.layer_norm(x @ matrix.T, (size,)), F.layer_norm(x, (size,)) @ matrix.T)


def test_a_rotation_spreads_one_channel_over_all() -> None:
    assert float(mean_keeping_rotation(384, seed=0).abs().max()) < 0.3


@pytest.fixture
def pre_norm(toy_clip: LoadedModel) -> LoadedModel:
    """The toy without a LayerNorm in front, with layer scales and a channel of massive activations."""
    visual = toy_clip.clip.visual
    visual.ln_pre = nn.Identity()
    for block, scale in zip(visual.transformer.resblocks, (1e-7, 0.5), strict=True):  # the first folds nowhere else
        block.ls_1, block.ls_2 = LayerScale(64, scale), LayerScale(64, 0.5)
    visual.positional_embedding.data[:, CHANNEL] += 15.0
    toy_clip.clip.requires_grad_(False)
    return toy_clip


def _batch(model: LoadedModel, pixels: Tensor) -> Tensor:
    return to_batch(pixels[:4], model.preprocess)


def _peak(encoder: ImageEncoder, batch: Tensor) -> float:
    """Largest of the last LayerNorm's outputs before the MLP, in units of their root mean square."""
    seen = list[Tensor]()
    norm = encoder.trunk.transformer.resblocks[1].ln_2
    handle = norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    encoder(batch)
    handle.remove()
    return float(seen[0].abs().amax() / seen[0].square().mean().sqrt())


def test_the_output_stays_and_the_outlier_goes(pre_norm: LoadedModel, toy_pixels: Tensor) -> None:
    encoder, batch = ImageEncoder(pre_norm.clip.visual), _batch(pre_norm, toy_pixels)
    expected, peak = encoder(batch), _peak(encoder, batch)
    assert rotate_streams(encoder, batch) == 1
    torch.testing.assert_close(encoder(batch), expected, atol=1e-4, rtol=1e-4)
    assert _peak(encoder, batch) < 0.75 * peak
    assert not any(isinstance(module, LayerScale) for module in encoder.modules())


def test_all_writers_and_readers_are_found(pre_norm: LoadedModel, toy_pixels: Tensor) -> None:
    encoder = ImageEncoder(pre_norm.clip.visual)
    (stream,) = find_streams(trace_flow(encoder, _batch(pre_norm, toy_pixels)))
    assert stream.width == 64
    assert len(stream.writers) == 1 + 2 * 2
    assert len(stream.scales) == 2 * 2
    assert stream.constants == ["trunk.positional_embedding", "trunk.class_embedding"]
    norms = [reading.norm.rpartition(".")[2] for reading in stream.readings]
    assert norms == ["ln_1", "ln_2", "ln_1", "ln_2", "ln_post"]
    assert stream.readings[-1].linears[0].weight == "projection.weight"


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_tower_of_timm_is_rotated(pool: str) -> None:
    tower = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, num_classes=8, global_pool=pool, init_values=0.1
    )
    tower.eval().requires_grad_(False)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = tower(x)
    assert rotate_streams(tower, x) == 1
    torch.testing.assert_close(tower(x), expected, atol=1e-4, rtol=1e-4)


def _with_norm_in_front(model: LoadedModel) -> None:
    model.clip.visual.ln_pre = nn.LayerNorm(64)


def _without_projection(model: LoadedModel) -> None:
    model.clip.visual.proj = None


def _with_a_lost_factor(model: LoadedModel) -> None:
    model.clip.visual.ln_post.weight.data[3] = 0.0


class _Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def _with_another_reader(model: LoadedModel) -> None:
    model.clip.visual.transformer.resblocks[1].ls_1 = _Square()


@pytest.mark.parametrize(
    "change", [_with_norm_in_front, _without_projection, _with_a_lost_factor, _with_another_reader]
)
def test_what_cannot_be_rotated_stays(
    pre_norm: LoadedModel, toy_pixels: Tensor, change: Callable[[LoadedModel], None]
) -> None:
    change(pre_norm)
    encoder, batch = ImageEncoder(pre_norm.clip.visual), _batch(pre_norm, toy_pixels)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    assert rotate_streams(encoder, batch) == 0
    after = encoder.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_rotation_that_was_asked_for_and_does_nothing_is_told_of(
    pre_norm: LoadedModel, toy_pixels: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    batch = _batch(pre_norm, toy_pixels)
    deployed_encoder(pre_norm, batch, QuantScheme(rotation=True))
    assert "has no effect" not in caplog.text
    _with_norm_in_front(pre_norm)
    deployed_encoder(pre_norm, batch, QuantScheme(weight_bits=4))  # the default, which no one asked for
    assert "has no effect" not in caplog.text
    deployed_encoder(pre_norm, batch, QuantScheme(rotation=True))
    assert "quantization.rotation = true has no effect: no residual stream of this image tower" in caplog.text


def test_a_rotation_that_moves_the_mean_is_refused(
    pre_norm: LoadedModel, toy_pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "mean_keeping_rotation", lambda size, seed: hartley(size))
    encoder = ImageEncoder(pre_norm.clip.visual)
    with pytest.raises(RuntimeError, match=r"rotating 1 residual stream changed .* set rotation = false"):
        rotate_streams(encoder, _batch(pre_norm, toy_pixels))


def test_a_rotated_encoder_is_stored_and_restored(pre_norm: LoadedModel, toy_pixels: Tensor, tmp_path: Path) -> None:
    scheme = QuantScheme(rotation=True)
    calibrated = calibrate_encoder(pre_norm, toy_pixels, scheme)
    save_encoder(calibrated, tmp_path / "encoder.safetensors", key="k")
    restored = restore_encoder(tmp_path / "encoder.safetensors", pre_norm, scheme, key="k")
    assert restored is not None
    batch = to_batch(toy_pixels, pre_norm.preprocess)
    assert torch.equal(calibrated.encoder(batch), restored.encoder(batch))


def test_only_narrow_weights_are_rotated_unless_asked() -> None:
    asked = [(bits, turned) for bits in (8, 6, 4) for turned in (None, False, True)]
    rotates = [QuantScheme(weight_bits=bits, rotation=turned).rotates for bits, turned in asked]
    assert rotates == [False, False, True, False, False, True, True, False, True]
