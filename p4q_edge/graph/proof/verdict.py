"""Whether the exported graphs of a module are sound, in words where they are not."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from p4q_edge.graph.analysis.convolutions import differing_convolutions
from p4q_edge.graph.analysis.linears import differing_linears, linear_nodes
from p4q_edge.graph.parity import GraphOutputs, compare_outputs, run_in_onnxruntime
from p4q_edge.graph.proof.arithmetic import Float64Sums, HalfPrecision
from p4q_edge.graph.proof.bypass import without_activation_grids
from p4q_edge.graph.proof.conv_layers import ConvRecord, record_convolutions, wrong_convolutions
from p4q_edge.graph.proof.layers import LayerRecord, differing_attentions, record_layers, wrong_layers
from p4q_edge.graph.proof.noise import (
    ModuleRuns,
    Noise,
    Running,
    bfloat16_noise,
    difference,
    run_module,
    run_quantized,
)
from p4q_edge.graph.quantization import INT8_WEIGHT, ConvQuantization, LinearQuantization, weight_path
from p4q_edge.quant import Phase, quant_linears, running_as_cpu_graph, running_in, set_phase
from p4q_edge.runtime.artifacts import Agreement, GraphParity, GraphRun, NoiseKind, agreement_of
from p4q_edge.runtime.choices import GraphKind
from p4q_edge.runtime.engines.onnxruntime import integer_convolutions, overflowing_weights
from p4q_edge.runtime.machine import give_back_memory
from p4q_edge.runtime.progress import tracked
from p4q_edge.runtime.statistics import NOISE_FACTOR, SMALLEST_LOSS, NoiseFloor
from p4q_edge.runtime.wording import number_of

logger = logging.getLogger(__name__)

KINDS: tuple[GraphKind, ...] = ("fp16", "fp32")
"""The graphs of a bundle, named after their remainder: for TensorRT and for CPUs."""
FLOAT_LIMIT = 1e-5
"""Relative difference of outputs in float32 that no order of sums explains in a well-conditioned model."""
FLOAT_FACTOR = 10.0
"""A model may amplify roundings: this multiple of what float64 sums change is allowed too."""
HALF_FACTOR = 4.0
"""The graph in FP16 rounds within GELU and normalizations too, where the module's functions are one step."""
FLOAT_IMAGES = 8
LAYER_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class FloatRuns:
    """A module whose weights alone are quantized.

    Attributes:
        reference: its outputs.
        sums: their relative change by output where sums are added in float64.
        half: likewise in FP16.
    """

    reference: GraphOutputs
    sums: Mapping[str, float]
    half: Mapping[str, float]

    def limit(self, output: str, *, half: bool) -> float:
        """Return how far a graph without activation grids may differ."""
        if half:
            return HALF_FACTOR * self.half[output]
        return max(FLOAT_LIMIT, FLOAT_FACTOR * self.sums[output])


def run_float(model: nn.Module, images: NDArray[np.uint8], *, folded: Collection[str] = ()) -> FloatRuns:
    """Run a module without activation grids on the first of uint8 (n, 3, H, W).

    Args:
        model: the module.
        images: those that the graphs are run on too.
        folded: paths of linears that the graphs have no node of: what they read is a constant, such as the learned
            query of a pool, and the exporter has computed them with their grid.
    """
    images = images[:FLOAT_IMAGES]
    with running_in(model, Phase.WEIGHTS):
        linears = quant_linears(model)
        for path in folded:
            set_phase(linears[path], Phase.QUANTIZED)
        reference = run_module(model, images)
        sums, half = (run_module(model, images, (arithmetic,)) for arithmetic in (Float64Sums(), HalfPrecision()))
    return FloatRuns(reference=reference, sums=_relative(reference, sums), half=_relative(reference, half))


def folded_linears(model: nn.Module, candidates: Sequence[CandidateGraph]) -> frozenset[str]:
    """Return the paths of the module's quantized linears that no graph has a node of."""
    paths = {path for path, linear in quant_linears(model).items() if linear.calibrated}
    for candidate in candidates:
        paths -= {node.path for node in linear_nodes(onnx.load_model_from_string(candidate.model))}
    return frozenset(paths)


def _relative(reference: GraphOutputs, found: GraphOutputs) -> dict[str, float]:
    """Return the largest relative difference of a row by output; infinite where it is not finite."""
    changes = {
        name: float(np.max(np.linalg.norm(found[name] - rows, axis=1) / np.linalg.norm(rows, axis=1)))
        for name, rows in reference.items()
    }
    return {name: change if np.isfinite(change) else float("inf") for name, change in changes.items()}


