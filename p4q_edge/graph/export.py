"""Export a folded classifier as Q/DQ ONNX: one graph with FP16 and one with FP32 remainder, one set of weights."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from p4q_edge.graph.lint_rules import check_lint, lint
from p4q_edge.graph.passes.align_classes import AlignClasses
from p4q_edge.graph.passes.base import GraphPassError, run_passes
from p4q_edge.graph.passes.class_token import ClassTokenByPad
from p4q_edge.graph.passes.drop_expand import DropExpand
from p4q_edge.graph.passes.fold_constants import FoldConstants
from p4q_edge.graph.passes.fragments import StoreWeightsAsFp16, split_shared
from p4q_edge.graph.passes.gelu_in_parts import GeluInParts
from p4q_edge.graph.passes.insert_qdq import InsertQdq
from p4q_edge.graph.passes.linear_to_matmul import LinearToMatMul
from p4q_edge.graph.passes.name_nodes import NameNodes
from p4q_edge.graph.passes.quantize_attention import QuantizeAttention
from p4q_edge.graph.passes.quantize_convolutions import ConvolutionsFromIntegers, QuantizeConvolutions
from p4q_edge.graph.passes.relu_as_max import ReluAsMax
from p4q_edge.graph.passes.rescale_small_weights import RescaleSmallWeights
from p4q_edge.graph.passes.select_token_early import SelectTokenEarly
from p4q_edge.graph.passes.sequence_first import SequenceFirst
from p4q_edge.graph.passes.to_fp16 import ToFp16
from p4q_edge.graph.passes.unbind_to_split import UnbindToSplit
from p4q_edge.graph.proof.verdict import KINDS, Proof, SourceModule, candidate_graphs, prove_graphs
from p4q_edge.graph.quantization import (
    E4M3,
    AttentionQuantization,
    ConvQuantization,
    GridQuantization,
    LinearQuantization,
)
from p4q_edge.graph.trace import trace_float_graph
from p4q_edge.quant import (
    GRIDS,
    Phase,
    QuantLinear,
    quant_convs,
    quant_linears,
    quant_products,
    running_in,
    softmax_scale,
    tensor_grids,
)
from p4q_edge.runtime.artifacts import GraphParity
from p4q_edge.runtime.choices import GraphKind
from p4q_edge.runtime.errors import QualityGateError
from p4q_edge.runtime.machine import give_back_memory
from p4q_edge.runtime.progress import task
from p4q_edge.runtime.statistics import FULL_BITS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportedGraphs:
    """What the bundle stores of an exported classifier.

    Attributes:
        fp16, fp32: ModelProto bytes without the shared initializers; empty for a graph that could not be made.
        weights: ModelProto bytes with nothing but these; `fp16 + weights` and `fp32 + weights` are complete.
        parity: least cosine of each output and top-1 agreement with the fake-quantized module, and the noise of the
            module's own roundings.
        unsound: why a graph does not compute what the module computes, by kind; empty where both do.
        narrowest_bits: of the narrowest quantized input.
    """

    fp16: bytes
    fp32: bytes
    weights: bytes
    parity: GraphParity
    unsound: dict[GraphKind, str]
    narrowest_bits: int


def linear_quantizations(model: nn.Module) -> dict[str, LinearQuantization]:
    """Return the integers and scales of each quantized linear by module path.

    A linear that no calibration image reached stays in high precision.
    """
    found = {}
    for path, linear in quant_linears(model).items():
        if not linear.calibrated:
            continue
        found[path] = LinearQuantization(
            weight=_stored_weight(linear),
            weight_scale=linear.weight_scale.detach().cpu().numpy().copy(),
            weight_bits=linear.scheme.weight_bits,
            input_scale=float(linear.input_scale),
            input_bits=linear.scheme.activation_bits,
        )
    return found


def _stored_weight(linear: QuantLinear) -> NDArray[Any]:
    """Return what the graph stores: int8 or float8_e4m3fn (out, in)."""
    if not linear.scheme.in_fp8:
        return linear.integer_weight().cpu().numpy()
    # PyTorch hands no such numbers to NumPy, but their bytes.
    found: NDArray[Any] = linear.float8_weight().cpu().view(torch.uint8).numpy().view(E4M3)
    return found


def attention_quantizations(model: nn.Module) -> dict[str, AttentionQuantization]:
    """Return the scales of each attention with quantized products by module path."""
    return {
        path: AttentionQuantization(
            query=float(products.query.scale),
            key=float(products.key.scale),
            softmax=softmax_scale(products.bits),
            value=float(products.value.scale),
            bits=products.bits,
        )
        for path, products in quant_products(model).items()
    }


def conv_quantizations(model: nn.Module) -> dict[str, ConvQuantization]:
    """Return the integers and scales of each quantized convolution by module path."""
    return {
        path: ConvQuantization(
            weight=conv.integer_weight().cpu().numpy(),
            weight_scale=conv.weight_scale.detach().cpu().numpy().copy(),
            weight_bits=conv.scheme.weight_bits,
            input_scale=float(conv.input.scale),
            input_bits=conv.scheme.activation_bits,
        )
        for path, conv in quant_convs(model).items()
        if conv.calibrated
    }


def grid_quantizations(model: nn.Module) -> tuple[GridQuantization, ...]:
    """Return the grids of tensors that convolutions share with additions and pools."""
    return tuple(
        GridQuantization(
            conv=path.partition(f"{GRIDS}.")[0] + grid.conv,
            via=grid.via,
            scale=float(grid.scale),
            bits=grid.scheme.activation_bits,
        )
        for path, grid in tensor_grids(model).items()
        if grid.used
    )


@dataclass(frozen=True, kw_only=True)
class Quantizations:
    """All that is quantized in a model, by module path."""

    linears: Mapping[str, LinearQuantization]
    attentions: Mapping[str, AttentionQuantization] = field(default_factory=dict)
    convs: Mapping[str, ConvQuantization] = field(default_factory=dict)
    grids: tuple[GridQuantization, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> "Quantizations":
        """Collect them from a calibrated model."""
        return cls(
            linears=linear_quantizations(model),
            attentions=attention_quantizations(model),
            convs=conv_quantizations(model),
            grids=grid_quantizations(model),
        )

    @property
    def narrowest_bits(self) -> int:
        """Of all quantized inputs."""
        widths = [linear.input_bits for linear in self.linears.values() if linear.block is None]
        widths += [attention.bits for attention in self.attentions.values()]
        widths += [conv.input_bits for conv in self.convs.values()]
        return min(widths, default=FULL_BITS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Graphs:
    """The complete graphs of one model.

    Attributes:
        fp16: for TensorRT, with FP16 remainder; None where a pass could not make it.
        fp32: for CPUs, with FP32 remainder and convolutions in float.
        placed: where there are quantized convolutions, `fp16` before its remainder was turned into FP16: the same
            quantized model in float arithmetic. It is compared, not stored.
        failure: why there is no `fp16`.
    """

    fp16: onnx.ModelProto | None
    fp32: onnx.ModelProto
    placed: onnx.ModelProto | None
    failure: str = ""

    @property
    def stored(self) -> dict[GraphKind, onnx.ModelProto]:
        """The graphs that there are, by kind."""
        return {"fp32": self.fp32} if self.fp16 is None else {"fp16": self.fp16, "fp32": self.fp32}


def build_graphs(traced: ir.Model, quantized: Quantizations) -> Graphs:
    """Return the graphs of a traced model, which is changed.

    Raises:
        GraphPassError: a pass that the graph for CPUs needs cannot handle the model.
    """
    passes = [
        LinearToMatMul(),
        FoldConstants(),
        DropExpand(),
        UnbindToSplit(),
        ClassTokenByPad(),
        InsertQdq(quantized.linears),
        FoldConstants(),
        SelectTokenEarly(),
    ]
    model = run_passes(traced, passes)
    products = QuantizeAttention(quantized.attentions)
    half, placed, failure = None, None, ""
    try:
        half, placed = _for_tensorrt(model.clone(), quantized)
    except GraphPassError as error:
        failure = str(error)
    last = [ReluAsMax(), StoreWeightsAsFp16(), NameNodes()]
    single = run_passes(model, [ConvolutionsFromIntegers(quantized.convs), products, *last])
    return Graphs(fp16=half, fp32=_to_proto(single), placed=placed, failure=failure)


def _for_tensorrt(model: ir.Model, quantized: Quantizations) -> tuple[onnx.ModelProto, onnx.ModelProto | None]:
    """Return the graph with FP16 remainder, and the same before that, where there are convolutions."""
    convolutions = QuantizeConvolutions(quantized.convs, quantized.grids)
    layout = [convolutions, RescaleSmallWeights(), SequenceFirst(), AlignClasses(), GeluInParts()]
    model = run_passes(model, [*layout, QuantizeAttention(quantized.attentions)])
    placed = _to_proto(run_passes(model.clone(), [NameNodes()])) if quantized.convs else None
    return _to_proto(run_passes(model, [ToFp16(), NameNodes()])), placed


def _to_proto(model: ir.Model) -> onnx.ModelProto:
    proto = ir.to_proto(model)
    # Every reader infers them again, and they would describe initializers that the fragment holds.
    del proto.graph.value_info[:]
    return proto


def export_classifier(model: nn.Module, images: NDArray[np.uint8]) -> ExportedGraphs:
    """Export a calibrated classifier and compare it with itself in ONNX Runtime.

    Args:
        model: uint8 (N, 3, H, W) -> (logits, embedding, features), its linears `QuantLinear`.
        images: uint8 (N, 3, H, W) to compare on, at least 16 for a fair view of the noise.

    Raises:
        QualityGateError: neither graph keeps the lint rules and computes what the fake-quantized module does.
        GraphPassError: a pass that the graph for CPUs needs cannot handle the model.
    """
    quantized = Quantizations.of(model)
    with task("trace the graph", total=1):
        stored = _stored_graphs(model, images.shape[2:], quantized)
    give_back_memory()
    problems = stored.problems
    graphs = {kind: part + stored.weights for kind, part in stored.parts.items() if kind not in problems}
    subject = SourceModule(
        model=model,
        linears=quantized.linears,
        convs=quantized.convs,
        images=images,
        logit_scale=float(getattr(model, "logit_scale", 1.0)),
    )
    proof = prove_graphs(subject, candidate_graphs(graphs, placed=stored.placed), known=problems)
    check_proof(proof)
    return ExportedGraphs(
        **dict.fromkeys(KINDS, b"") | stored.parts,
        weights=stored.weights,
        parity=proof.parity,
        unsound=dict(proof.problems),
        narrowest_bits=quantized.narrowest_bits,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _StoredGraphs:
    """Graphs as a bundle stores them, by kind, their shared weights, and what is known to be wrong with them."""

    parts: dict[GraphKind, bytes]
    weights: bytes
    placed: bytes | None
    problems: dict[GraphKind, str]


def _stored_graphs(model: nn.Module, image_size: Sequence[int], quantized: Quantizations) -> _StoredGraphs:
    """Trace a model and return its graphs as bytes alone: beside them, what they were made of would fill memory."""
    with running_in(model, Phase.TRACED):
        traced = trace_float_graph(model, image_size)
    protos = build_graphs(traced, quantized)
    problems: dict[GraphKind, str] = {} if protos.fp16 is not None else {"fp16": protos.failure}
    problems |= _lint_problems(protos.stored, quantized_attention=bool(quantized.attentions))
    placed = None if protos.placed is None else protos.placed.SerializeToString()
    parts, weights = split_shared([*protos.stored.values()])
    by_kind = dict(zip(protos.stored, parts, strict=True))
    return _StoredGraphs(parts=by_kind, weights=weights, placed=placed, problems=problems)


def _lint_problems(graphs: Mapping[GraphKind, onnx.ModelProto], *, quantized_attention: bool) -> dict[GraphKind, str]:
    """Return which graphs break a lint rule, and which rule."""
    found: dict[GraphKind, str] = {}
    for kind, graph in graphs.items():
        try:
            check_lint(lint(graph, quantized_attention=quantized_attention))
        except QualityGateError as error:
            found[kind] = str(error)
    return found


def check_proof(proof: Proof) -> None:
    """Warn of a graph that is not sound.

    Raises:
        QualityGateError: no graph is.
    """
    if len(proof.problems) == len(KINDS):
        raise QualityGateError(
            f"no exported graph computes what the fake-quantized model computes: {_listed(proof.problems)}. This is a "
            "fault of the exporter, or the model leaves the range of its numbers; report it with this line."
        )
    for kind, problem in proof.problems.items():
        logger.warning(
            "the graph with %s remainder is not sound: %s. %s; everything else goes on.",
            kind.upper(),
            problem,
            "No TensorRT engine can be built from this bundle" if kind == "fp16" else "No CPU engine can be built",
        )


def _listed(problems: Mapping[GraphKind, str]) -> str:
    return "; ".join(f"that with {kind.upper()} remainder: {problem}" for kind, problem in problems.items())
