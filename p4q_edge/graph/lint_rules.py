"""Check an exported graph against what TensorRT 10.3 to 11.4 and ONNX Runtime accept and fuse.

Most of these mistakes parse: they cost a fusion or digits in silence, which is why they are errors here.
"""

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from p4q_edge.graph.edit import POOLS, constant, input_of, nodes_of, only_user
from p4q_edge.graph.passes.to_fp16 import image_region, norm_region, small_scale_region
from p4q_edge.graph.quantization import E4M3, OPSET_OF_BLOCKS
from p4q_edge.quant import affine, fuses_in_int8
from p4q_edge.runtime.artifacts import OPERATORS
from p4q_edge.runtime.errors import QualityGateError

OPSETS = range(17, 21)
OPSETS_OF_FP8 = range(19, 21)
MAX_IR_VERSION = 10
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
_GRID = frozenset({"Clip", "QuantizeLinear", "DequantizeLinear", "Cast"})
_NEWER = frozenset({"Gelu", "Attention", "RMSNormalization", "RotaryEmbedding", "Swish"})
_WIDE = frozenset({"MatMul", "Gemm", "Conv", "LayerNormalization", "Softmax", "Gelu", "Erf", "Sigmoid", "Tanh"})


@dataclass(frozen=True, kw_only=True)
class LintFinding:
    """One broken rule.

    Attributes:
        rule: its name, a key of `RULES`.
        node: name of the node or value at fault, "" for the model itself.
        message: what was expected and what came.
    """

    rule: str
    node: str
    message: str


@dataclass(frozen=True, kw_only=True)
class LintedModel:
    """The model under check and what is asked of it."""

    model: ir.Model
    quantized_attention: bool

    @property
    def graph(self) -> ir.Graph:
        return self.model.graph


Violation = tuple[str, str]


def lint(model: onnx.ModelProto, *, quantized_attention: bool = False) -> list[LintFinding]:
    """Return every broken rule of a complete model.

    Args:
        model: with its shared weights.
        quantized_attention: allow Q/DQ on the attention products.
    """
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    subject = LintedModel(model=ir.from_proto(inferred), quantized_attention=quantized_attention)
    return [
        LintFinding(rule=name, node=node, message=message)
        for name, rule in RULES.items()
        for node, message in rule(subject)
    ]


def check_lint(findings: Iterable[LintFinding]) -> None:
    """Raise QualityGateError when there is any finding."""
    found = list(findings)
    if found:
        first = found[0]
        raise QualityGateError(
            f"lint: {first.rule} at {first.node or 'the model'}: {first.message}"
            f"{f' (and {len(found) - 1} more)' if len(found) > 1 else ''}. "
            "`p4q-edge inspect --lint` lists them; export again with this version."
        )


def _opset(subject: LintedModel) -> Iterator[Violation]:
    kinds = {value.dtype for value in subject.graph.initializers.values()}
    wanted: Container[int]
    wanted, said = OPSETS, "17 to 20 of the default domain"
    if ir.DataType.INT4 in kinds:
        wanted, said = (OPSET_OF_BLOCKS,), f"{OPSET_OF_BLOCKS} beside INT4 weights"
    elif ir.DataType.FLOAT8E4M3FN in kinds:
        wanted, said = OPSETS_OF_FP8, "19 or 20 beside FP8 numbers"
    for domain, version in subject.model.opset_imports.items():
        if domain or version not in wanted:
            yield "", f"expected opset {said}, got {domain or 'ai.onnx'} {version}"
    if subject.model.ir_version > MAX_IR_VERSION:
        yield "", f"expected IR version at most {MAX_IR_VERSION}, got {subject.model.ir_version}"


def _uint8_input(subject: LintedModel) -> Iterator[Violation]:
    for value in subject.graph.inputs:
        if value.dtype is ir.DataType.UINT8:
            for node in value.consumers():
                if node.op_type != "Cast":
                    yield str(node.name), f"expected the uint8 input to feed Cast alone, got {node.op_type}"


