"""A toy whose weights are INT4 in blocks, calibrated and exported once."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4q_edge.calibration import calibrate_encoder
from p4q_edge.graph import ExportedGraphs, export_classifier
from p4q_edge.models import Adapter, FoldedClassifier, LoadedModel
from p4q_edge.quant import QuantScheme
from p4q_edge.recipe import QuantizationSection

CLASSES, WIDTH = 5, 32
BLOCKS = QuantScheme(weight_bits=4, activation_bits=16, weight_block=32, weight_rounding="descent")


@pytest.fixture
def fold_toy(toy_clip: LoadedModel, toy_pixels: Tensor) -> Callable[[QuantScheme], FoldedClassifier]:
    """Makes a calibrated toy classifier of a scheme, with the adapter of 8 bits that every recipe has."""

    def fold(scheme: QuantScheme) -> FoldedClassifier:
        encoder = calibrate_encoder(toy_clip, toy_pixels, scheme).encoder
        generator = torch.Generator().manual_seed(0)
        own = QuantizationSection().adapter_scheme()
        adapter = Adapter(WIDTH, own, ratio=0.2, learn_ratio=False, zero_init=False, generator=generator)
        with torch.no_grad():
            adapter.freeze(torch.randn(64, WIDTH, generator=generator))
        return FoldedClassifier(
            encoder,
            adapter,
            torch.randn(CLASSES, WIDTH, generator=generator),
            logit_scale=20.0,
            logit_bias=None,
            preprocess=toy_clip.preprocess,
        )

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
