"""A tower of convolutions alone, without any linear to fit: EfficientNet with its pooled features as embedding."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from p4q_edge.calibration import calibrate_encoder
from p4q_edge.models import LoadedModel
from p4q_edge.models.batches import encode_batches
from p4q_edge.models.load import to_batch
from p4q_edge.quant import QuantScheme
from p4q_edge.quant.linear import quant_linears


@pytest.mark.parametrize(
    "scheme",
    [
        QuantScheme(),
        QuantScheme(weight_rounding="descent", affine_correction=True),
        QuantScheme(scale_epochs=1),
        QuantScheme(max_cosine_loss=0.5),
    ],
    ids=["default", "rounding", "scales", "limit"],
)
def test_a_tower_without_linears_is_calibrated(
    scheme: QuantScheme, as_model: Callable[[nn.Module], LoadedModel], photos: Tensor
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = as_model(timm.create_model("test_efficientnet", num_classes=0).eval().requires_grad_(False))
    calibrated = calibrate_encoder(model, photos, scheme)
    assert quant_linears(calibrated.encoder) == {}
    assert calibrated.convolutions
    batch = to_batch(photos, model.preprocess)
    exact, found = model.clip.visual(batch), encode_batches(calibrated.encoder, [batch])
    assert float(torch.cosine_similarity(exact, found).min()) > 0.99
