"""A toy whose weights are INT4 in blocks, calibrated and exported once."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor
from toy_models import fold_toy_model

from p4q_edge.graph import ExportedGraphs, export_classifier
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
def images(toy_pixels: Tensor) -> NDArray[np.uint8]:
    """uint8 (24, 3, 16, 16)."""
    array: NDArray[np.uint8] = toy_pixels.numpy()
    return array


@pytest.fixture(scope="session")
def exported_once() -> list[tuple[ExportedGraphs, FoldedClassifier]]:
    """Keeps the one export that the tests read."""
    return []


@pytest.fixture
def int4_graphs(
    exported_once: list[tuple[ExportedGraphs, FoldedClassifier]],
    fold_toy: Callable[[QuantScheme], FoldedClassifier],
    images: NDArray[np.uint8],
) -> tuple[ExportedGraphs, FoldedClassifier]:
    """The toy, exported; not to be changed."""
    if not exported_once:
        model = fold_toy(BLOCKS)
        exported_once.append((export_classifier(model, images), model))
    return exported_once[0]
