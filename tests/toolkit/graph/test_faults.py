"""A wrong scale in any linear of an exported graph: found by the gates, and located where it is."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from module_outputs import reference_outputs
from numpy.typing import NDArray
from onnx import numpy_helper

from p4q_edge.evaluation import layer_debug as debug
from p4q_edge.graph.analysis.linears import differing_linears, linear_nodes
from p4q_edge.graph.export import (
    ExportedGraphs,
    export_classifier,
    linear_quantizations,
)
from p4q_edge.graph.proof.layers import record_layers, wrong_layers
from p4q_edge.models.folded_classifier import FoldedClassifier
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.runtime.engines.onnxruntime.engine import open_session, session_options
from p4q_edge.runtime.evaluation.comparison import ChainOptions, ChainReport, validate_chain
from p4q_edge.runtime.evaluation.gates import Gates
from p4q_edge.runtime.evaluation.subject import graph_stage
from p4q_edge.runtime.stage import Outputs, Stage

Fold = Callable[[QuantScheme], FoldedClassifier]
Exported = tuple[ExportedGraphs, FoldedClassifier]
IMAGES = np.random.default_rng(3).integers(0, 256, (48, 3, 16, 16), dtype=np.uint8)
FAULTS = (("input_scale", 2.0), ("input_scale", 0.5), ("weight_scale", 2.0))


def broken(model: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    """Return a copy with one scale multiplied, and with it the bounds of the clip before it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    path = name.removesuffix(".input_scale")
    changed = {name, f"{path}.input_low", f"{path}.input_high"} if path != name else {name}
    for tensor in copy.graph.initializer:
        if tensor.name in changed:
            values = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return copy


def engine_stage(model: bytes) -> Stage:
    session = open_session(model, session_options("exact", threads=1))

    def run(batch: NDArray[np.uint8]) -> Outputs:
        logits, embedding = session.run(["logits", "embedding"], {"image": batch})
        return {"logits": logits, "embedding": embedding}

    return run


def compared(exported: Exported, engine: bytes) -> ChainReport:
    graphs, module = exported
    stages = {
        "fake_quant": lambda batch: reference_outputs(module, batch),
        "onnx": graph_stage(graphs.fp32 + graphs.weights, threads=1),
        "engine": engine_stage(engine),
    }
    noise = graphs.parity.noise["fp32"]
    assert noise is not None
    gates = Gates(
        bits=graphs.narrowest_bits,
        noise={"onnx": noise, "engine": noise},
        expected_loss={"onnx": 1e-12, "engine": 1e-12},
    )
    names = [str(index) for index in range(5)]
    return validate_chain(stages, IMAGES, [0] * len(IMAGES), names, options=ChainOptions(gates=gates))


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_a_sound_engine_passes_and_a_coarser_input_fails_at_every_width(
    fold_toy: Fold, images: NDArray[np.uint8], bits: int
) -> None:
    module = fold_toy(QuantScheme(weight_bits=bits, activation_bits=bits))
    exported = export_classifier(module, images), module
    graph = exported[0].fp32 + exported[0].weights
    report = compared(exported, graph)
    assert report.passed, [gate for gate in report.gates if not gate.passed]
    assert report.bits == bits
    for node in linear_nodes(onnx.load_from_string(graph)):
        if node.input_scales[0] != f"{node.path}.input_scale":
            continue  # it shares the grid of another
        wrong = broken(onnx.load_from_string(graph), node.input_scales[0], 2.0)
        assert not compared(exported, wrong.SerializeToString()).passed, node.path


# The export is made once and not changed.
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_wrong_scale_is_found_and_located(toy_graphs: Exported, data: st.DataObject) -> None:
    graphs, module = toy_graphs
    model = onnx.load_from_string(graphs.fp32 + graphs.weights)
    nodes = linear_nodes(model)
    node = data.draw(st.sampled_from(nodes), label="linear")
    kind, factor = data.draw(st.sampled_from(FAULTS), label="fault")
    scale = node.input_scales[0] if kind == "input_scale" else node.weight_scale
    wrong = broken(model, scale, factor)
    assert not compared(toy_graphs, wrong.SerializeToString()).passed
    readers = [n.path for n in nodes if scale in (*n.input_scales, n.weight_scale)]
    linears = linear_quantizations(module)
    assert set(differing_linears(wrong, linears)) == set(readers)
    found = wrong_layers(record_layers(module, IMAGES[:8]), wrong)
    assert set(found) == set(readers)
    assert all(("another grid" if kind == "input_scale" else "weight or bias") in words for words in found.values())
    good, bad = (debug.run_graph(m, IMAGES[:8]) for m in (model, wrong))
    first = debug.first_difference(debug.compare_layers(good, bad, [n.path for n in nodes]), debug.SAME_RUNTIME)
    assert first is not None
    assert first.layer == readers[0]


def test_the_graph_holds_what_the_module_holds(toy_graphs: Exported, fp32_model: onnx.ModelProto) -> None:
    _, module = toy_graphs
    linears = linear_quantizations(module)
    assert differing_linears(fp32_model, linears) == ()
    assert len(linears) == len(linear_nodes(fp32_model))
    fewer = {path: linear for path, linear in linears.items() if path != "adapter.up"}
    assert differing_linears(fp32_model, fewer) == ("adapter.up",)


def test_a_linear_may_be_missing_as_a_constant_but_not_run_in_float(
    toy_graphs: Exported, fp32_model: onnx.ModelProto
) -> None:
    linears = linear_quantizations(toy_graphs[1])
    model = onnx.ModelProto()
    model.CopyFrom(fp32_model)
    assert differing_linears(model, {**linears, "pool.query": linears["adapter.up"]}) == ()
    (product,) = [node for node in model.graph.node if node.name == "adapter.up/MatMul"]
    product.input[1] = "weight_in_float"
    assert differing_linears(model, linears) == ("adapter.up",)
