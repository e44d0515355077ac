"""What gives and what reads each value of a graph."""

import onnx


class GraphIndex:
    """Lookup of a graph by the names of its values.

    Attributes:
        tensors: initializers by name.
        producers: the node that gives a value.
        readers: the nodes that read a value, in their order.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {output: node for node in model.graph.node for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
