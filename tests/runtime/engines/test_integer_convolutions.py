"""The graph with quantized convolutions for a CPU: the same values, unsigned behind a ReLU, narrow where it must be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from p4q_edge.runtime.engines.onnxruntime import integer_convolutions, overflowing_weights, without_overflow
from p4q_edge.runtime.errors import CorruptArtifactError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
CHANNELS = 4
STEP = 0.125


def _constants(values: dict[str, Any]) -> list[Any]:
    return [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]


def _graphs(*, shared: bool = False) -> tuple[bytes, bytes]:
    """A graph with FP16 remainder and its twin in FP32: convolutions `a` and `b`, a ReLU and a pool between them.

    Args:
        shared: both convolutions read one weight, through one node.
    """
    make = onnx.helper.make_node
    random = np.random.default_rng(0)
    weights = {name: random.integers(-127, 128, (CHANNELS, CHANNELS, 1, 1)).astype(np.int8) for name in "ab"}
    bias = random.normal(size=CHANNELS).astype(np.float32)
    scales = np.full(CHANNELS, 2.0**-7, np.float16)
    constants: dict[str, Any] = {"scale.fp16": np.float16(STEP), "zero": np.int8(0), "zero.axis": np.zeros(4, np.int8)}
    constants |= {f"{name}.weight": weight for name, weight in weights.items()}
    constants |= {"weight_scale.fp16": scales, "bias.fp16": bias.astype(np.float16)}

    def on_grid(source: str, name: str) -> list[Any]:
        steps = ["scale.fp16", "zero"]
        quantize = make("QuantizeLinear", [source, *steps], [f"{name}.q"])
        return [quantize, make("DequantizeLinear", [f"{name}.q", *steps], [f"{name}.dq"])]

    nodes = [make("Cast", ["image"], ["x"], to=onnx.TensorProto.FLOAT16), *on_grid("x", "x")]
    for name in "ab":
        inputs = [f"{name}.weight", "weight_scale.fp16", "zero.axis"]
        nodes.append(make("DequantizeLinear", inputs, [f"{name}.restored"], axis=0))
    second = "a" if shared else "b"
    nodes += [
        make("Conv", ["x.dq", "a.restored", "bias.fp16"], ["y"]),
        make("Relu", ["y"], ["y.relu"]),
        *on_grid("y.relu", "y"),
        make("MaxPool", ["y.dq"], ["pooled"], kernel_shape=[2, 2]),
        *on_grid("pooled", "pooled"),
        make("Conv", ["pooled.dq", f"{second}.restored", "bias.fp16"], ["z"]),
        make("Cast", ["z"], ["out"], to=onnx.TensorProto.FLOAT),
    ]
    kind = onnx.TensorProto.FLOAT
    ends = [onnx.helper.make_tensor_value_info(name, kind, None) for name in ("image", "out")]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], _constants(constants))
    half = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    twin = onnx.helper.make_graph([], "g", [], [], _constants({"bias": bias, "scale": np.float32(3.0)}))
    single = onnx.helper.make_model(twin, opset_imports=half.opset_import, ir_version=10)
    return half.SerializeToString(), single.SerializeToString()


def _run(model: bytes, image: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"image": image})[0]
    return found


def _weights(model: bytes) -> dict[str, np.ndarray]:
    tensors = onnx.load_from_string(model).graph.initializer
    return {one.name: onnx.numpy_helper.to_array(one) for one in tensors if one.name.endswith(".weight")}


IMAGE = np.random.default_rng(1).normal(size=(3, CHANNELS, 8, 8)).astype(np.float32) * 16
"""A part of its values lies beyond 127 steps, and is cut off there."""


def test_values_are_those_of_the_signed_integers_and_constants_get_their_digits_back() -> None:
    half, single = _graphs()
    made = integer_convolutions(half, single)
    graph = onnx.load_from_string(made).graph
    assert not [one for one in graph.initializer if one.data_type == onnx.TensorProto.FLOAT16]
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    exact = onnx.numpy_helper.to_array(onnx.load_from_string(single).graph.initializer[0])
    assert (constants["bias.fp16"] == exact).all()
    assert constants["scale.fp16"] == STEP  # the other graph has another number of this name
    zeros = [constants[node.input[2]].dtype for node in graph.node if node.op_type == "QuantizeLinear"]
    assert zeros == [np.int8, np.uint8, np.uint8]
    signed = onnx.load_from_string(half)
    for node in signed.graph.node:
        if node.op_type == "Cast":
            node.attribute[0].i = onnx.TensorProto.FLOAT
    for one in signed.graph.initializer:
        if one.data_type == onnx.TensorProto.FLOAT16:
            one.CopyFrom(onnx.numpy_helper.from_array(constants[one.name], one.name))
    expected = _run(signed.SerializeToString(), IMAGE)
    np.testing.assert_allclose(_run(made, IMAGE), expected, rtol=1e-5, atol=1e-4)


def test_weights_are_narrow_where_their_input_is_signed_alone() -> None:
    made = integer_convolutions(*_graphs())
    narrow = _weights(without_overflow(made))
    assert (narrow["b.weight"] == _weights(made)["b.weight"]).all()
    assert np.abs(narrow["a.weight"]).max() == 63
    np.testing.assert_allclose(_run(without_overflow(made), IMAGE), _run(made, IMAGE), atol=2.0)


Step = tuple[str, dict[str, float], dict[str, int]]


@pytest.mark.parametrize(
    ("steps", "unsigned"),
    [
        # As values of fewer than 8 bits are cut off in front of their grid.
        ([("Relu", {}, {}), ("Clip", {"low": -4.0, "high": 4.0}, {})], True),
        # As a scale that is no number of FP16 stands between two.
        ([("Relu", {}, {}), ("Cast", {}, {"to": 1})], True),
        ([("Clip", {"low": 0.0, "high": 6.0}, {})], True),  # a ReLU6
        ([("Clip", {"low": -4.0, "high": 4.0}, {})], False),
        ([("Relu", {}, {}), ("Clip", {"low": -4.0, "high": -1.0}, {})], False),
        ([("Relu", {}, {}), ("Clip", {"low": 0.0}, {}), ("Neg", {}, {})], False),
    ],
)
def test_what_is_never_negative_is_unsigned_and_keeps_its_weights(steps: list[Step], unsigned: bool) -> None:
    half, single = _graphs()
    model = onnx.load_from_string(half)
    (relu,) = (node for node in model.graph.node if node.op_type == "Relu")
    at, source = list(model.graph.node).index(relu), relu.input[0]
    model.graph.node.remove(relu)
    for number, (kind, bounds, settings) in enumerate(steps):
        names = [f"{number}.{end}" for end in bounds]
        values = dict(zip(names, map(np.float16, bounds.values()), strict=True))
        model.graph.initializer.extend(_constants(values))
        target = "y.relu" if number == len(steps) - 1 else f"{number}.out"
        model.graph.node.insert(at + number, onnx.helper.make_node(kind, [source, *names], [target], **settings))
        source = target
    made = integer_convolutions(model.SerializeToString(), single)
    assert overflowing_weights(made) == ({"a.weight"} if unsigned else {"a.weight", "b.weight"})
    narrow = _weights(without_overflow(made))
    assert (np.abs(narrow["b.weight"]).max() > 63) == unsigned
    assert np.abs(narrow["a.weight"]).max() == 63
    signed = onnx.load_from_string(made)
    clips = {node.output[0]: node.input[0] for node in signed.graph.node if node.name.endswith(".kept/Clip")}
    assert len(clips) == 2 * unsigned
    zeros = [one for one in signed.graph.initializer if one.name == "unsigned_zero_point"]
    for one in zeros:
        one.CopyFrom(onnx.numpy_helper.from_array(np.int8(0), one.name))
    for node in signed.graph.node:
        if node.op_type == "QuantizeLinear":
            node.input[0] = clips.get(node.input[0], node.input[0])
    np.testing.assert_array_equal(_run(made, IMAGE), _run(signed.SerializeToString(), IMAGE))


def test_a_weight_that_a_signed_input_meets_too_is_narrow() -> None:
    narrow = _weights(without_overflow(integer_convolutions(*_graphs(shared=True))))
    assert np.abs(narrow["a.weight"]).max() == 63


def test_a_stranger_s_graph_is_refused_in_one_line() -> None:
    half, single = _graphs()
    with pytest.raises(CorruptArtifactError, match="no model that onnx reads"):
        integer_convolutions(b"\xff\xff", single)
    broken = onnx.load_from_string(half)
    next(one for one in broken.graph.initializer if one.name == "bias.fp16").raw_data = b"\0"
    with pytest.raises(CorruptArtifactError, match="not as the exporter writes it"):
        integer_convolutions(broken.SerializeToString(), single)


def test_a_graph_that_leads_back_to_itself_ends() -> None:
    half, single = _graphs()
    endless = onnx.load_from_string(half)
    pool = next(node for node in endless.graph.node if node.op_type == "MaxPool")
    first = next(node for node in endless.graph.node if node.output[0] == "y.q")
    first.input[0] = pool.output[0]
    assert b"unsigned_zero_point" not in integer_convolutions(endless.SerializeToString(), single)
