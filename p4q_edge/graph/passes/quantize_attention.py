"""Quantize the two products of attentions, as the modules that they were traced from do."""

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from p4q_edge.graph.edit import input_of, module_path, nodes_of, only_user
from p4q_edge.graph.passes.base import GraphPass
from p4q_edge.graph.passes.insert_qdq import quantize_operand
from p4q_edge.graph.quantization import AttentionQuantization


class QuantizeAttention(GraphPass):
    """Put Q/DQ on query, key, softmax and value of the attentions named by their module path.

    All four, or the compiler takes the fused attention apart. An attention that asks for one token is refused: its
    fused kernel has no INT8 form.

    Source: NVIDIA TensorRT, issues 2981 and 4167: which INT8 attentions fuse.
    """

    def __init__(self, attentions: Mapping[str, AttentionQuantization]) -> None:
        self.attentions = attentions

    def obstacles(self, model: ir.Model) -> Iterable[str]:
        found = {module_path(softmax): products_of(softmax) for softmax in nodes_of(model.graph, "Softmax")}
        for path in self.attentions:
            products = found.get(path)
            query = None if products is None else input_of(products[0], 0).producer()
            if products is None or (query is not None and query.op_type == "Slice"):
                yield f"no attention of all tokens comes from {path}; that of one token has no INT8 form"

    def apply(self, model: ir.Model) -> bool:
        for softmax in nodes_of(model.graph, "Softmax"):
            path, products = module_path(softmax), products_of(softmax)
            if path not in self.attentions or products is None:
                continue
            grids, (scores, mixed) = self.attentions[path], products
            operands = (
                (scores, 0, "query", grids.query),
                (scores, 1, "key", grids.key),
                (mixed, 0, "softmax", grids.softmax),
                (mixed, 1, "value", grids.value),
            )
            for product, index, name, scale in operands:
                value = quantize_operand(model.graph, product, index, f"{path}.{name}", (scale, grids.bits))
                product.replace_input_with(index, value)
        return bool(self.attentions)


def products_of(softmax: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """Return the products before and behind a softmax, None when it does not stand between two."""
    scores, mixed = input_of(softmax, 0).producer(), only_user(softmax.outputs[0])
    between = scores is not None and mixed is not None and scores.op_type == mixed.op_type == "MatMul"
    return (scores, mixed) if between else None  # type: ignore[return-value]
