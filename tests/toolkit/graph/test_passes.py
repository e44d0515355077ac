"""Single passes on small graphs, run before and after in ONNX Runtime."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import count, floats, model_of, run, transformer, two_linears

from p4q_edge.graph.analysis.attention import find_attentions
from p4q_edge.graph.passes.base import GraphPass, GraphPassError, run_passes
from p4q_edge.graph.passes.class_token import ClassTokenByPad
from p4q_edge.graph.passes.drop_expand import DropExpand
from p4q_edge.graph.passes.fold_constants import FoldConstants
from p4q_edge.graph.passes.gelu_in_parts import GeluInParts
from p4q_edge.graph.passes.insert_qdq import InsertQdq
from p4q_edge.graph.passes.linear_to_matmul import LinearToMatMul
from p4q_edge.graph.passes.select_token_early import SelectTokenEarly
from p4q_edge.graph.passes.sequence_first import SequenceFirst
from p4q_edge.graph.passes.unbind_to_split import UnbindToSplit


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


@pytest.mark.parametrize("first", [True, False], ids=["patches first", "positions first"])
def test_a_class_token_behind_the_positions_is_padded_in(first: bool) -> None:
    added = "Add(rows, positions)" if first else "Add(positions, rows)"
    model = model_of(
        f"""g (uint8[n,4,6] image) => (float[n,5,6] y) {{
            size = Shape<start=0, end=1>(image)
            goal = Concat<axis=0>(size, one, one)
            rows = Cast<to=1>(image)
            placed = {added}
            token = Expand(class_token, goal)
            joined = Concat<axis=1>(token, placed)
            once = Relu(joined)
            y = Add(once, joined)
        }}""",
        one=np.array([1], np.int64),
        class_token=floats(1, 1, 6),
        positions=floats(1, 4, 6),
    )
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 6), dtype=np.uint8)
    before = run(model, image=image)
    run_passes(model, [ClassTokenByPad()])
    assert count(model) == {"Cast": 1, "Pad": 1, "Add": 2, "Relu": 1}
    np.testing.assert_array_equal(run(model, image=image), before)


@pytest.mark.parametrize("where", ["read elsewhere", "one for all patches"])
def test_a_class_token_stays_where_the_positions_cannot_take_it(where: str) -> None:
    shared = where == "read elsewhere"
    model = model_of(
        f"""g (float[n,4,6] rows) => (float[n,5,6] y{", float[n,4,6] placed" if shared else ""}) {{
            size = Shape<start=0, end=1>(rows)
            goal = Concat<axis=0>(size, one, one)
            placed = Add(rows, positions)
            token = Expand(class_token, goal)
            y = Concat<axis=1>(token, placed)
        }}""",
        one=np.array([1], np.int64),
        class_token=floats(1, 1, 6),
        positions=floats(1, 4 if shared else 1, 6),
    )
    assert not ClassTokenByPad()(model).modified
    assert count(model)["Expand"] == 1


@pytest.mark.parametrize("shape", [(1, 1, 6), (1, 6), (6,), (1,)])
@pytest.mark.parametrize("behind", [True, False], ids=["behind", "before"])
def test_what_is_added_to_every_row_alike_takes_no_class_token(shape: tuple[int, ...], behind: bool) -> None:
    """A bias or a shift is added to all rows: with the token in it, every row would have it."""
    joined = "Concat<axis=1>(token, rows)" if behind else "Concat<axis=1>(token, placed)"
    model = model_of(
        f"""g (float[n,4,6] rows) => (float[n,5,6] y) {{
            size = Shape<start=0, end=1>(rows)
            goal = Concat<axis=0>(size, one, one)
            token = Expand(class_token, goal)
            placed = Add(rows, everywhere)
            joined = {joined}
            y = Add(joined, {"everywhere" if behind else "nothing"})
        }}""",
        one=np.array([1], np.int64),
        nothing=np.zeros(6, np.float32),
        class_token=floats(1, 1, 6),
        everywhere=floats(*shape),
    )
    rows = floats(3, 4, 6)
    before = run(model, rows=rows)
    assert not ClassTokenByPad()(model).modified
    np.testing.assert_array_equal(run(model, rows=rows), before)


def test_a_token_that_is_repeated_is_not_one_row() -> None:
    model = model_of(
        """g (float[n,4,6] rows) => (float[n,6,6] y) {
            size = Shape<start=0, end=1>(rows)
            goal = Concat<axis=0>(size, two, one)
            token = Expand(class_token, goal)
            placed = Add(rows, positions)
            y = Concat<axis=1>(token, placed)
        }""",
        one=np.array([1], np.int64),
        two=np.array([2], np.int64),
        class_token=floats(1, 1, 6),
        positions=floats(1, 4, 6),
    )
    rows = floats(3, 4, 6)
    before = run(model, rows=rows)
    assert not ClassTokenByPad()(model).modified
    np.testing.assert_array_equal(run(model, rows=rows), before)


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
