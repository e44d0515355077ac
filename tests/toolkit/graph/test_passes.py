"""Single passes on small graphs, run before and after in ONNX Runtime."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import parser

from p4q_edge.graph.analysis.attention import find_attentions
from p4q_edge.graph.passes.base import GraphPass, GraphPassError, run_passes
from p4q_edge.graph.passes.class_token import ClassTokenByPad
from p4q_edge.graph.passes.drop_expand import DropExpand
from p4q_edge.graph.passes.fold_constants import FoldConstants
from p4q_edge.graph.passes.fragments import StoreWeightsAsFp16
from p4q_edge.graph.passes.gelu_in_parts import GeluInParts
from p4q_edge.graph.passes.insert_qdq import InsertQdq
from p4q_edge.graph.passes.linear_to_matmul import LinearToMatMul
from p4q_edge.graph.passes.rescale_small_weights import lift
from p4q_edge.graph.passes.select_token_early import SelectTokenEarly
from p4q_edge.graph.passes.sequence_first import SequenceFirst
from p4q_edge.graph.passes.unbind_to_split import UnbindToSplit
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


def test_expand_behind_a_norm_goes_with_its_shape_arithmetic() -> None:
    model = model_of(
        """g (float[n,4] x) => (float[n,4] y) {
            norm = ReduceL2<keepdims=1>(x, axes)
            size = Shape(x)
            wide = Expand(norm, size)
            y = Div(x, wide)
        }""",
        axes=np.array([-1], np.int64),
    )
    x = floats(3, 4)
    before = run(model, x=x)
    run_passes(model, [DropExpand()])
    assert count(model) == {"ReduceL2": 1, "Div": 1}
    np.testing.assert_array_equal(run(model, x=x), before)


def test_an_expand_that_gives_the_shape_stays() -> None:
    model = model_of(
        """g (float[n,4] x) => (float[n,4] y) {
            size = Shape(x)
            wide = Expand(row, size)
            y = Add(wide, row)
        }""",
        row=floats(1, 4),
    )
    assert not DropExpand()(model).modified
    assert count(model)["Expand"] == 1


def test_a_constant_query_is_not_repeated_for_each_image() -> None:
    model = model_of(
        """g (float[n,4,6] keys) => (float[n,1,6] y) {
            size = Shape<start=0, end=1>(keys)
            goal = Concat<axis=0>(size, one, four)
            query = Expand(latent, goal)
            asked = MatMul(query, w)
            y = MatMul(asked, keys)
        }""",
        one=np.array([1], np.int64),
        four=np.array([4], np.int64),
        latent=floats(1, 1, 4),
        w=floats(4, 4),
    )
    keys = floats(3, 4, 6)
    before = run(model, keys=keys)
    run_passes(model, [DropExpand(), FoldConstants()])
    assert count(model) == {"MatMul": 1}
    np.testing.assert_allclose(run(model, keys=keys), before, rtol=1e-6, atol=1e-6)


def test_restored_weights_are_not_folded() -> None:
    model, linears = two_linears()
    run_passes(model, [InsertQdq(linears)])
    assert not FoldConstants()(model).modified


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_in_parts_is_gelu(approximate: str) -> None:
    model = model_of(f'g (float[n,4] x) => (float[n,4] y) {{ y = Gelu<approximate="{approximate}">(x) }}')
    x = 3 * floats(50, 4)
    before = run(model, x=x)
    run_passes(model, [GeluInParts()])
    assert "Gelu" not in count(model)
    np.testing.assert_allclose(run(model, x=x), before, rtol=1e-5, atol=2e-6)


def test_timm_unbind_becomes_split() -> None:
    views = "".join(
        f"""
            s{k} = Slice(turned, i{k}, i{k + 1}, i0)
            p{k} = Squeeze(s{k}, i0)"""
        for k in range(3)
    )
    model = model_of(
        f"""g (float[n,5,24] qkv) => (float[n,2,5,4] y) {{
            five = Reshape(qkv, shape)
            turned = Transpose<perm=[2,0,3,1,4]>(five){views}
            pq = Sub(p0, p1)
            y = Mul(pq, p2)
        }}""",
        shape=np.array([-1, 5, 3, 2, 4], np.int64),
        **{f"i{k}": np.array([k], np.int64) for k in range(4)},
    )
    qkv = floats(3, 5, 24)
    before = run(model, qkv=qkv)
    run_passes(model, [UnbindToSplit()])
    assert count(model) == {"Split": 1, "Reshape": 3, "Transpose": 3, "Sub": 1, "Mul": 1}
    np.testing.assert_array_equal(run(model, qkv=qkv), before)


class Renaming(GraphPass):
    """Loses the name of an output."""

    def apply(self, model: ir.Model) -> bool:
        model.graph.outputs[0].name = "z"
        return True


def test_a_pass_that_renames_an_output_is_stopped() -> None:
    model = model_of("g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }")
    with pytest.raises(GraphPassError, match=r"Renaming renamed outputs: expected \['y'\], got \['z'\]"):
        Renaming()(model)


def test_gemm_becomes_matmul_and_add() -> None:
    model = model_of("g (float[n,4] x) => (float[n,3] y) { y = Gemm<transB=1>(x, w, b) }", w=floats(3, 4), b=floats(3))
    x = floats(2, 4)
    before = run(model, x=x)
    run_passes(model, [LinearToMatMul()])
    assert count(model) == {"MatMul": 1, "Add": 1}
    assert [value.name for value in model.graph.outputs] == ["y"]
    np.testing.assert_allclose(run(model, x=x), before, rtol=1e-6, atol=1e-6)


def test_a_transposed_weight_is_stored_transposed() -> None:
    model = model_of("g (float[n,4] x) => (float[n,3] y) { t = Transpose(w)  y = MatMul(x, t) }", w=floats(3, 4))
    x = floats(2, 4)
    before = run(model, x=x)
    run_passes(model, [LinearToMatMul()])
    assert count(model) == {"MatMul": 1}
    np.testing.assert_array_equal(run(model, x=x), before)


def test_class_token_is_padded_in_without_shapes() -> None:
    model = transformer()
    patches = floats(3, 8, 4)
    before = run(model, patches=patches)
    run_passes(model, [ClassTokenByPad()])
    assert not {"Expand", "Shape", "Concat"} & set(count(model))
    np.testing.assert_array_equal(run(model, patches=patches), before)


def test_selecting_early_leaves_one_row_behind_the_attention() -> None:
    model = transformer()
    patches = floats(3, 8, 4)
    before = run(model, patches=patches)
    run_passes(model, [ClassTokenByPad(), SelectTokenEarly()])
    (attention,) = find_attentions(model.graph)
    assert attention.token == 0
    assert attention.result.shape is not None
    assert len(attention.result.shape) == 2
    np.testing.assert_allclose(run(model, patches=patches), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("early", [True, False])
def test_tokens_first_computes_the_same(early: bool) -> None:
    model = transformer()
    patches = floats(3, 8, 4)
    before = run(model, patches=patches)
    run_passes(model, [ClassTokenByPad(), *([SelectTokenEarly()] if early else []), SequenceFirst()])
    np.testing.assert_allclose(run(model, patches=patches), before, rtol=1e-5, atol=1e-5)
    transposed = [tuple(n.attributes.get_ints("perm", ())) for n in model.graph if n.op_type == "Transpose"]
    assert (2, 0, 1) in transposed  # patches go to (L, N, D) at once
    assert (1, 0, 2) not in transposed or not early


def test_tokens_first_without_attention_changes_nothing() -> None:
    model = model_of("g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }")
    assert not SequenceFirst()(model).modified


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


def test_linears_that_read_one_tensor_share_its_pair_but_no_zero_point() -> None:
    model, linears = two_linears()
    run_passes(model, [InsertQdq(linears)])
    assert count(model) == {"QuantizeLinear": 1, "DequantizeLinear": 3, "MatMul": 2}
    zeros = [node.inputs[2] for node in model.graph if "Linear" in node.op_type]
    assert len(set(zeros)) == len(zeros)
    assert {"a.weight_int8", "b.weight_int8"} <= set(model.graph.initializers)
    assert not {"wa", "wb"} & set(model.graph.initializers)


def test_large_matrices_are_stored_as_fp16_and_scales_stay_constants() -> None:
    """A linear of 4096 channels (the MLP of ViT-L) has a scale as large as a small matrix."""
    model = model_of(
        "g (float[n,64] x) => (float[n,4096] y) { y1 = MatMul(x, w)  y = Mul(y1, scale) }",
        w=np.ones((64, 4096), np.float32),
        scale=np.full(4096, 0.5, np.float32),
    )
    assert StoreWeightsAsFp16()(model).modified
    assert count(model) == {"Cast": 1, "MatMul": 1, "Mul": 1}
    assert "scale" in model.graph.initializers
    assert model.graph.initializers["w.fp16"].dtype is ir.DataType.FLOAT16


def test_quantized_linear_computes_on_the_grid() -> None:
    model, linears = two_linears()
    run_passes(model, [InsertQdq(linears)])
    x = floats(5, 4)
    grid = np.clip(np.rint(x / np.float32(0.03)), -128, 127) * np.float32(0.03)
    expected = grid @ (linears["a"].weight * linears["a"].weight_scale[:, None]).T
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    np.testing.assert_allclose(session.run(["y"], {"x": x})[0], expected, rtol=1e-5, atol=1e-5)


def test_a_linear_that_is_not_in_the_graph_is_named() -> None:
    model, linears = two_linears()
    with pytest.raises(GraphPassError, match="InsertQdq cannot run: the linear c has 0 MatMul nodes, expected 1"):
        InsertQdq({"c": linears["a"]})(model)


def test_a_weight_of_another_shape_is_named() -> None:
    model, linears = two_linears()
    with pytest.raises(GraphPassError, match=r"the MatMul of a has weight \(4, 3\), expected \(4, 2\)"):
        InsertQdq({"a": linears["b"]})(model)


class Broken(GraphPass):
    """Promises what it does not do."""

    def apply(self, model: ir.Model) -> bool:
        return False

    def broken_promises(self, model: ir.Model) -> Iterable[str]:
        yield from (f"node {i} is left" for i in range(5))


def test_a_broken_promise_names_the_first_nodes() -> None:
    model = model_of("g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }")
    with pytest.raises(GraphPassError, match=r"Broken broke its promise: node 0 is left; .* \(and 2 more\)"):
        run_passes(model, [Broken()])


@given(st.lists(st.floats(min_value=2.0**-24, max_value=1.0, width=32), min_size=1, max_size=20))
def test_lifted_scales_are_normal_fp16_and_exact(values: list[float]) -> None:
    scale = np.array(values, np.float32)
    factor = lift(scale)
    assert (scale * factor >= 2.0**-14).all()
    assert (factor >= 1).all()
    assert (factor[scale >= 2.0**-14] == 1).all()
    assert (scale * factor)[factor > 1].max(initial=0) < 2.0**-13
    np.testing.assert_array_equal(np.exp2(np.round(np.log2(factor))), factor)
    np.testing.assert_array_equal(scale * factor * (1 / factor), scale)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_scale": np.zeros(3, np.float32)}, "weight_scale is positive"),
        ({"weight_scale": np.ones(4, np.float32)}, r"weight_scale is \(out,\)"),
        ({"weight": np.zeros((3, 4), np.int16)}, "weight is int8"),
        ({"weight_bits": 4, "weight": np.full((3, 4), 9, np.int8)}, r"weight lies in \[-7, 7\]"),
        ({"input_scale": 0.0}, "input_scale is positive"),
        ({"input_bits": 9}, "bits must be between 2 and 8"),
    ],
)
def test_a_linear_quantization_checks_itself(change: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {
        "weight": np.zeros((3, 4), np.int8),
        "weight_scale": np.ones(3, np.float32),
        "weight_bits": 8,
        "input_scale": 0.1,
        "input_bits": 8,
    }
    with pytest.raises(ValueError, match=message):
        LinearQuantization(**{**fields, **change})  # type: ignore[arg-type]
