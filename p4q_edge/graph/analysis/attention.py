"""Find the attentions of a traced graph."""

from dataclasses import dataclass

import onnx_ir as ir

from p4q_edge.graph.edit import constant, input_of, nodes_of, only_user

_HEADS_FIRST = (0, 2, 1, 3)  # (N, L, heads, size) -> (N, heads, L, size)
_KEYS = (0, 2, 3, 1)  # (N, L, heads, size) -> (N, heads, size, L)


@dataclass(frozen=True, kw_only=True)
class AttentionPattern:
    """One softmax attention over a joint query-key-value tensor.

    Attributes:
        source: (N, L, 3 * heads * head_size), queries, keys, values.
        split: the node that takes it apart.
        query_scale: constant factor on the queries, None when it is folded into their weights.
        token: the one token whose query is asked, None when all are.
        scores, mixed: the products of query and key, and of the softmax and the values.
        result: (N, L, heads * head_size), or (N, heads * head_size) with one token.
        tokens, heads, head_size: L and the two parts of the width.
    """

    source: ir.Value
    split: ir.Node
    query_scale: ir.Value | None
    token: int | None
    scores: ir.Node
    mixed: ir.Node
    result: ir.Value
    tokens: int
    heads: int
    head_size: int


def find_attentions(graph: ir.Graph) -> list[AttentionPattern]:
    """Return the attentions whose query, key and value are the thirds of one tensor, in order."""
    found = [_match(softmax) for softmax in nodes_of(graph, "Softmax")]
    return [attention for attention in found if attention is not None]


def _match(softmax: ir.Node) -> AttentionPattern | None:
    scores, mixed = input_of(softmax, 0).producer(), only_user(softmax.outputs[0])
    if scores is None or mixed is None or scores.op_type != "MatMul" or mixed.op_type != "MatMul":
        return None
    query, token = _all_tokens(input_of(scores, 0))
    query, scale = _unscaled(query)
    parts = [
        _third(query, _HEADS_FIRST),
        _third(input_of(scores, 1), _KEYS),
        _third(input_of(mixed, 1), _HEADS_FIRST),
    ]
    result = _joined(mixed.outputs[0], one_token=token is not None)
    if result is None or any(part is None for part in parts):
        return None
    outputs = [part[0] for part in parts if part is not None]
    shapes = {part[1] for part in parts if part is not None}
    split = outputs[0].producer()
    if split is None or list(split.outputs) != outputs or len(shapes) != 1:
        return None
    ((tokens, heads, head_size),) = shapes
    return AttentionPattern(
        source=input_of(split, 0),
        split=split,
        query_scale=scale,
        token=token,
        scores=scores,
        mixed=mixed,
        result=result,
        tokens=tokens,
        heads=heads,
        head_size=head_size,
    )


def _all_tokens(query: ir.Value) -> tuple[ir.Value, int | None]:
    node = query.producer()
    if node is None or node.op_type != "Slice":
        return query, None
    start = constant(input_of(node, 1))
    return (input_of(node, 0), int(start[0])) if start is not None else (query, None)


def _unscaled(query: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    node = query.producer()
    if node is None or node.op_type != "Mul":
        return query, None
    factor = constant(input_of(node, 1))
    return (input_of(node, 0), input_of(node, 1)) if factor is not None and factor.size == 1 else (query, None)


def _third(value: ir.Value, permutation: tuple[int, ...]) -> tuple[ir.Value, tuple[int, int, int]] | None:
    """Return the output of a Split in three that `value` is a view of, and (L, heads, head_size)."""
    node, total = value.producer(), (0, 1, 2, 3)
    while node is not None and node.op_type == "Transpose":
        step = tuple(node.attributes.get_ints("perm", (3, 2, 1, 0)))
        total = tuple(step[axis] for axis in total)  # type: ignore[assignment]
        value = input_of(node, 0)
        node = value.producer()
    if node is None or node.op_type != "Reshape" or total != permutation:
        return None
    shape = constant(input_of(node, 1))
    split = input_of(node, 0).producer()
    if shape is None or shape.size != 4 or split is None or split.op_type != "Split" or len(split.outputs) != 3:
        return None
    return input_of(node, 0), (int(shape[1]), int(shape[2]), int(shape[3]))


def _joined(mixed: ir.Value, *, one_token: bool) -> ir.Value | None:
    """Return the (N, L, D) that the heads are joined to; with one token they lie side by side already."""
    node = only_user(mixed)
    if node is not None and node.op_type == "Transpose" and not one_token:
        heads_last = tuple(node.attributes.get_ints("perm", ())) == _HEADS_FIRST
        node = only_user(node.outputs[0]) if heads_last else None
    return node.outputs[0] if node is not None and node.op_type == "Reshape" else None
