"""A graph pass: one change of an ONNX graph, with what it needs and what it promises.

Passes are `onnx_ir` passes: they edit a model in place, `onnx_ir` checks pre- and postconditions around them and runs
them in sequence. What is ours are the messages, which name the nodes at fault.
"""

import logging
from abc import abstractmethod
from collections.abc import Iterable, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

from p4q_edge.runtime.errors import P4QEdgeError

logger = logging.getLogger(__name__)


class GraphPassError(P4QEdgeError, ir.passes.PreconditionError, ir.passes.PostconditionError):
    """A graph that a pass cannot handle, or that breaks the pass's own promise."""


class GraphPass(ir.passes.InPlacePass):
    """One named change of a graph."""

    def obstacles(self, model: ir.Model) -> Iterable[str]:
        """Yield what keeps this pass from running; nothing when it may run."""
        return ()

    @abstractmethod
    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place and return whether anything changed."""

    def broken_promises(self, model: ir.Model) -> Iterable[str]:
        """Yield what contradicts this pass's promise; nothing when it holds."""
        return ()

    def requires(self, model: ir.Model) -> None:
        """Raise `GraphPassError`, naming the pass and the first nodes at fault, unless it may run."""
        _refuse(f"{type(self).__name__} cannot run", self.obstacles(model))

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass; it must keep the names of the outputs.

        Raises:
            GraphPassError: it renamed one.
        """
        name = type(self).__name__
        outputs = [value.name for value in model.graph.outputs]
        modified = self.apply(model)
        found = [value.name for value in model.graph.outputs]
        _refuse(f"{name} renamed outputs", [f"expected {outputs}, got {found}"] if found != outputs else [])
        logger.debug("%s: %s", name, "changed" if modified else "nothing to do")
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Raise `GraphPassError`, naming the pass and the first nodes at fault, unless its promise holds."""
        _refuse(f"{type(self).__name__} broke its promise", self.broken_promises(model))


def run_passes(model: ir.Model, passes: Sequence[GraphPass]) -> ir.Model:
    """Run `passes` in order on `model`, drop what nothing reads any more, and return it.

    Raises:
        GraphPassError: a pass cannot run, or broke its promise.
    """
    try:
        return ir.passes.Sequential(*passes, ir_passes.RemoveUnusedNodesPass())(model).model
    except ir.passes.PassError as error:
        # The sequence tells which pass; so does our own message, without a stack of wrappers.
        if isinstance(error.__cause__, P4QEdgeError):
            raise error.__cause__ from None
        raise


def _refuse(what: str, problems: Iterable[str]) -> None:
    found = list(problems)
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise GraphPassError(
            f"{what}: {'; '.join(found[:3])}{more}. Export with the open_clip model unchanged, "
            "or report the model name with this message."
        )
