"""Name nodes and values after the modules they came from, and forget how they were traced."""

from collections import Counter

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

from p4q_edge.graph.edit import module_path
from p4q_edge.graph.passes.base import GraphPass


class NameNodes(GraphPass):
    """Call each node `<module path>/<operator>` and its values after it.

    Engine inspectors and error messages show these names. The tracer's metadata goes: it holds stack traces
    with the paths of the machine that exported. Graph inputs, outputs and initializers keep their names.
    """

    def apply(self, model: ir.Model) -> bool:
        graph = model.graph
        taken: Counter[str] = Counter()
        fixed = {value.name for value in (*graph.inputs, *graph.outputs)} | set(graph.initializers)
        for node in graph:
            base = f"{_origin(node)}/{node.op_type}"
            taken[base] += 1
            node.name = base if taken[base] == 1 else f"{base}_{taken[base]}"
            for index, output in enumerate(node.outputs):
                if output.name not in fixed:
                    output.name = node.name if index == 0 else f"{node.name}:{index}"
        ir_passes.ClearMetadataAndDocStringPass()(model)
        for value in graph.initializers.values():
            value.metadata_props.clear()
        model.metadata_props.clear()
        graph.metadata_props.clear()
        return True


def _origin(node: ir.Node) -> str:
    path = module_path(node)
    if path.startswith("_"):  # the exporter's mark for a shape that belongs to no module
        return "model"
    before = next((value.producer() for value in node.inputs if value is not None), None)
    # Some rewrites of the exporter lose the scope: the node then belongs to what it reads.
    return path or (module_path(before) if before is not None else "") or "model"
