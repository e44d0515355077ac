"""A toy whose linears are quantized to FP8, calibrated and exported once."""

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor
from toy_exports import Exported, export_once
from toy_models import fold_toy_model

from p4q_edge.models import LoadedModel
from p4q_edge.recipe import QuantizationSection

SECTION = QuantizationSection(number_format="fp8")


@pytest.fixture
def fp8_graphs(
    kept_exports: dict[str, Exported], toy_clip: LoadedModel, toy_pixels: Tensor, images: NDArray[np.uint8]
) -> Exported:
    """The toy with its adapter, exported; not to be changed."""
    adapter = SECTION.adapter_scheme()
    return export_once(
        kept_exports,
        "fp8",
        lambda: fold_toy_model(toy_clip, toy_pixels, SECTION.scheme(), adapter=adapter),
        images[:8],
    )
