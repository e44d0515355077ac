"""Which module makes and which modules read each tensor of a model, from one trace of it.

A trace is a graph of torch operators in which in-place operators are written as ordinary ones, so that every tensor has
one maker and all its readers. Nodes are found by the dotted path of the module that they were called in.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import Node

NodeKind = Literal["conv", "linear", "batch_norm", "add", "mul", "avg_pool", "max_pool", "other"]

_KINDS: dict[str, NodeKind] = {
    "aten.conv2d.default": "conv",
    "aten.convolution.default": "conv",
    "aten.linear.default": "linear",
    "aten._native_batch_norm_legit_no_training.default": "batch_norm",
    "aten.batch_norm.default": "batch_norm",
    "aten.add.Tensor": "add",
    "aten.mul.Tensor": "mul",
    "aten.avg_pool2d.default": "avg_pool",
    "aten.max_pool2d.default": "max_pool",
    "aten.max_pool2d_with_indices.default": "max_pool",
}
_SAME = frozenset({"aten.clone.default", "aten.alias.default", "aten.dropout.default", "aten.contiguous.default"})
_POINTWISE = frozenset(
    f"aten.{name}.default"
    for name in (
        "relu",
        "relu6",
        "hardtanh",
        "gelu",
        "silu",
        "hardswish",
        "hardsigmoid",
        "sigmoid",
        "leaky_relu",
        "elu",
    )
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Flow:
    """A traced model.

    Attributes:
        nodes: operators in the order in which they run.
        parameters: name of a parameter's node to the parameter's dotted path.
        calls: how many nodes with weights the module at each path has, whatever its name in each call.
    """

    nodes: tuple[Node, ...]
    parameters: dict[str, str]
    calls: dict[str, int]

    def of_kind(self, kind: NodeKind) -> Iterator[Node]:
        """Yield the nodes of one kind."""
        return (node for node in self.nodes if kind_of(node) == kind)

    def owner(self, weighted: Node) -> str:
        """Return the path of the module whose weight a convolution or linear multiplies with, "" if it has none."""
        weight = weighted.args[1]
        path = self.parameters.get(weight.name, "") if isinstance(weight, Node) else ""
        return path.removesuffix(".weight") if path.endswith(".weight") else ""


@torch.no_grad()
def trace_flow(model: nn.Module, sample: Tensor) -> Flow:
    """Trace `model` on a batch `(N, 3, H, W)` of at least two images; its phases run as they are set."""
    with warnings.catch_warnings():
        # torch 2.10 and 2.11 copy what they have deprecated themselves.
        warnings.filterwarnings("ignore", r".*LeafSpec", FutureWarning)
        program = torch.export.export(model, (sample,), strict=False).run_decompositions({})
    nodes = tuple(node for node in program.graph.nodes if node.op == "call_function")
    weighted = [module_of(node) for node in nodes if kind_of(node) in {"conv", "linear", "batch_norm"}]
    # A module that is reached under two names is one module.
    times = Counter(model.get_submodule(path) for path in weighted)
    calls = {path: times[model.get_submodule(path)] for path in weighted}
    parameters = dict(program.graph_signature.inputs_to_parameters)
    return Flow(nodes=nodes, parameters=parameters, calls=calls)


def kind_of(node: Node) -> NodeKind:
    """Return what a node does; `other` for all that this project does not treat apart."""
    return _KINDS.get(str(node.target), "other")


def stack_of(node: Node) -> tuple[str, ...]:
    """Return the paths of the modules whose forward called a node, outermost first."""
    stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    return tuple(path for path, _ in stack.values())


def module_of(node: Node) -> str:
    """Return the path of the innermost module that called a node, "" for the model itself."""
    stack = stack_of(node)
    return stack[-1] if stack else ""


def source(node: Node, index: int = 0) -> Node | None:
    """Return the node behind an operand, looking through what changes no value; None for a number."""
    found = node.args[index] if index < len(node.args) else None
    while isinstance(found, Node) and (str(found.target) in _SAME or _is_getitem(found)):
        found = found.args[0]
    return found if isinstance(found, Node) else None


def readers(node: Node) -> list[Node]:
    """Return the nodes that read the tensor of `node`, looking through what changes no value."""
    found: list[Node] = []
    for user in node.users:
        found += readers(user) if str(user.target) in _SAME or _is_getitem(user) else [user]
    return found


def is_pointwise(node: Node) -> bool:
    """Return whether a node is an activation function."""
    return str(node.target) in _POINTWISE


def shape_of(node: Node) -> tuple[int, ...]:
    """Return the shape of a node's tensor, () where it has none."""
    value = node.meta.get("val")
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else ()


def producer_module(node: Node, flow: Flow) -> str | None:
    """Return the path of the module whose result is the tensor of `node`.

    None where no module returns just this tensor: it is read inside the module too, or the module is called twice.
    """
    path = module_of(node)
    if not path or flow.calls.get(path, 1) > 1:
        return None
    same = [other for other in flow.nodes if module_of(other) == path and _leaves(other, path)]
    return path if same == [node] and _leaves(node, path) else None


def _leaves(node: Node, path: str) -> bool:
    return bool(node.users) and all(path not in stack_of(user) for user in node.users)


def _is_getitem(node: Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"
