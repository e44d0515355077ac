"""A toy classifier, calibrated and folded, and its exported graphs."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from torch import Tensor
from toy_exports import Exported, export_once
from toy_models import fold_toy_model

from p4q_edge.graph.export import ExportedGraphs
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
def toy_graphs(
    kept_exports: dict[str, Exported],
    fold_toy: Callable[[QuantScheme], FoldedClassifier],
    images: NDArray[np.uint8],
) -> Exported:
    """The toy at 8 bits, exported; not to be changed."""
    return export_once(kept_exports, "int8", lambda: fold_toy(QuantScheme()), images)


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
