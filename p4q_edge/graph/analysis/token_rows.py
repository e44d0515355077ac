"""Which nodes treat every token by itself."""

import onnx_ir as ir

from p4q_edge.graph.edit import constant, input_of

_POINTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Gelu", "Relu", "Sigmoid", "Tanh", "Erf", "Clip", "Cast", "Identity"}
)


def is_token_wise(node: ir.Node) -> bool:
    """Return whether each output row (the last axis) depends on just the same row of the inputs and on constants."""
    if node.op_type in _POINTWISE:
        return True
    if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
        scale = constant(input_of(node, 1))
        return scale is not None and scale.size == 1
    if node.op_type == "LayerNormalization":
        rank = input_of(node, 0).shape
        axis = node.attributes.get_int("axis", -1)
        return axis == -1 or (rank is not None and axis == len(rank) - 1)
    return node.op_type == "MatMul" and is_weight(input_of(node, 1))


def is_weight(value: ir.Value) -> bool:
    """Return whether `value` is a constant matrix, stored as it is or as integers."""
    producer = value.producer()
    while producer is not None and producer.op_type in {"DequantizeLinear", "Cast"}:
        value = input_of(producer, 0)
        producer = value.producer()
    array = constant(value)
    return array is not None and array.ndim == 2


def is_constant(value: ir.Value) -> bool:
    """Return whether `value` is known when the graph is built."""
    return constant(value) is not None or is_weight(value)


def data_inputs(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """Return the inputs of a token-wise node that are computed, with their positions."""
    return [(index, value) for index, value in enumerate(node.inputs) if value is not None and not is_constant(value)]
