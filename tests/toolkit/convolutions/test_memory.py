"""How many images a calibration holds at once: few of many pixels, whatever is to be fitted."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from p4q_edge.calibration import calibrate_encoder, fit
from p4q_edge.calibration.calibrate import CORRECTION_IMAGES, CORRECTION_PIXELS, correction_images
from p4q_edge.models import LoadedModel
from p4q_edge.quant import QuantScheme


@pytest.mark.parametrize(("images", "side", "expected"), [(600, 260, 15), (600, 32, CORRECTION_IMAGES), (9, 4000, 8)])
def test_images_that_correct_biases(images: int, side: int, expected: int) -> None:
    drawn = correction_images(torch.empty(images, 3, side, side, dtype=torch.uint8, device="meta"))
    assert drawn == expected
    assert drawn * side**2 <= max(CORRECTION_PIXELS, 8 * side**2)


def test_a_linear_behind_convolutions_is_fitted_on_few_large_images(
    tower: Callable[[str], nn.Module],
    as_model: Callable[[nn.Module], LoadedModel],
    photos: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tower's last linear has one row an image, by which alone 512 images would run at once."""
    model = as_model(tower("efficientnet"))
    seen: list[int] = []
    real = fit.paired_pass

    def watched(encoder: nn.Module, images: Tensor, visit: Any) -> None:
        seen.append(len(images))
        real(encoder, images, visit)

    monkeypatch.setattr(fit, "paired_pass", watched)
    monkeypatch.setattr(fit, "PAIRED_PIXELS", 4 * 64 * 64)
    calibrate_encoder(model, photos, QuantScheme())
    assert seen == [min(4, len(photos))]
