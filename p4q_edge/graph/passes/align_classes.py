"""Round the number of classes up to what tensor cores want."""

import numpy as np
import onnx_ir as ir

from p4q_edge.graph.edit import add_constant, constant, input_of, name_of, operation
from p4q_edge.graph.passes.base import GraphPass

ALIGNMENT = 8
"""FP16 tensor-core products read rows of sixteen bytes."""


class AlignClasses(GraphPass):
    """Pad the class matrix with zero columns to the next multiple of eight, and slice them off again.

    At least one column is added: the Slice keeps NVIDIA's compiler from drawing the Cast of the logits into the
    product, which would turn a library kernel into one that is generated on the device.
    """

    def apply(self, model: ir.Model) -> bool:
        product = _class_product(model.graph)
        if product is None:
            return False
        matrix = constant(input_of(product, 1))
        assert matrix is not None  # _class_product saw one
        classes = matrix.shape[1]
        padding = ALIGNMENT - classes % ALIGNMENT
        name, output = name_of(product.outputs[0]), product.outputs[0]
        padded = np.pad(matrix, ((0, 0), (0, padding)))
        product.replace_input_with(1, add_constant(model.graph, f"{name}.class_matrix", padded))
        bounds = [
            add_constant(model.graph, f"{name}.{end}", np.array([bound], np.int64))
            for end, bound in (("first_class", 0), ("end_class", classes), ("class_axis", 1))
        ]
        users = list(output.uses())
        kept = operation("Slice", (output, *bounds), f"{name}.classes", output)
        kept.metadata_props.update(product.metadata_props)
        model.graph.insert_after(product, kept)
        for user, index in users:
            user.replace_input_with(index, kept.outputs[0])
        if output.shape is not None:
            output.shape = ir.Shape([output.shape[0], classes + padding])
        return True


def _class_product(graph: ir.Graph) -> ir.Node | None:
    """Return the product that computes the logits, None when scaling and bias do not follow it directly."""
    logits = [value for value in graph.outputs if value.name == "logits"]
    node = logits[0].producer() if logits else None
    while node is not None and node.op_type in {"Mul", "Add", "Cast"}:
        node = input_of(node, 0).producer()
    if node is None or node.op_type != "MatMul" or node.outputs[0].is_graph_output():
        return None
    matrix = constant(input_of(node, 1))
    return node if matrix is not None and matrix.ndim == 2 else None
