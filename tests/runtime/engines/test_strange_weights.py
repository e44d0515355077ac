"""Weights of a stranger's graph that the profiles `fast` and `float` rewrite, in this process, where no deadline is."""

from __future__ import annotations

import numpy as np
import pytest

from p4q_edge.runtime.engines.onnxruntime import float_weights, seven_bit_weights
from p4q_edge.runtime.errors import ArtifactError, CorruptArtifactError

onnx = pytest.importorskip("onnx", reason="these profiles rewrite the graph, which needs onnx")

BIAS = np.ones(4, np.float32)
PARTS = {"shift.input_shift": np.zeros(3, np.float32), "scale": np.float32(0.1), "bias": BIAS}


def model(nodes: list[tuple[str, list[str], str]], **constants: np.ndarray | np.float32) -> bytes:
    helper = onnx.helper
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ("n", 3))
    made = [helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes]
    kept = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in (PARTS | constants).items()]
    return bytes(helper.make_model(helper.make_graph(made, "graph", [image], [], kept)).SerializeToString())


@pytest.mark.parametrize("rewrite", [seven_bit_weights, float_weights])
def test_a_scale_of_another_length_does_not_repeat_its_weight(rewrite: object) -> None:
    """A megabyte of each would become terabytes, and the system end the process."""
    data = model(
        [("DequantizeLinear", ["weight", "scales"], "w"), ("MatMul", ["image", "w"], "logits")],
        weight=np.ones((1 << 12, 1), np.int8),
        scales=np.ones(1 << 12, np.float32),
    )
    with pytest.raises(CorruptArtifactError, match="a weight that is not as the exporter writes it: "):
        rewrite(data)  # type: ignore[operator]


def test_a_graph_that_leads_back_to_itself_is_looked_through_once() -> None:
    data = model(
        [
            ("Cast", ["b"], "a"),
            ("Cast", ["a"], "b"),
            ("DequantizeLinear", ["weight", "scale"], "w"),
            ("MatMul", ["a", "w"], "logits"),
        ],
        weight=np.ones((3, 4), np.int8),
    )
    assert len(seven_bit_weights(data)) > 0


@pytest.mark.parametrize("rewrite", [seven_bit_weights, float_weights])
def test_scales_of_texts_and_bytes_that_are_no_model_are_told(rewrite: object) -> None:
    nodes = [("DequantizeLinear", ["weight", "texts"], "w"), ("MatMul", ["image", "w"], "logits")]
    made = onnx.ModelProto.FromString(model(nodes, weight=np.ones((3, 4), np.int8)))
    made.graph.initializer.append(onnx.helper.make_tensor("texts", onnx.TensorProto.STRING, (), [b"a"]))
    with pytest.raises(CorruptArtifactError, match="a weight that is not as the exporter writes it: "):
        rewrite(made.SerializeToString())  # type: ignore[operator]
    with pytest.raises(ArtifactError, match="is no model that onnx reads: .*Export the bundle again"):
        rewrite(b"\x0a\xff")  # type: ignore[operator]
