"""Export a folded classifier as Q/DQ ONNX: one graph with FP16 and one with FP32 remainder, one set of weights."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

from p4q_edge.graph.analysis.linears import differing_linears
from p4q_edge.graph.lint_rules import check_lint, lint
from p4q_edge.graph.parity import compare, run_in_onnxruntime
from p4q_edge.graph.passes.align_classes import AlignClasses
from p4q_edge.graph.passes.base import run_passes
from p4q_edge.graph.passes.class_token import ClassTokenByPad
from p4q_edge.graph.passes.drop_expand import DropExpand
from p4q_edge.graph.passes.fold_constants import FoldConstants
from p4q_edge.graph.passes.fragments import StoreWeightsAsFp16, split_shared
from p4q_edge.graph.passes.gelu_in_parts import GeluInParts
from p4q_edge.graph.passes.insert_qdq import InsertQdq
from p4q_edge.graph.passes.linear_to_matmul import LinearToMatMul
from p4q_edge.graph.passes.name_nodes import NameNodes
from p4q_edge.graph.passes.quantize_attention import QuantizeAttention
from p4q_edge.graph.passes.rescale_small_weights import RescaleSmallWeights
from p4q_edge.graph.passes.select_token_early import SelectTokenEarly
from p4q_edge.graph.passes.sequence_first import SequenceFirst
from p4q_edge.graph.passes.to_fp16 import ToFp16
from p4q_edge.graph.passes.unbind_to_split import UnbindToSplit
from p4q_edge.graph.quantization import AttentionQuantization, LinearQuantization
from p4q_edge.graph.trace import OUTPUTS, trace_float_graph
from p4q_edge.quant import Phase, quant_linears, quant_products, running_in, softmax_scale
from p4q_edge.runtime.errors import QualityGateError
from p4q_edge.runtime.statistics import rounding_limits as tolerance

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportedGraphs:
    """What the bundle stores of an exported classifier.

    Attributes:
        fp16, fp32: ModelProto bytes without the shared initializers.
        weights: ModelProto bytes with nothing but these; `fp16 + weights` and `fp32 + weights` are complete.
        parity: least cosine of each output and top-1 agreement with the fake-quantized module, keyed
            ``<graph>.<measure>`` with graph in fp32, fp32_unoptimized, fp16.
        narrowest_bits: of the narrowest quantized input.
    """

    fp16: bytes
    fp32: bytes
    weights: bytes
    parity: dict[str, float]
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
            weight=linear.integer_weight().cpu().numpy(),
            weight_scale=linear.weight_scale.detach().cpu().numpy().copy(),
            weight_bits=linear.scheme.weight_bits,
            input_scale=float(linear.input_scale),
            input_bits=linear.scheme.activation_bits,
        )
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


def build_graphs(
    traced: ir.Model,
    linears: Mapping[str, LinearQuantization],
    attentions: Mapping[str, AttentionQuantization] | None = None,
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return the complete graphs with FP16 and with FP32 remainder; `traced` is changed."""
    passes = [
        LinearToMatMul(),
        FoldConstants(),
        DropExpand(),
        UnbindToSplit(),
        ClassTokenByPad(),
        InsertQdq(linears),
        FoldConstants(),
        SelectTokenEarly(),
    ]
    model = run_passes(traced, passes)
    products = QuantizeAttention(attentions or {})
    layout = [RescaleSmallWeights(), SequenceFirst(), AlignClasses(), GeluInParts()]
    half = run_passes(model.clone(), [*layout, products, ToFp16(), NameNodes()])
    single = run_passes(model, [products, StoreWeightsAsFp16(), NameNodes()])
    return _to_proto(half), _to_proto(single)


def _to_proto(model: ir.Model) -> onnx.ModelProto:
    proto = ir.to_proto(model)
    # Every reader infers them again, and they would describe initializers that the fragment holds.
    del proto.graph.value_info[:]
    return proto


def reference_outputs(model: nn.Module, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Return the outputs of the fake-quantized `model` by name."""
    with torch.inference_mode(), running_in(model, Phase.QUANTIZED):
        outputs = model(torch.from_numpy(images))
    return {name: output.float().numpy() for name, output in zip(OUTPUTS, outputs, strict=True)}


def export_classifier(
    model: nn.Module, images: NDArray[np.uint8], *, least_cosine: float | None = None
) -> ExportedGraphs:
    """Export a calibrated classifier and compare it with itself in ONNX Runtime.

    Args:
        model: uint8 (N, 3, H, W) -> (logits, embedding, features), its linears `QuantLinear`.
        images: uint8 (N, 3, H, W) to compare on.
        least_cosine: the gate for every output of every graph; that of rounding at the narrowest input by default.

    Raises:
        QualityGateError: a graph breaks a lint rule, or differs from the fake-quantized module.
    """
    with running_in(model, Phase.TRACED):
        traced = trace_float_graph(model, images.shape[2:])
    linears = linear_quantizations(model)
    attentions = attention_quantizations(model)
    protos = build_graphs(traced, linears, attentions)
    check_lint(finding for proto in protos for finding in lint(proto, quantized_attention=bool(attentions)))
    check_linears(protos[1], linears)
    graphs, weights = split_shared(protos)
    fp16, fp32 = graphs
    reference = reference_outputs(model, images)
    parity: dict[str, float] = {}
    for name, graph, optimized in (("fp32", fp32, True), ("fp32_unoptimized", fp32, False), ("fp16", fp16, True)):
        found = compare(reference, run_in_onnxruntime(graph + weights, images, optimized=optimized))
        parity.update({f"{name}.{measure}": value for measure, value in found.items()})
    widths = [*(linear.input_bits for linear in linears.values()), *(a.bits for a in attentions.values())]
    narrowest = min(widths, default=tolerance.FULL_BITS)
    check_parity(parity, tolerance.least_cosine(narrowest) if least_cosine is None else least_cosine)
    return ExportedGraphs(fp16=fp16, fp32=fp32, weights=weights, parity=parity, narrowest_bits=narrowest)


def check_linears(graph: onnx.ModelProto, linears: Mapping[str, LinearQuantization]) -> None:
    """Raise QualityGateError unless the graph with FP32 remainder holds the integers and scales of the module."""
    differing = differing_linears(graph, linears)
    if differing:
        raise QualityGateError(
            f"the exported graph holds other integers or scales than the module in {len(differing)} linears, first "
            f"{differing[0]}. This is a fault of the exporter; report it with this line."
        )


def check_parity(parity: Mapping[str, float], least_cosine: float) -> None:
    """Raise QualityGateError when a cosine is below `least_cosine` or NaN."""
    for name, value in parity.items():
        if ".cosine_" in name and not value >= least_cosine:
            raise QualityGateError(
                f"parity {name} is {value:.6f}, expected at least {least_cosine:.4g}: the exported graph "
                "does not compute what the fake-quantized model computes. Calibrate again, or report it with this line."
            )
