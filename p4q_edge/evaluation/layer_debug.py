"""Where an engine diverges from its reference: the inputs and outputs of every linear, layer by layer.

Two graphs are compared operator by operator without optimization, where equal files give equal numbers; then the
engine as it runs, with its fused integer kernels, against the plain graph; then the plain graph against PyTorch.
The first comparison that finds a difference is the answer.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from p4q_edge.graph import linear_quantizations
from p4q_edge.graph.analysis import differing_linears, linear_nodes
from p4q_edge.models import device_of
from p4q_edge.quant import Phase, QuantLinear, quant_linears, running_as_cpu_graph, running_in
from p4q_edge.runtime.artifacts import Card
from p4q_edge.runtime.choices import SEVEN_BIT_PROFILES
from p4q_edge.runtime.engines.onnxruntime import session_options
from p4q_edge.runtime.errors import EnvironmentNotAbleError, UsageError
from p4q_edge.runtime.evaluation import seven_bits
from p4q_edge.runtime.evaluation.report import DebugReport, LayerFinding
from p4q_edge.runtime.statistics import metrics
from p4q_edge.runtime.storage import quoted
from p4q_edge.runtime.wording import number_of

logger = logging.getLogger(__name__)

MAX_IMAGES = 16
MAX_PROPOSALS = 8
# Equal operators in equal order on equal numbers: what is left is the order of a sum inside one kernel.
SAME_RUNTIME = 1e-4
# Integer kernels, and 7-bit weights, round values apart by a step now and then; a fault is far above.
OTHER_KERNELS = 0.05
# A sound linear passes a difference on, at most doubled in the models that were measured.
JUMP = 3.0
BUNDLE_GRAPH = "the bundle's graph"
OWN_GRAPH = "its own graph without fused kernels"
MODULE = "the fake-quantized PyTorch model"
STORED = "the integers and scales of the PyTorch model"
UNBOUNDED = 1e9
"""A relative error without a bound; JSON knows no infinity."""
ENCODER = "encoder."
_SEVERITY_ERROR = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerValues:
    """Input and output of each linear on the same images: module path to (…, features)."""

    inputs: Mapping[str, NDArray[np.floating]]
    outputs: Mapping[str, NDArray[np.floating]]


def run_graph(
    model: onnx.ModelProto, images: NDArray[np.uint8], options: "onnxruntime.SessionOptions | None" = None
) -> LayerValues:
    """Return what each linear of a graph reads and gives; without options, nothing is fused or reordered."""
    if options is None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _SEVERITY_ERROR
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    nodes = linear_nodes(model)
    names = list(dict.fromkeys([*(n.input for n in nodes), *(n.output for n in nodes)]))
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    known = {value.name for value in (*opened.graph.input, *opened.graph.output)}
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = onnxruntime.InferenceSession(opened.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = dict(zip(names, session.run(names, {"image": images}), strict=True))
    return LayerValues(
        inputs={node.path: values[node.input] for node in nodes},
        outputs={node.path: values[node.output] for node in nodes},
    )


def run_linears(model: nn.Module, images: NDArray[np.uint8]) -> LayerValues:
    """Return what each quantized linear of the fake-quantized module reads and gives, without its bias."""
    inputs: dict[str, NDArray[np.floating]] = {}
    outputs: dict[str, NDArray[np.floating]] = {}

    def keep(path: str, linear: QuantLinear) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(module: nn.Module, arguments: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
            bias = module.bias
            inputs[path] = linear.gained(arguments[0]).cpu().numpy()
            outputs[path] = (result if not isinstance(bias, torch.Tensor) else result - bias).cpu().numpy()

        return hook

    handles = [linear.register_forward_hook(keep(path, linear)) for path, linear in quant_linears(model).items()]
    try:
        with torch.inference_mode(), running_as_cpu_graph(model):
            model(torch.from_numpy(images).to(device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    return LayerValues(inputs=inputs, outputs=outputs)


def compare_layers(reference: LayerValues, candidate: LayerValues, order: Sequence[str]) -> tuple[LayerFinding, ...]:
    """Return the relative error of input and output of each linear that both have, in `order`."""
    return tuple(
        LayerFinding(
            layer=path,
            error_in=relative_error(reference.inputs[path], candidate.inputs[path]),
            error_out=relative_error(reference.outputs[path], candidate.outputs[path]),
        )
        for path in order
        if path in reference.outputs and path in candidate.outputs
    )


def relative_error(reference: NDArray[np.floating], candidate: NDArray[np.floating]) -> float:
    """Return the L2 norm of the difference over that of the reference; `UNBOUNDED` for other sizes and for NaN.

    The worst output channel counts, so that one wrong channel of many is seen. Where the candidate has one token an
    image and the reference all of them, as the export computes the last block for the class token only, the first
    tokens are compared.
    """
    if reference.ndim == 3 and candidate.shape == (reference.shape[0], reference.shape[2]):
        reference = reference[:, 0]
    if reference.size != candidate.size:
        return UNBOUNDED
    a = np.asarray(reference, np.float64).reshape(-1, reference.shape[-1])
    b = np.asarray(candidate, np.float64).reshape(a.shape)
    if not np.isfinite(b).all():
        return UNBOUNDED
    scale = np.linalg.norm(a, axis=0)
    # A channel that is nearly silent has a large relative error for no fault.
    floor = np.linalg.norm(a) / np.sqrt(a.shape[1]) / 10
    error = float((np.linalg.norm(a - b, axis=0) / np.maximum(np.maximum(scale, floor), 1e-30)).max())
    return min(error, UNBOUNDED)


def first_difference(layers: Sequence[LayerFinding], tolerance: float) -> LayerFinding | None:
    """Return the first linear whose output is off by more than its input explains.

    Rounding differences grow from layer to layer, and in a deep model they exceed any fixed tolerance; a fault is a
    jump within one linear.
    """
    return next(
        (layer for layer in layers if layer.error_out > tolerance and layer.error_out > JUMP * layer.error_in), None
    )


def find_difference(
    engine: Path, card: Card, images: NDArray[np.uint8], *, graph: bytes | None, module: nn.Module | None
) -> DebugReport:
    """Name the first linear where an engine and its reference diverge.

    Args:
        engine: the engine; an ONNX one.
        card: its card.
        images: uint8 (n, 3, H, W); the first 16 are used.
        graph: the bundle's graph with FP32 remainder, or None.
        module: the folded classifier, or None without PyTorch stages.

    Raises:
        EnvironmentNotAbleError: the engine is a TensorRT plan; `layer_debug_tensorrt` compares those.
        UsageError: there is neither bundle nor PyTorch reference.
    """
    if not card.on_cpu:
        raise EnvironmentNotAbleError(
            f"--debug of {engine} needs the bundle that it was built from; name it with --reference, or build the same "
            "bundle for the CPU and debug that: p4q-edge build model.p4q --engine "
            f"{quoted(engine.with_suffix('.onnx'))}"
        )
    if graph is None and module is None:
        raise UsageError(f"--debug needs the bundle beside {engine}, or a run folder with --reference; neither is here")
    built = onnx.load_model_from_string(engine.read_bytes())
    nodes = {node.path: node for node in linear_nodes(built)}
    if not nodes:
        raise UsageError(f"--debug compares quantized linears, and {engine} has none: it computes in FP32")
    batch = images[:MAX_IMAGES]
    findings = [
        (step.name, step.tolerance, compare_layers(step.reference, step.candidate, tuple(nodes)))
        for step in _steps(built, batch, card, graph=graph, module=module)
    ]
    parted = [step for step in findings if first_difference(step[2], step[1]) is not None]
    name, limit, layers = parted[0] if parted else findings[0]
    found = first_difference(layers, limit)
    first = None if found is None else found.layer
    of_file = first is not None and name == BUNDLE_GRAPH
    if module is not None and not of_file and (wrong := _stored_otherwise(graph, module, tuple(nodes))):
        # Exact, where the values of layers only show large faults: PyTorch adds in another order.
        name, first = STORED, wrong[0]
    logger.info("compared %s on %s with %s", number_of(len(layers), "linear"), number_of(len(batch), "image"), name)
    return DebugReport(
        reference=name,
        n=len(batch),
        same_arithmetic=name in (BUNDLE_GRAPH, STORED),
        tolerance=limit,
        first=first,
        operator=None if first is None else nodes[first].operator,
        layers=layers,
        keep_float=_proposals(name, layers, limit, module=module, images=batch),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Step:
    """One comparison: what is compared with what, and how far apart it may be."""

    name: str
    reference: LayerValues
    candidate: LayerValues
    tolerance: float


def _steps(
    built: onnx.ModelProto, batch: NDArray[np.uint8], card: Card, *, graph: bytes | None, module: nn.Module | None
) -> list[_Step]:
    """Return the comparisons in the order in which the first that finds something is the answer."""
    plain = run_graph(built, batch)
    steps = []
    if graph is not None:
        fast = card.cpu_profile in SEVEN_BIT_PROFILES
        exported = run_graph(onnx.load_model_from_string(seven_bits(card, graph) if fast else graph), batch)
        steps.append(_Step(name=BUNDLE_GRAPH, reference=exported, candidate=plain, tolerance=SAME_RUNTIME))
    kernels = run_graph(built, batch, session_options(card.cpu_profile or "exact"))
    steps.append(_Step(name=OWN_GRAPH, reference=plain, candidate=kernels, tolerance=OTHER_KERNELS))
    if module is not None:
        values = run_linears(module, batch)
        steps.append(_Step(name=MODULE, reference=values, candidate=plain, tolerance=OTHER_KERNELS))
    return steps


def _stored_otherwise(graph: bytes | None, module: nn.Module, order: Sequence[str]) -> list[str]:
    """Return the linears that the bundle's graph holds with other integers or scales than the module, in order."""
    if graph is None:
        return []
    differing = differing_linears(onnx.load_model_from_string(graph), linear_quantizations(module))
    return [path for path in order if path in differing]


