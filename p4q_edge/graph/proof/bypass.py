"""A graph without the rounding of its activations: what is left of it has to equal the module to float accuracy."""

import onnx

_HALF = ".fp16"


def without_activation_grids(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which nothing is quantized but weights.

    Each QuantizeLinear with its DequantizeLinear is bypassed, and the Clip that belongs to a grid below 8 bits.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    producers = {output: node for node in copy.graph.node for output in node.output}
    source_of: dict[str, str] = {}
    bypassed = set()
    for node in copy.graph.node:
        quantize = producers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        source = quantize.input[0]
        clip = producers.get(source)
        if (
            clip is not None
            and clip.op_type == "Clip"
            and clip.input[1].removesuffix(_HALF) == f"{grid_of(quantize)}_low"
        ):
            source = clip.input[0]
            bypassed.add(clip.output[0])
        source_of[node.output[0]] = source
        bypassed |= {node.output[0], quantize.output[0]}
    for node in copy.graph.node:
        for index, name in enumerate(node.input):
            while name in source_of:
                name = source_of[name]
            node.input[index] = name
    kept = [node for node in copy.graph.node if node.output[0] not in bypassed]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return copy


def grid_of(quantize: onnx.NodeProto) -> str:
    """Return what the constants of a QuantizeLinear are named after: `<module path>.<tensor>`."""
    scale: str = quantize.input[1]
    return scale.removesuffix(_HALF).removesuffix("_scale")
