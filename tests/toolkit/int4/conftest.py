"""A toy whose weights are INT4 in blocks, calibrated and exported once."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor
from toy_exports import Exported, export_once
from toy_models import fold_toy_model

from p4q_edge.models import FoldedClassifier, LoadedModel
from p4q_edge.quant import QuantScheme
from p4q_edge.recipe import QuantizationSection

BLOCKS = QuantScheme(weight_bits=4, activation_bits=16, weight_block=32, weight_rounding="descent")


@pytest.fixture
def fold_toy(toy_clip: LoadedModel, toy_pixels: Tensor) -> Callable[[QuantScheme], FoldedClassifier]:
    """Makes a calibrated toy classifier of a scheme, with the adapter of 8 bits that every recipe has."""

    def fold(scheme: QuantScheme) -> FoldedClassifier:
        return fold_toy_model(toy_clip, toy_pixels, scheme, adapter=QuantizationSection().adapter_scheme())

    return fold


@pytest.fixture
def int4_graphs(
    kept_exports: dict[str, Exported],
    fold_toy: Callable[[QuantScheme], FoldedClassifier],
    images: NDArray[np.uint8],
) -> Exported:
    """The toy, exported; not to be changed."""
    return export_once(kept_exports, "int4", lambda: fold_toy(BLOCKS), images)
