"""Small graphs for tests of passes, and how they are run and counted."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import parser

from p4q_edge.graph.quantization import LinearQuantization

HEADER = '<ir_version: 10, opset_import: ["": 20]>'


GENERATOR = np.random.default_rng(0)


def model_of(text: str, **constants: np.ndarray) -> ir.Model:
    proto = parser.parse_model(f"{HEADER} {text}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in constants.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def run(model: ir.Model, **inputs: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, inputs)[0]
    return output


def floats(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def count(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def transformer(*, tokens: int = 5, heads: int = 2, size: int = 4) -> ir.Model:
    """One block with class token: patches (N, 8, P) -> token 0 behind attention and residual."""
    width = heads * size
    text = f"""g (float[n,{width},{tokens - 1}] patches) => (float[n,{width}] y) {{
        rows = Transpose<perm=[0,2,1]>(patches)
        size = Shape<start=0, end=1>(patches)
        goal = Concat<axis=0>(size, one, one)
        token = Expand(class_token, goal)
        joined = Concat<axis=1>(token, rows)
        x = Add(joined, positions)
        normed = LayerNormalization<axis=-1>(x, gamma, beta)
        product = MatMul(normed, w_qkv)
        qkv = Add(product, b_qkv)
        q, k, v = Split<axis=2, num_outputs=3>(qkv)
        q4 = Reshape(q, heads)
        k4 = Reshape(k, heads)
        v4 = Reshape(v, heads)
        qt = Transpose<perm=[0,2,1,3]>(q4)
        kt = Transpose<perm=[0,2,3,1]>(k4)
        vt = Transpose<perm=[0,2,1,3]>(v4)
        scores = MatMul(qt, kt)
        p = Softmax<axis=-1>(scores)
        mixed = MatMul(p, vt)
        back = Transpose<perm=[0,2,1,3]>(mixed)
        flat = Reshape(back, joined_heads)
        out = MatMul(flat, w_out)
        sum = Add(x, out)
        normed_again = LayerNormalization<axis=-1>(sum, gamma, beta)
        gate = Sigmoid(normed_again)
        gated = Mul(normed_again, gate)
        last = Add(sum, gated)
        y = Gather<axis=1>(last, zero)
    }}"""
    return model_of(
        text,
        one=np.array([1], np.int64),
        zero=np.array(0, np.int64),
        class_token=floats(width),
        positions=floats(tokens, width),
        gamma=floats(width),
        beta=floats(width),
        w_qkv=floats(width, 3 * width),
        b_qkv=floats(3 * width),
        w_out=floats(width, width),
        heads=np.array([-1, tokens, heads, size], np.int64),
        joined_heads=np.array([-1, tokens, width], np.int64),
    )


def quantization(weight: np.ndarray, *, input_bits: int = 8) -> LinearQuantization:
    scale = np.abs(weight).max(axis=1) / 127
    integers = np.clip(np.rint(weight / scale[:, None]), -127, 127).astype(np.int8)
    return LinearQuantization(
        weight=integers,
        weight_scale=scale.astype(np.float32),
        weight_bits=8,
        input_scale=0.03,
        input_bits=input_bits,
    )


def two_linears(**scales: float) -> tuple[ir.Model, dict[str, LinearQuantization]]:
    weights = {"a": floats(3, 4), "b": floats(2, 4)}
    model = model_of(
        "g (float[n,4] x) => (float[n,3] y, float[n,2] z) { y = MatMul(x, wa)  z = MatMul(x, wb) }",
        wa=weights["a"].T.copy(),
        wb=weights["b"].T.copy(),
    )
    for node, path in zip(model.graph, weights, strict=True):
        node.metadata_props["pkg.torch.onnx.name_scopes"] = str(["", path, "linear"])
    return model, {path: quantization(weight) for path, weight in weights.items()}