def _zero_point(subject: LintedModel) -> Iterator[Violation]:
    for node in _qdq(subject.graph):
        value = node.inputs[2] if len(node.inputs) > 2 else None
        zero = constant(value)
        if value is None and input_of(node, 0).dtype is ir.DataType.INT4:
            continue
        if value is None or zero is None:
            yield str(node.name), "expected a constant int8 zero point, got none"
        elif zero.dtype not in (np.int8, E4M3) or zero.astype(np.float32).any():
            yield str(node.name), f"expected an int8 or FP8 zero point of 0, got {zero.dtype} up to {zero.max()}"
        elif len(list(value.uses())) > 1:
            yield str(node.name), f"expected a zero point of its own, {value.name} is shared"


def _scale(subject: LintedModel) -> Iterator[Violation]:
    for node in _qdq(subject.graph):
        scale, data = constant(input_of(node, 1)), input_of(node, 0)
        if scale is None:
            yield str(node.name), "expected a constant scale, got a computed one"
            continue
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            yield str(node.name), "expected positive finite scales"
        if scale.dtype == np.float16 and float(scale.min()) < affine.SMALLEST_NORMAL_FP16:
            yield str(node.name), f"expected FP16 scales of at least 6.1e-5, got {float(scale.min()):.3g}"
        restored = node.op_type == "DequantizeLinear"
        dtype = node.outputs[0].dtype if restored else data.dtype
        if dtype is not None and dtype.numpy() != scale.dtype:
            yield str(node.name), f"expected scale and tensor of one type, got {scale.dtype} and {dtype.name}"


def _granularity(subject: LintedModel) -> Iterator[Violation]:
    for node in _qdq(subject.graph):
        scale = constant(input_of(node, 1))
        if constant(input_of(node, 0)) is None and scale is not None and scale.size != 1:
            yield str(node.name), f"expected one scale for an activation, got {scale.size}"


def _weight(subject: LintedModel) -> Iterator[Violation]:
    for node in nodes_of(subject.graph, "QuantizeLinear"):
        if constant(input_of(node, 0)) is not None:
            yield str(node.name), "expected the weight stored as int8, got QuantizeLinear on a constant"
    for node in nodes_of(subject.graph, "DequantizeLinear"):
        weight = constant(input_of(node, 0))
        if weight is None:
            continue
        if input_of(node, 0).dtype is ir.DataType.INT4:
            yield from _blocks(node)
            continue
        if weight.dtype not in (np.int8, E4M3):
            yield str(node.name), f"expected an int8, int4 or FP8 weight, got {weight.dtype}"
        elif weight.dtype == E4M3 and not np.isfinite(weight.astype(np.float32)).all():
            yield str(node.name), "expected FP8 weights that are numbers, got NaN"
        scale, axis = constant(input_of(node, 1)), node.attributes.get_int("axis", 1) % max(weight.ndim, 1)
        for user, _ in node.outputs[0].uses():
            expected = _output_channel(user, weight.ndim)
            if scale is not None and scale.size > 1 and axis != expected:
                yield str(node.name), f"expected scales along the output channel, axis {expected}, got axis {axis}"


