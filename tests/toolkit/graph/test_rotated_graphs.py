"""A rotation is in the weights: the graphs of a rotated tower have no other operators."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from p4q_edge.graph.export import export_classifier
from p4q_edge.models.folded_classifier import FoldedClassifier
from p4q_edge.models.load import LoadedModel
from p4q_edge.quant.scheme import QuantScheme


def test_a_rotation_adds_no_operator(
    toy_clip: LoadedModel, fold_toy: Callable[[QuantScheme], FoldedClassifier], images: NDArray[np.uint8]
) -> None:
    toy_clip.clip.visual.ln_pre = nn.Identity()
    counts = []
    for turned in (False, True):
        graphs = export_classifier(fold_toy(QuantScheme(rotation=turned)), images)
        assert graphs.unsound == {}
        assert graphs.parity.flat()["fp32_unoptimized.cosine_features"] > 0.999
        counts.append(Counter(node.op_type for node in onnx.load_from_string(graphs.fp16).graph.node))
    assert counts[0] == counts[1]
