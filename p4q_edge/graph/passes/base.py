"""A graph pass: one change of an ONNX graph, with what it needs and what it promises.

A pass edits an `onnx_ir.Model` in place. `requires` refuses a model the pass would break, `ensures`
checks the promise afterwards, and both name the node at fault.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

from p4q_edge.runtime.errors import P4QEdgeError

logger = logging.getLogger(__name__)


class GraphPassError(P4QEdgeError):
    """A graph that a pass cannot handle, or that breaks the pass's own promise."""


class GraphPass(ABC):
    """One named change of a graph."""

    def requires(self, model: ir.Model) -> Iterable[str]:
        """Yield what keeps this pass from running; nothing when it may run."""
        return ()

    @abstractmethod
    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place and return whether anything changed."""

    def ensures(self, model: ir.Model) -> Iterable[str]:
        """Yield what contradicts this pass's promise; nothing when it holds."""
        return ()

    def __call__(self, model: ir.Model) -> bool:
        """Check, apply, check.

        Raises:
            GraphPassError: naming the pass and the first nodes at fault.
        """
        name = type(self).__name__
        _refuse(f"{name} cannot run", self.requires(model))
        outputs = [value.name for value in model.graph.outputs]
        modified = self.apply(model)
        _refuse(f"{name} broke its promise", self.ensures(model))
        found = [value.name for value in model.graph.outputs]
        _refuse(f"{name} renamed outputs", [f"expected {outputs}, got {found}"] if found != outputs else [])
        logger.debug("%s: %s", name, "changed" if modified else "nothing to do")
        return modified


def run_passes(model: ir.Model, passes: Sequence[GraphPass]) -> ir.Model:
    """Run `passes` in order on `model`, drop what nothing reads any more, and return it."""
    for graph_pass in passes:
        graph_pass(model)
    ir_passes.RemoveUnusedNodesPass()(model)
    return model


def _refuse(what: str, problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise GraphPassError(
            f"{what}: {'; '.join(found[:3])}{more}. Export with the open_clip model unchanged, "
            "or report the model name with this message."
        )
