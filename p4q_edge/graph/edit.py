"""Small edits that several passes share: constants, module paths, insertion."""

import ast
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_SCOPES = "pkg.torch.onnx.name_scopes"
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
POOLS = frozenset({"AveragePool", "MaxPool"})
"""Pools that TensorRT has for integers."""


def module_path(node: ir.Node) -> str:
    """Return the torch module that `node` was traced from, "" when it is unknown.

    The exporter records the scopes from the root to the operator itself; the last but one is the module.
    """
    recorded = node.metadata_props.get(_SCOPES)
    scopes = ast.literal_eval(recorded) if recorded else []
    return str(scopes[-2]) if len(scopes) > 1 else ""


def add_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Register `array` as the initializer `name` and return its value.

    Raises:
        ValueError: the name is taken.
    """
    if name in graph.initializers:
        raise ValueError(f"the initializer {name} exists already")
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the array of an initializer, None when `value` is computed or absent."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def operation(op_type: str, inputs: Sequence[ir.Value], output: str, like: ir.Value, **attributes: Any) -> ir.Node:
    """Return a node with one output named `output`, typed as `like` and of its shape."""
    node = ir.node(op_type, inputs, attributes, name=output)
    node.outputs[0].name = output
    node.outputs[0].type = like.type
    node.outputs[0].shape = like.shape
    return node


def replace_node(graph: ir.Graph, old: ir.Node, new: Sequence[ir.Node]) -> None:
    """Put `new` in the place of `old`; the last one's output takes over the name and all the uses.

    The new nodes inherit the metadata of the old one, so that they are still found by module path.
    """
    for node in new:
        node.metadata_props.update(old.metadata_props)
    before, after = old.outputs[0], new[-1].outputs[0]
    after.name, after.type, after.shape = before.name, before.type, before.shape
    graph.insert_before(old, list(new))
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.remove(old, safe=True)


def nodes_of(graph: ir.Graph, *op_types: str) -> Iterator[ir.Node]:
    """Yield the nodes of the given operator types; safe while the graph changes."""
    yield from [node for node in graph if node.op_type in op_types]


def input_of(node: ir.Node, index: int) -> ir.Value:
    """Return the input of `node` at `index`.

    Raises:
        ValueError: the optional input is absent.
    """
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise ValueError(f"{node.name} ({node.op_type}) has no input {index}")
    return value


def name_of(value: ir.Value) -> str:
    """Return the name of `value`.

    Raises:
        ValueError: it has none.
    """
    if value.name is None:
        raise ValueError(f"a value of {value.producer()} has no name")
    return value.name


def only_user(value: ir.Value) -> ir.Node | None:
    """Return the single node that reads `value`, None when there are several, none, or it is an output."""
    users = {use.node for use in value.uses()}
    return users.pop() if len(users) == 1 and not value.is_graph_output() else None
