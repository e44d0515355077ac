"""A toy whose linears are quantized to FP8, calibrated and exported once."""

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor
from toy_models import fold_toy_model

from p4q_edge.graph import ExportedGraphs, export_classifier
from p4q_edge.models import FoldedClassifier, LoadedModel
from p4q_edge.recipe import QuantizationSection

SECTION = QuantizationSection(number_format="fp8")


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
def fp8_graphs(
    exported_once: list[tuple[ExportedGraphs, FoldedClassifier]],
    toy_clip: LoadedModel,
    toy_pixels: Tensor,
    images: NDArray[np.uint8],
) -> tuple[ExportedGraphs, FoldedClassifier]:
    """The toy with its adapter, exported; not to be changed."""
    if not exported_once:
        model = fold_toy_model(toy_clip, toy_pixels, SECTION.scheme(), adapter=SECTION.adapter_scheme())
        exported_once.append((export_classifier(model, images[:8]), model))
    return exported_once[0]