def float_problem(graph: onnx.ModelProto, floats: FloatRuns, images: NDArray[np.uint8], *, half: bool) -> str | None:
    """Return how a graph without activation grids differs from the module without them, or None."""
    bypassed = without_activation_grids(graph).SerializeToString()
    found = _relative(floats.reference, run_in_onnxruntime(bypassed, images[:FLOAT_IMAGES], optimized=False))
    for name, change in found.items():
        limit = floats.limit(name, half=half)
        if not change <= limit or not np.isfinite(change):
            return (
                f"without the grids of its activations the output {name} differs from the module's by {change:.3g} "
                f"(relative; arithmetic explains {limit:.3g})"
            )
    return None


def layer_problem(records: Mapping[str, LayerRecord], graph: onnx.ModelProto) -> str | None:
    """Return which quantized linears do not compute what the module's compute, or None."""
    wrong = wrong_layers(records, graph)
    if not wrong:
        return None
    path, problem = next(iter(wrong.items()))
    return (
        f"{number_of(len(wrong), 'of its linears differs', 'of its linears differ')} from the module's, first "
        f"{path}: {problem}"
    )


def conv_problem(records: Mapping[str, ConvRecord], candidate: CandidateGraph) -> str | None:
    """Return which quantized convolutions do not compute what the module's compute, or None."""
    wrong = wrong_convolutions(records, onnx.load_model_from_string(candidate.model)) if records else {}
    if not wrong:
        return None
    path, problem = next(iter(wrong.items()))
    return (
        f"{number_of(len(wrong), 'of its convolutions differs', 'of its convolutions differ')} from the module's, "
        f"first {path}: {problem}"
    )


def noise_problem(reference: GraphOutputs, found: GraphOutputs, noise: Noise) -> str | None:
    """Return how outputs differ beyond the noise of the module's own roundings, or None."""
    losses = difference(reference, found, logit_scale=1.0)
    for name in reference:
        limit, loss = NOISE_FACTOR**2 * noise.worst(name), float(losses.losses[name].max())
        if not loss <= max(limit, SMALLEST_LOSS):
            return (
                f"the output {name} reaches a cosine of {1 - loss:.6f} to the module's; the noise of this model's own "
                f"roundings explains {1 - limit:.6f}"
            )
    return None


