"""Convolutions that stay in float to keep a limit: in the module, in both graphs and in the file."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from p4q_edge.calibration import CalibratedEncoder, calibrate_encoder
from p4q_edge.calibration.keep_in_float import (
    embedding_loss,
    in_float,
    quantized_layers,
    rank_by_sensitivity,
    teacher_of,
)
from p4q_edge.graph.analysis.convolutions import conv_layers
from p4q_edge.graph.export import export_classifier, grid_quantizations
from p4q_edge.models import Batches, FoldedClassifier, LoadedModel
from p4q_edge.quant import Phase, QuantScheme, quant_convs, quant_linears, running_as_cpu_graph, running_in
from p4q_edge.stages.encoder_file import restore_encoder, save_encoder

Tower = Callable[[str], nn.Module]
Wrap = Callable[[nn.Module], LoadedModel]
DIM = 24


def loss_of(model: LoadedModel, encoder: nn.Module, photos: Tensor) -> float:
    batches = Batches(images=photos, spec=model.preprocess, size=8)
    return embedding_loss(encoder, teacher_of(model.clip.visual, batches), batches)


Limited = tuple[LoadedModel, QuantScheme, CalibratedEncoder, float]


@pytest.fixture(scope="session")
def made() -> list[Limited]:
    """Keeps what was calibrated."""
    return []


@pytest.fixture
def limited(tower: Tower, as_model: Wrap, photos: Tensor, made: list[Limited]) -> Limited:
    """A ResNet whose loss is to be a tenth of what it is with everything quantized; not to be changed."""
    if not made:
        model = as_model(tower("resnet"))
        limit = loss_of(model, calibrate_encoder(model, photos, QuantScheme()).encoder, photos) / 10
        scheme = QuantScheme(max_cosine_loss=limit)
        made.append((model, scheme, calibrate_encoder(model, photos, scheme), limit))
    return made[0]


def test_the_limit_holds_with_some_convolutions_in_float(limited: Limited, photos: Tensor) -> None:
    model, _, calibrated, limit = limited
    convs = quant_convs(calibrated.encoder)
    assert loss_of(model, calibrated.encoder, photos) <= limit
    assert set(calibrated.in_float) & convs.keys()
    assert len(calibrated.in_float) < len(convs) + len(quant_linears(calibrated.encoder))


def test_both_graphs_compute_the_module(limited: Limited, photos: Tensor) -> None:
    model, _, calibrated, _ = limited
    text = torch.randn(5, DIM, generator=torch.Generator().manual_seed(0))
    whole = FoldedClassifier(
        calibrated.encoder, None, text, logit_scale=20.0, logit_bias=None, preprocess=model.preprocess
    )
    graphs = export_classifier(whole, photos.numpy())
    half = onnx.load_from_string(graphs.fp16 + graphs.weights)
    prefix = "encoder."
    quantized = {node.path.removeprefix(prefix) for node in conv_layers(half)}
    assert quantized == quant_convs(calibrated.encoder).keys() - set(calibrated.in_float)
    assert graphs.parity.flat()["fp32.cosine_embedding"] > 0.9999
    assert graphs.parity.flat()["placed.cosine_embedding"] > 0.999


def test_they_are_stored_and_restored(limited: Limited, photos: Tensor, tmp_path: Path) -> None:
    model, scheme, calibrated, _ = limited
    save_encoder(calibrated, tmp_path / "encoder.safetensors", key="k")
    restored = restore_encoder(tmp_path / "encoder.safetensors", model, scheme, key="k")
    assert restored is not None
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(restored.encoder(x), calibrated.encoder(x))
    with running_as_cpu_graph(restored.encoder), running_as_cpu_graph(calibrated.encoder):
        assert torch.equal(restored.encoder(x), calibrated.encoder(x))


def test_a_convolution_in_float_has_its_own_bias_and_weight_in_every_phase(limited: Limited) -> None:
    _, _, calibrated, _ = limited
    convs = quant_convs(calibrated.encoder)
    conv = convs[next(path for path in calibrated.in_float if path in convs)]
    x = torch.randn(2, conv.weight.shape[1] * conv.groups, 8, 8)
    exact = conv.convolve(x, conv.weight, conv.bias)
    for phase in (Phase.FLOAT, Phase.QUANTIZED, Phase.WEIGHTS, Phase.TRACED, Phase.PAIRED):
        with running_in(conv, phase):
            torch.testing.assert_close(conv(x), exact)
    assert not conv.calibrated


def test_with_all_of_them_in_float_no_grid_is_left(tower: Tower, as_model: Wrap, photos: Tensor) -> None:
    model = as_model(tower("resnet"))
    encoder = calibrate_encoder(model, photos, QuantScheme()).encoder
    before = loss_of(model, encoder, photos)
    assert grid_quantizations(encoder)
    with in_float([*quantized_layers(encoder).values()]):
        assert grid_quantizations(encoder) == ()
        assert loss_of(model, encoder, photos) < before / 1000
    assert loss_of(model, encoder, photos) == before


def test_the_ranking_has_convolutions_too(tower: Tower, as_model: Wrap, photos: Tensor) -> None:
    model = as_model(tower("resnet"))
    encoder = calibrate_encoder(model, photos, QuantScheme()).encoder
    batches = Batches(images=photos, spec=model.preprocess, size=8)
    ranking = rank_by_sensitivity(encoder, model.clip.visual, batches)
    assert {each.path for each in ranking} == quant_convs(encoder).keys() | quant_linears(encoder).keys()
    assert all(each.macs > 0 for each in ranking)
