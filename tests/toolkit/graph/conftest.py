"""A toy classifier, calibrated and folded, and its exported graphs."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from torch import Tensor
from toy_models import fold_toy_model

from p4q_edge.graph.export import ExportedGraphs, export_classifier
from p4q_edge.models.folded_classifier import FoldedClassifier
from p4q_edge.models.load import LoadedModel
from p4q_edge.quant.scheme import QuantScheme


@pytest.fixture
def fold_toy(toy_clip: LoadedModel, toy_pixels: Tensor) -> Callable[[QuantScheme], FoldedClassifier]:
    """Makes a calibrated toy classifier of a scheme."""

    def fold(scheme: QuantScheme) -> FoldedClassifier:
        return fold_toy_model(toy_clip, toy_pixels, scheme, adapter=scheme)

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
def toy_graphs(
    exported_once: list[tuple[ExportedGraphs, FoldedClassifier]],
    fold_toy: Callable[[QuantScheme], FoldedClassifier],
    images: NDArray[np.uint8],
) -> tuple[ExportedGraphs, FoldedClassifier]:
    """The toy at 8 bits, exported; not to be changed."""
    if not exported_once:
        model = fold_toy(QuantScheme())
        exported_once.append((export_classifier(model, images), model))
    return exported_once[0]


@pytest.fixture
def fp16_model(toy_graphs: tuple[ExportedGraphs, FoldedClassifier]) -> onnx.ModelProto:
    """The complete graph with FP16 remainder."""
    graphs, _ = toy_graphs
    return onnx.load_from_string(graphs.fp16 + graphs.weights)


@pytest.fixture
def fp32_model(toy_graphs: tuple[ExportedGraphs, FoldedClassifier]) -> onnx.ModelProto:
    """The complete graph with FP32 remainder."""
    graphs, _ = toy_graphs
    return onnx.load_from_string(graphs.fp32 + graphs.weights)
