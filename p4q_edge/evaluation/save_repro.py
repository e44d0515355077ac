"""The smallest model that shows a divergence, cut around one linear, to attach to a report to a runtime's authors.

A folder holds the linear as ONNX with its Q and DQ nodes, what it read, what both runs gave, and the command of
polygraphy that compares them. onnx-graphsurgeon cuts, polygraphy writes and compares.
"""

import importlib
import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from numpy.typing import NDArray

from p4q_edge.evaluation.layer_debug import OWN_GRAPH, LayerValues, run_graph
from p4q_edge.graph.analysis import linear_nodes
from p4q_edge.runtime.engines.onnxruntime import session_options
from p4q_edge.runtime.errors import ArtifactError, EnvironmentNotAbleError, UsageError
from p4q_edge.runtime.evaluation.report import DebugReport
from p4q_edge.runtime.machine import cpu
from p4q_edge.runtime.storage import atomic_write

logger = logging.getLogger(__name__)

MODEL, INPUTS, REFERENCE, CANDIDATE, README = (
    *("layer.onnx", "inputs.json", "reference.json", "candidate.json"),
    "README.md",
)
_SEVERITY_ERROR = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Divergence:
    """One linear that two runs disagree on.

    Attributes:
        layer: its module path.
        reference_name, candidate_name: what was run, in words.
        read: what the candidate's linear read, (n, …, features).
        gave: what the candidate's linear gave on it, before the bias, (n, …, features).
        flag: of polygraphy, for the runtime in question: `--onnxrt` or `--trt`.
    """

    layer: str
    reference_name: str
    candidate_name: str
    read: NDArray[np.floating]
    gave: NDArray[np.floating]
    flag: str = "--onnxrt"


def cut_linear(model: onnx.ModelProto, layer: str) -> onnx.ModelProto:
    """Return one quantized linear of a graph as a model of its own, from the input of its Q to its product.

    Raises:
        ArtifactError: the graph has no such linear.
    """
    node = next((node for node in linear_nodes(model) if node.path == layer), None)
    if node is None:
        raise ArtifactError(f"expected a quantized linear {layer!r} in the graph, found none. Name one of `--debug`.")
    graph = gs.import_onnx(onnx.shape_inference.infer_shapes(model))
    tensors = graph.tensors()
    source, product = tensors[node.input], tensors[node.output]
    for tensor in (source, product):
        if tensor.dtype is None:
            tensor.dtype = np.dtype(np.float32)
    source.inputs.clear()
    graph.inputs, graph.outputs = [source], [product]
    graph.cleanup(remove_unused_graph_inputs=True).toposort()
    cut: onnx.ModelProto = gs.export_onnx(graph)
    cut.ir_version = model.ir_version
    return cut


