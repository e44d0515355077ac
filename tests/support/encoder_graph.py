"""A small encoder as a Q/DQ graph, for builders of engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, HEADS = 256, 4


class Encoder:
    """A Q/DQ encoder of one block as the exporter writes it: FP16 remainder, int8 weights, one QKV linear, a split."""

    def __init__(self, *, zero_point: int = 0, float_scales: bool = False) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.generator = np.random.default_rng(0)
        self.zero_point = zero_point
        self.float_scales = float_scales
        self.weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def constant(self, name: str, array: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}/{operator}", **attributes))
        return output

    def linear(self, source: str, name: str, size: tuple[int, int]) -> str:
        weight = self.generator.normal(size=size).astype(np.float32)
        dtype = np.float32 if self.float_scales else np.float16
        scale = (np.abs(weight).max(axis=0) / 127).astype(dtype)
        integers = np.clip(np.round(weight / scale.astype(np.float32)), -127, 127).astype(np.int8)
        self.weights[name] = (integers, scale)
        step = self.constant(f"{name}.step", np.array(0.05, dtype))
        zero = self.constant(f"{name}.zero", np.array(self.zero_point, np.int8))
        if self.float_scales:
            source = self.node("Cast", [source], f"{name}.x32", to=TensorProto.FLOAT)
        quantized = self.node("QuantizeLinear", [source, step, zero], f"{name}.q")
        activation = self.node("DequantizeLinear", [quantized, step, zero], f"{name}.dq")
        stored = [
            self.constant(f"{name}.weight_int8", integers),
            self.constant(f"{name}.scale", scale),
            self.constant(f"{name}.weight_zero", np.zeros(size[1], np.int8)),
        ]
        weights = self.node("DequantizeLinear", stored, f"{name}.weight", axis=1)
        if self.float_scales:
            activation = self.node("Cast", [activation], f"{name}.x16", to=TensorProto.FLOAT16)
            weights = self.node("Cast", [weights], f"{name}.weight16", to=TensorProto.FLOAT16)
        product = self.node("MatMul", [activation, weights], f"{name}.product")
        bias = self.constant(f"{name}.bias", self.generator.normal(size=size[1]).astype(np.float16))
        return self.node("Add", [product, bias], f"{name}.out")

    def norm(self, source: str, name: str) -> str:
        gain = self.constant(f"{name}.gain", np.ones(WIDTH, np.float16))
        shift = self.constant(f"{name}.shift", np.zeros(WIDTH, np.float16))
        return self.node("LayerNormalization", [source, gain, shift], f"{name}.out", axis=-1)

    def attention(self, source: str) -> str:
        qkv = self.linear(source, "qkv", (WIDTH, 3 * WIDTH))
        self.nodes.append(helper.make_node("Split", [qkv], ["q3", "k3", "v3"], axis=2, num_outputs=3, name="split"))
        shape = self.constant("heads", np.array([0, 0, HEADS, WIDTH // HEADS], np.int64))
        turns = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
        apart = {name: self.node("Reshape", [f"{name}3", shape], f"{name}4") for name in turns}
        query, key, value = (self.node("Transpose", [apart[name]], name, perm=turns[name]) for name in turns)
        root = self.constant("root", np.array((WIDTH // HEADS) ** -0.5, np.float16))
        scores = self.node("MatMul", [self.node("Mul", [query, root], "q.scaled"), key], "scores")
        mixed = self.node("MatMul", [self.node("Softmax", [scores], "shares", axis=-1), value], "mixed")
        together = self.node("Transpose", [mixed], "mixed.t", perm=[0, 2, 1, 3])
        flat = self.constant("flat", np.array([0, 0, WIDTH], np.int64))
        return self.linear(self.node("Reshape", [together, flat], "attended"), "out_proj", (WIDTH, WIDTH))

    def model(self) -> bytes:
        half = self.node("Cast", ["image"], "pixels", to=TensorProto.FLOAT16)
        scale = self.constant("inverse", np.array(1 / 255, np.float16))
        kernel = self.generator.normal(size=(WIDTH, 3, 8, 8)).astype(np.float16)
        kernel = self.constant("patch.weight", kernel * np.float16(0.05))
        patches = self.node("Conv", [self.node("Mul", [half, scale], "unit"), kernel], "patch", strides=[8, 8])
        shape = self.constant("tokens", np.array([0, WIDTH, -1], np.int64))
        tokens = self.node("Reshape", [patches, shape], "patch.flat")
        stream = self.node("Transpose", [tokens], "stream0", perm=[0, 2, 1])
        stream = self.node("Add", [stream, self.attention(self.norm(stream, "norm1"))], "stream1")
        hidden = self.node("Gelu", [self.linear(self.norm(stream, "norm2"), "fc1", (WIDTH, 4 * WIDTH))], "hidden")
        stream = self.node("Add", [stream, self.linear(hidden, "fc2", (4 * WIDTH, WIDTH))], "stream2")
        axes = self.constant("axes", np.array([1], np.int64))
        pooled = self.node("ReduceMean", [stream, axes], "pooled", keepdims=0)
        self.node("Cast", [pooled], "features", to=TensorProto.FLOAT)
        graph = helper.make_graph(
            self.nodes,
            "encoder",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 3, 32, 32])],
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", WIDTH])],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())
