"""Write an attention with the tokens first."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from p4q_edge.graph.analysis.attention import AttentionPattern
from p4q_edge.graph.edit import add_constant, name_of


def write_tokens_first(graph: ir.Graph, attention: AttentionPattern) -> None:
    """Replace an attention by the same one over (L, N, 3 * D) -> (L, N, D).

    The heads are separated before query, key and value: NVIDIA's compiler then keeps the INT8 product that
    computes all three in one piece. The products have rank 3, so their result needs no transposition.
    """
    writer = _Writer(graph, attention)
    tokens, size = attention.tokens, attention.head_size
    joint = writer.reshape(attention.source, (tokens, -1, 3 * attention.heads, size), "heads")
    query, key, value = writer.split(joint)
    query = writer.reshape(writer.transpose(query, (1, 2, 0, 3), "query"), (-1, tokens, size), "query_rows")
    key = writer.reshape(writer.transpose(key, (1, 2, 3, 0), "key"), (-1, size, tokens), "key_columns")
    value = writer.reshape(writer.transpose(value, (1, 2, 0, 3), "value"), (-1, tokens, size), "value_rows")
    if attention.query_scale is not None:
        query = writer.add("Mul", (query, attention.query_scale), "scaled_query")
    if attention.token is not None:
        query = writer.row(query, attention.token)
    weights = writer.add("Softmax", (writer.add("MatMul", (query, key), "scores"),), "softmax", axis=-1)
    mixed = writer.add("MatMul", (weights, value), "mixed")
    width = attention.heads * size
    if attention.token is None:
        joined = writer.reshape(writer.transpose(mixed, (1, 0, 2), "mixed_rows"), (tokens, -1, width), "joined")
    else:
        joined = writer.reshape(mixed, (-1, width), "joined")
    joined.shape = attention.result.shape
    attention.result.replace_all_uses_with(joined)


class _Writer:
    """Adds nodes before the last node of an attention, typed as its source."""

    def __init__(self, graph: ir.Graph, attention: AttentionPattern) -> None:
        producer = attention.result.producer()
        assert producer is not None  # a matched attention computes its result
        self.graph = graph
        self.at = producer
        self.prefix = name_of(attention.result)
        self.type = attention.source.type

    def add(self, op_type: str, inputs: Sequence[ir.Value], name: str, **attributes: object) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=f"{self.prefix}.{name}")  # type: ignore[arg-type]
        self._insert(node)
        node.outputs[0].name, node.outputs[0].type = f"{self.prefix}.{name}", self.type
        return node.outputs[0]

    def reshape(self, value: ir.Value, shape: Sequence[int], name: str) -> ir.Value:
        target = add_constant(self.graph, f"{self.prefix}.{name}.shape", np.array(shape, np.int64))
        return self.add("Reshape", (value, target), name)

    def transpose(self, value: ir.Value, permutation: Sequence[int], name: str) -> ir.Value:
        return self.add("Transpose", (value,), name, perm=tuple(permutation))

    def row(self, value: ir.Value, index: int) -> ir.Value:
        bounds = [
            add_constant(self.graph, f"{self.prefix}.row.{name}", np.array([bound], np.int64))
            for name, bound in (("start", index), ("end", index + 1), ("axis", 1))
        ]
        return self.add("Slice", (value, *bounds), "query_row")

    def split(self, value: ir.Value) -> Sequence[ir.Value]:
        node = ir.node("Split", (value,), {"axis": 2, "num_outputs": 3}, num_outputs=3, name=f"{self.prefix}.split")
        self._insert(node)
        for output, name in zip(node.outputs, ("q", "k", "v"), strict=True):
            output.name, output.type = f"{self.prefix}.{name}", self.type
        return node.outputs

    def _insert(self, node: ir.Node) -> None:
        node.metadata_props.update(self.at.metadata_props)
        self.graph.insert_before(self.at, node)