def save_repro(folder: Path, model: onnx.ModelProto, found: Divergence, *, force: bool = False) -> tuple[Path, ...]:
    """Write the linear, its inputs, both outputs and the command that compares them.

    Args:
        folder: to make; its name is what the command in the README is run in.
        model: the reference's graph, from which the linear is cut.
        found: the linear, and what the candidate read and gave.
        force: replace files of an earlier run.

    Raises:
        UsageError: the folder holds files and `force` is false.
        EnvironmentNotAbleError: polygraphy is not installed.
    """
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise UsageError(f"{folder} is not empty; add --force to replace what an earlier run left there.")
    cut = cut_linear(model, found.layer)
    name, product = cut.graph.input[0].name, cut.graph.output[0].name
    expected = _run(cut, {name: found.read})[product]
    gave = found.gave.reshape(expected.shape)
    written = {
        MODEL: cut.SerializeToString(),
        INPUTS: _inputs([{name: found.read}]),
        REFERENCE: _results(found.reference_name, {product: expected}),
        CANDIDATE: _results(found.candidate_name, {product: gave}),
        README: _readme(found, error=float(np.abs(expected - gave).max()), size=float(np.abs(expected).max())).encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in written.items():
        atomic_write(folder / file, data, force=True)
    return tuple(folder / file for file in written)


def save_engine_repro(
    folder: Path, engine: Path, report: DebugReport, *, graph: bytes | None, images: NDArray[np.uint8]
) -> None:
    """Write what `find_difference` found in an ONNX Runtime engine; nothing where nothing diverges.

    Args:
        folder: to make.
        engine: the engine's file.
        report: names the linear and what the engine was compared with.
        graph: the bundle's graph with FP32 remainder, or None.
        images: uint8 (n, 3, H, W), those that were compared.

    Raises:
        UsageError: the folder holds files.
    """
    if report.first is None:
        logger.warning("no layer diverges: %s is not written", folder)
        return
    built = onnx.load_model_from_string(engine.read_bytes())
    fused = report.reference == OWN_GRAPH
    values = run_graph(built, images, session_options("exact") if fused else None)
    reference = built if fused or graph is None else onnx.load_model_from_string(graph)
    found = Divergence(
        layer=report.first,
        reference_name=report.reference,
        candidate_name=f"{engine.name} in ONNX Runtime {onnxruntime.__version__}",
        read=values.inputs[report.first],
        gave=values.outputs[report.first],
    )
    save_repro(folder, reference, found)
    logger.info("%s: %s as a model of its own; its README.md has the command", folder, report.first)


def save_plan_repro(folder: Path, graph: bytes) -> Callable[[str, LayerValues], None]:
    """Return what writes a linear that TensorRT computes otherwise than ONNX Runtime; `graph` is the FP16 one."""

    def save(layer: str, candidate: LayerValues) -> None:
        found = Divergence(
            layer=layer,
            reference_name="the same graph in ONNX Runtime",
            candidate_name="TensorRT",
            read=candidate.inputs[layer],
            gave=candidate.outputs[layer],
            flag="--trt",
        )
        save_repro(folder, onnx.load_model_from_string(graph), found)
        logger.info("%s: %s as a model of its own; its README.md has the command", folder, layer)

    return save


def command(flag: str) -> str:
    """Return the command of polygraphy that runs the linear and compares it with the reference."""
    words = ["polygraphy", "run", MODEL, flag, "--load-inputs", INPUTS, "--load-outputs", REFERENCE]
    if flag == "--onnxrt" and cpu.saturates():
        # Of its integer kernels polygraphy runs those that overflow here, which engines are told not to.
        words += ["--graph-optimization-level", "ORT_DISABLE_ALL"]
    return shlex.join([*words, "--atol", "1e-3", "--rtol", "1e-3"])


def _readme(found: Divergence, *, error: float, size: float) -> str:
    return (
        f"# {found.layer}\n\n"
        f"`{MODEL}` is one quantized linear. On `{INPUTS}`, {found.candidate_name} gives `{CANDIDATE}` and "
        f"{found.reference_name} gives `{REFERENCE}`. They differ by at most {error:.4g}; values reach {size:.4g}.\n\n"
        f"```\n{command(found.flag)}\n```\n"
    )


def _run(model: onnx.ModelProto, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SEVERITY_ERROR
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def _inputs(feeds: list[dict[str, NDArray[Any]]]) -> bytes:
    text: str = _polygraphy("polygraphy.json").to_json(feeds)
    return text.encode()


def _results(runner: str, outputs: dict[str, NDArray[Any]]) -> bytes:
    comparator = _polygraphy("polygraphy.comparator")
    results = comparator.RunResults()
    results.add([comparator.IterationResult(outputs=outputs, runner_name=runner)], runner_name=runner)
    text: str = results.to_json()
    return text.encode()


def _polygraphy(module: str) -> Any:
    # Imported by name and here: an extra that only --debug needs.
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EnvironmentNotAbleError(
            f"--save-repro needs polygraphy ({error}). Run: pip install '.[polygraphy]'"
        ) from error