@dataclass(frozen=True, kw_only=True, eq=False)
class CandidateGraph:
    """One graph to prove.

    Attributes:
        name: of its figures.
        kind: of the stored graph that it stands for.
        model: the complete graph.
        as_cpu_graph: whether it is compared with the module quantized as the graph for CPUs is.
    """

    name: GraphRun
    kind: GraphKind
    model: bytes
    as_cpu_graph: bool = False

    @property
    def half(self) -> bool:
        """Whether its remainder is FP16."""
        return self.name == "fp16"

    @property
    def ways(self) -> tuple[tuple[GraphRun, bool], ...]:
        """How it is run: name of the figures, and whether ONNX Runtime may optimize it."""
        both: tuple[tuple[GraphRun, bool], ...] = (("fp32", True), ("fp32_unoptimized", False))
        return both if self.name == "fp32" else ((self.name, self.half),)


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceModule:
    """The module that graphs were made of, what it holds, and uint8 images (n, 3, H, W)."""

    model: nn.Module
    linears: Mapping[str, LinearQuantization]
    convs: Mapping[str, ConvQuantization]
    images: NDArray[np.uint8]
    logit_scale: float


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was found.

    Attributes:
        parity: cosines and top-1 agreement by graph, and the noise of the module.
        problems: in words, by kind of graph; none where all are sound.
    """

    parity: GraphParity
    problems: Mapping[GraphKind, str]


def prove_graphs(
    subject: SourceModule, candidates: Sequence[CandidateGraph], *, known: Mapping[GraphKind, str]
) -> Proof:
    """Compare graphs with the module that they were made of: exactly by parts, and as a whole within its own noise.

    Args:
        subject: the module.
        candidates: the graphs.
        known: problems of graphs that are not candidates, by kind.
    """
    agreement: dict[GraphRun, Agreement] = {}
    floors: dict[NoiseKind, NoiseFloor | None] = {}
    problems = dict(known)
    floats = run_float(subject.model, subject.images, folded=folded_linears(subject.model, candidates))
    records = record_layers(subject.model, subject.images[:LAYER_IMAGES])
    convs = {cpu: record_convolutions(subject.model, subject.images, as_cpu_graph=cpu) for cpu in (False, True)}
    runs_of: dict[bool, ModuleRuns] = {}
    for candidate in tracked(candidates, "compare graphs"):
        # Only in a model with quantized convolutions the graph for CPUs is quantized otherwise.
        on_cpu = candidate.as_cpu_graph and bool(subject.convs)
        if on_cpu not in runs_of:
            narrow = () if on_cpu or not subject.convs else narrow_convolutions(candidates)
            runs_of[on_cpu] = _runs(subject, as_cpu_graph=on_cpu, narrow=narrow)
        runs = runs_of[on_cpu]
        noise, typical = (runs.half, runs.half) if candidate.half else (runs.on_cpu, runs.fine)
        if candidate.name == candidate.kind:
            floors[candidate.kind] = noise.floor(typical)
        if candidate.name == "placed":
            # It is what a CPU engine with quantized convolutions computes.
            floors["convolutions"] = noise.floor(typical)
            floors["seven_bit_convolutions"] = runs.seven_bit.and_(noise).floor(runs.seven_bit)
        if candidate.as_cpu_graph:
            # What the other profiles of a CPU engine may differ by.
            floors["seven_bit"] = runs.seven_bit.and_(noise).floor(runs.seven_bit)
            floors["float"] = runs.unquantized.floor(runs.unquantized)
            coarse = _bfloat16(subject, runs, on_cpu=on_cpu)
            floors["bf16"] = coarse.and_(noise).floor(coarse)
        problem = _exact_problem(subject, candidate, floats, records) or conv_problem(
            convs[candidate.as_cpu_graph], candidate
        )
        for name, optimized in candidate.ways:
            found = run_in_onnxruntime(candidate.model, subject.images, optimized=optimized)
            agreement[name] = agreement_of(compare_outputs(runs.reference, found))
            problem = problem or noise_problem(runs.reference, found, noise)
        if problem is not None:
            problems.setdefault(candidate.kind, problem)
        give_back_memory()
    finite = {kind: floor for kind, floor in floors.items() if floor is not None}
    parity = GraphParity(agreement=agreement, noise=finite, noise_images=len(subject.images))
    return Proof(parity=parity, problems=problems)


def candidate_graphs(graphs: Mapping[GraphKind, bytes], *, placed: bytes | None) -> list[CandidateGraph]:
    """Return what is to prove of complete graphs by kind; `placed` is `fp16` before its remainder turned into FP16."""
    found = [
        CandidateGraph(name=kind, kind=kind, model=graph, as_cpu_graph=kind == "fp32") for kind, graph in graphs.items()
    ]
    return found if placed is None else [*found, CandidateGraph(name="placed", kind="fp16", model=placed)]


def _running(subject: SourceModule, *, as_cpu_graph: bool) -> Running:
    def running() -> AbstractContextManager[None]:
        return running_as_cpu_graph(subject.model) if as_cpu_graph else running_in(subject.model, Phase.QUANTIZED)

    return running


def narrow_convolutions(candidates: Sequence[CandidateGraph]) -> Collection[str]:
    """Return the paths of the convolutions whose weights a CPU engine narrows where 8 bits overflow.

    The graph decides, as it does for that engine, and not what the module's images give: a tensor may be never negative
    in a way that the graph does not show.
    """
    graph = next((candidate.model for candidate in candidates if candidate.name == "placed"), None)
    stored = () if graph is None else overflowing_weights(integer_convolutions(graph, graph))
    return {path for name in stored if (path := weight_path(name, (INT8_WEIGHT,))) is not None}


def _runs(subject: SourceModule, *, as_cpu_graph: bool, narrow: Collection[str]) -> ModuleRuns:
    running = _running(subject, as_cpu_graph=as_cpu_graph)
    scale = subject.logit_scale
    return run_quantized(subject.model, subject.images, running=running, logit_scale=scale, narrow=narrow)


def _bfloat16(subject: SourceModule, runs: ModuleRuns, *, on_cpu: bool) -> Noise:
    running = _running(subject, as_cpu_graph=on_cpu)
    return bfloat16_noise(
        subject.model, subject.images, runs.reference, running=running, logit_scale=subject.logit_scale
    )


def _exact_problem(
    subject: SourceModule, candidate: CandidateGraph, floats: FloatRuns, records: Mapping[str, LayerRecord]
) -> str | None:
    graph = onnx.load_from_string(candidate.model)
    if candidate.name == "placed" and (differing := differing_convolutions(graph, subject.convs)):
        return f"it holds other integers or scales in {number_of(len(differing), 'convolution')}, first {differing[0]}"
    if candidate.name == "fp32" and (differing := differing_linears(graph, subject.linears)):
        return (
            f"it holds other integers or scales than the module in {number_of(len(differing), 'linear')}, first "
            f"{differing[0]}"
        )
    if operands := differing_attentions(subject.model, graph):
        return (
            f"it holds other scales than the module in {number_of(len(operands), 'operand')} of attentions, first "
            f"{operands[0]}"
        )
    return layer_problem(records, graph) or float_problem(graph, floats, subject.images, half=candidate.half)