def _blocks(node: ir.Node) -> Iterator[Violation]:
    """Yield what keeps a product from reading INT4 integers itself, or makes a compiler read other blocks."""
    (inputs, channels), scale = input_of(node, 0).const_value.numpy().shape, constant(input_of(node, 1))  # type: ignore[union-attr]
    axis, size = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    if axis != 0:
        yield str(node.name), f"expected blocks along the inputs, axis 0, got axis {axis}"
    elif size < affine.SMALLEST_BLOCK or inputs % size or inputs <= size:
        yield str(node.name), f"expected at least two whole blocks of {inputs} inputs, got blocks of {size}"
    elif scale is not None and scale.shape != (inputs // size, channels):
        yield str(node.name), f"expected scales {(inputs // size, channels)}, got {scale.shape}"
    for user, _ in node.outputs[0].uses():
        if user.op_type != "MatMul":
            yield str(node.name), f"expected a MatMul behind an INT4 weight, got {user.op_type}"


def _output_channel(reader: ir.Node, rank: int) -> int:
    transposed = reader.op_type == "Gemm" and reader.attributes.get_int("transB", 0) == 1
    return 0 if reader.op_type in {"Conv", "Transpose"} or transposed else rank - 1


def _pairs(subject: LintedModel) -> Iterator[Violation]:
    for node in nodes_of(subject.graph, "QuantizeLinear"):
        for user, _ in node.outputs[0].uses():
            if user.op_type != "DequantizeLinear":
                yield str(node.name), f"expected DequantizeLinear behind QuantizeLinear, got {user.op_type}"


def _placement(subject: LintedModel) -> Iterator[Violation]:
    for node in nodes_of(subject.graph, "DequantizeLinear"):
        if constant(input_of(node, 0)) is not None:
            continue
        for user in _readers(node):
            if user.op_type == "Add" and not _adds_to_convolution(user):
                yield str(node.name), f"expected {user.name} to add a convolution's result to the quantized tensor"
            elif user.op_type not in _PRODUCTS | POOLS | {"Add"}:
                yield (
                    str(node.name),
                    f"expected a linear layer, convolution, residual or pool behind Q/DQ, got {user.op_type}",
                )
            elif user.op_type not in _PRODUCTS:
                continue
            elif not subject.quantized_attention and not _has_constant_weight(user):
                yield str(node.name), f"expected attention products in high precision, {user.name} is quantized"


def _adds_to_convolution(addition: ir.Node) -> bool:
    """Return whether one side is restored from INT8, and the other the result of a convolution in high precision."""
    others = [value.producer() for value in addition.inputs if value is not None and not _is_restored(value)]
    return len(others) == 1 and others[0] is not None and _is_convolution(others[0])


def _is_convolution(node: ir.Node) -> bool:
    if node.op_type in {"Mul", "Cast"}:  # a lifted weight scale, and float32 scales in an FP16 graph
        before = input_of(node, 0).producer()
        return before is not None and _is_convolution(before)
    return node.op_type == "Conv"


def _one_format(subject: LintedModel) -> Iterator[Violation]:
    """Yield products of which one operand alone is FP8: there is no kernel for these."""
    for node in subject.graph:
        if node.op_type not in _PRODUCTS:
            continue
        kinds = {_restored_from(input_of(node, index)) for index in (0, 1)}
        if ir.DataType.FLOAT8E4M3FN in kinds and len(kinds) > 1:
            others = sorted("none" if kind is None else kind.name for kind in kinds)
            yield str(node.name), f"expected FP8 on both sides of a product or on none, got {' and '.join(others)}"


def _restored_from(value: ir.Value) -> ir.DataType | None:
    """Return the type of the numbers that a value was restored from; None where it was not."""
    node = value.producer()
    while node is not None and node.op_type in {"Cast", "Transpose"}:
        node = input_of(node, 0).producer()
    restored = node is not None and node.op_type == "DequantizeLinear"
    return input_of(node, 0).dtype if restored and node is not None else None


def _batch_norm(subject: LintedModel) -> Iterator[Violation]:
    for node in nodes_of(subject.graph, "BatchNormalization"):
        yield str(node.name), "expected BatchNormalization folded into the convolution before it, got the operator"


def _attention(subject: LintedModel) -> Iterator[Violation]:
    for softmax in nodes_of(subject.graph, "Softmax"):
        scores, mixed = input_of(softmax, 0).producer(), only_user(softmax.outputs[0])
        while mixed is not None and mixed.op_type in _GRID:
            mixed = only_user(mixed.outputs[0])
        if scores is None or mixed is None or not scores.op_type == mixed.op_type == "MatMul":
            continue
        quantized = [_is_restored(input_of(product, index)) for product in (scores, mixed) for index in (0, 1)]
        if not any(quantized):
            continue
        if not all(quantized):
            yield str(softmax.name), f"expected all or none of query, key, softmax, value quantized, got {quantized}"
        query, key = input_of(scores, 0).shape, input_of(scores, 1).shape
        if query is None or key is None:
            continue
        asked, size, tokens = query[-2], key[-2], key[-1]
        if asked == 1:
            yield str(softmax.name), "expected FP16 for the attention of one token, which has no INT8 form"
        elif isinstance(size, int) and isinstance(tokens, int) and not fuses_in_int8(head_size=size, tokens=tokens):
            yield str(softmax.name), f"expected FP16 for heads of {size} and {tokens} tokens, which do not fuse in INT8"


def _is_restored(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.op_type == "Cast":
        node = input_of(node, 0).producer()
    return node is not None and node.op_type == "DequantizeLinear"


def _readers(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the readers of a node, looking through Cast."""
    for user, _ in node.outputs[0].uses():
        if user.op_type == "Cast":
            yield from _readers(user)
        else:
            yield user


def _has_constant_weight(node: ir.Node) -> bool:
    weight = input_of(node, 1)
    while (producer := weight.producer()) is not None:
        if producer.op_type not in {"DequantizeLinear", "Cast", "Transpose"}:
            return False
        weight = input_of(producer, 0)
    return constant(weight) is not None


def _layer_norm(subject: LintedModel) -> Iterator[Violation]:
    for node in nodes_of(subject.graph, "Sqrt"):
        inner = input_of(node, 0).producer()
        sources = [value.producer() for value in inner.inputs if value is not None] if inner is not None else []
        if any(source is not None and source.op_type == "ReduceMean" for source in sources):
            yield str(node.name), "expected one LayerNormalization, got its parts"


def _remainder(subject: LintedModel) -> Iterator[Violation]:
    if not _is_fp16(subject.graph):
        return
    exempt = image_region(subject.graph) | norm_region(subject.graph) | small_scale_region(subject.graph)
    for node in subject.graph:
        wide = any(value.dtype is ir.DataType.FLOAT for value in node.outputs)
        if node.op_type in _WIDE and wide and node not in exempt:
            yield str(node.name), f"expected FP16 in an FP16 graph, {node.op_type} computes in float32"


def _is_fp16(graph: ir.Graph) -> bool:
    return any(
        value.dtype is ir.DataType.FLOAT16
        for node in graph
        if node.op_type in _PRODUCTS | {"LayerNormalization"}
        for value in node.outputs
    )


def _operators(subject: LintedModel) -> Iterator[Violation]:
    for node in subject.graph:
        if node.domain not in {"", "ai.onnx"}:
            yield str(node.name), f"expected ONNX operators only, got {node.domain}.{node.op_type}"
        if node.op_type in _NEWER and _is_fp16(subject.graph):
            yield str(node.name), f"expected operators that TensorRT 10.3 reads, got {node.op_type}"
        if node.op_type in {"Shape", "NonZero", "Loop", "If", "Scan"}:
            yield str(node.name), f"expected shapes fixed but for the batch, got {node.op_type}"
        elif node.op_type not in OPERATORS | _NEWER:
            yield str(node.name), f"expected operators that a bundle may have, got {node.op_type}"


def _qdq(graph: ir.Graph) -> Iterator[ir.Node]:
    return nodes_of(graph, "QuantizeLinear", "DequantizeLinear")


RULES: dict[str, Callable[[LintedModel], Iterator[Violation]]] = {
    "opset": _opset,
    "uint8-input": _uint8_input,
    "operators": _operators,
    "zero-point": _zero_point,
    "scale": _scale,
    "activation-per-tensor": _granularity,
    "weight-axis": _weight,
    "pairs": _pairs,
    "placement": _placement,
    "one-format": _one_format,
    "attention": _attention,
    "layer-norm": _layer_norm,
    "batch-norm": _batch_norm,
    "fp16-remainder": _remainder,
}
"""Each rule by name; a rule yields the node at fault and what was expected."""