def _proposals(
    name: str,
    layers: Sequence[LayerFinding],
    tolerance: float,
    *,
    module: nn.Module | None,
    images: NDArray[np.uint8],
) -> tuple[str, ...]:
    """Return what `keep_float` should name; a file that differs from its bundle is fixed by building it again."""
    if module is not None:
        return sensitive_linears(module, images)
    return added_error(layers, tolerance) if name == OWN_GRAPH else ()


def added_error(layers: Sequence[LayerFinding], tolerance: float) -> tuple[str, ...]:
    """Return the linears that add the most error to what they read, worst first, as `keep_float` takes them."""
    added = {layer.layer: _added(layer) for layer in layers}
    worst = sorted((path for path in added if added[path] > tolerance), key=lambda path: -added[path])
    return _as_keep_float(worst)


def sensitive_linears(module: nn.Module, images: NDArray[np.uint8]) -> tuple[str, ...]:
    """Return the linears whose quantization costs most, worst first, as `keep_float` takes them.

    Each linear alone is put back into float; what counts is how far the class probabilities of the whole model
    come closer to the float model's, not an error of tensors.
    """
    batch = torch.from_numpy(images).to(device_of(module))

    def logits() -> NDArray[np.floating]:
        result: NDArray[np.floating] = module(batch)[0].cpu().numpy()
        return result

    with torch.inference_mode():
        with running_in(module, Phase.FLOAT):
            reference = logits()
        with running_in(module, Phase.QUANTIZED):
            everything = _divergence(reference, logits())
            gains = {}
            for path, linear in quant_linears(module).items():
                with running_in(linear, Phase.FLOAT):
                    gains[path] = everything - _divergence(reference, logits())
    # A tenth of the whole loss: below it a linear in FP16 costs speed and buys nothing.
    worst = sorted((path for path in gains if gains[path] > everything / 10), key=lambda path: -gains[path])
    return _as_keep_float(worst)


def _divergence(reference: NDArray[np.floating], candidate: NDArray[np.floating]) -> float:
    return float(metrics.kl_divergence(reference=reference, candidate=candidate).mean())


def _added(layer: LayerFinding) -> float:
    return float(np.sqrt(max(0.0, layer.error_out**2 - layer.error_in**2)))


def _as_keep_float(paths: Sequence[str]) -> tuple[str, ...]:
    """Return paths as the recipe's `quantization.keep_float` counts them: from the encoder, attention as one."""
    inside = (path.removeprefix(ENCODER) for path in paths if path.startswith(ENCODER))
    joined = (path.removesuffix(".in_proj").removesuffix(".out_proj") for path in inside)
    return tuple(dict.fromkeys(joined))[:MAX_PROPOSALS]
