"""FP8 in the exported graphs: what is stored, what it computes, and what lint and proof see."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from toy_exports import LINEAR, Exported, Model, check_float_profile, half, set_tensor, single, stored

from p4q_edge.calibration import calibrate_encoder
from p4q_edge.graph.analysis import differing_linears
from p4q_edge.graph.export import linear_quantizations
from p4q_edge.graph.lint_rules import lint
from p4q_edge.graph.parity import run_in_onnxruntime
from p4q_edge.graph.proof.layers import record_layers, wrong_layers
from p4q_edge.graph.quantization import LinearQuantization
from p4q_edge.models import LoadedModel
from p4q_edge.quant import QuantScheme, quant_linears
from p4q_edge.runtime.builders.tensorrt.narrow_weights import flavour_of, with_fp16_weights
from p4q_edge.runtime.engines.onnxruntime import float_weights, seven_bit_weights
from p4q_edge.runtime.errors import ArtifactError, CorruptArtifactError
from p4q_edge.stages.encoder_file import restore_encoder, save_encoder

E4M3 = ml_dtypes.float8_e4m3fn


def test_every_graph_computes_what_the_fake_quantized_module_computes(fp8_graphs: Exported) -> None:
    graphs, _ = fp8_graphs
    assert graphs.unsound == {}
    cosines = {name: value for name, value in graphs.parity.flat().items() if ".cosine_" in name}
    assert len(cosines) == 9
    assert min(cosines.values()) > 0.999


def test_the_graphs_hold_the_numbers_and_scales_of_the_module(fp8_graphs: Exported) -> None:
    graphs, model = fp8_graphs
    linears = quant_linears(model)
    for graph in (single(graphs), half(graphs)):
        onnx.checker.check_model(graph, full_check=True)
        assert [(o.domain, o.version) for o in graph.opset_import] == [("", 20)]
        assert lint(graph) == []
        tensors = stored(graph)
        assert not [name for name, tensor in tensors.items() if tensor.data_type == TensorProto.INT8]
        for path, linear in linears.items():
            tensor = tensors[f"{path}.weight_fp8"]
            assert tensor.data_type == TensorProto.FLOAT8E4M3FN
            assert len(tensor.raw_data) == linear.weight.numel()
            expected = linear.float8_weight().float().T.numpy()
            np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.float32), expected)
            zeros = [tensors[f"{path}.{end}"] for end in ("weight_zero_point", "input_zero_point")]
            assert {zero.data_type for zero in zeros} == {TensorProto.FLOAT8E4M3FN}
    graph = single(graphs)
    assert differing_linears(graph, linear_quantizations(model)) == ()
    scales = {path: numpy_helper.to_array(stored(graph)[f"{path}.input_scale"]) for path in linears}
    assert all(scale == np.float32(linears[path].input_scale) for path, scale in scales.items())


def test_the_numbers_are_stored_once(fp8_graphs: Exported) -> None:
    graphs, model = fp8_graphs
    shared = {tensor.name for tensor in onnx.load_from_string(graphs.weights).graph.initializer}
    assert {f"{path}.weight_fp8" for path in quant_linears(model)} <= shared


def test_onnx_runtime_and_the_reference_of_onnx_compute_the_same(
    fp8_graphs: Exported, images: NDArray[np.uint8]
) -> None:
    """ONNX Runtime rounds to FP8 itself, node by node and optimized."""
    graphs, _ = fp8_graphs
    plain = np.asarray(ReferenceEvaluator(single(graphs)).run(["features"], {"image": images[:2]})[0])  # type: ignore[index]
    for optimized in (False, True):
        found = run_in_onnxruntime(graphs.fp32 + graphs.weights, images[:2], optimized=optimized)["features"]
        cosine = (found * plain).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(plain, axis=1)
        assert float(cosine.min()) > 0.999  # single numbers go to the other neighbour, a sixteenth away


def relu_before_fp8(operator: str) -> Model:
    nodes = [
        helper.make_node(operator, ["x"] if operator == "Relu" else ["x", "zero"], ["a"]),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(1, np.float32), "s"),
        numpy_helper.from_array(np.array(0, E4M3), "z"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_onnx_runtime_removes_a_relu_before_fp8_and_leaves_a_max() -> None:
    """Which is why the graph for CPUs has a Max there; where the first of the two no longer holds, it may go."""
    x = np.array([-3.0, -1.0, 2.0], np.float32)
    found = {}
    for operator in ("Relu", "Max"):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(
            relu_before_fp8(operator).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        found[operator] = session.run(None, {"x": x})[0].tolist()
    assert found == {"Relu": [-3.0, -1.0, 2.0], "Max": [0.0, 0.0, 2.0]}


def test_no_relu_stands_before_fp8_in_the_graph_for_cpus(fp8_graphs: Exported) -> None:
    graphs, _ = fp8_graphs
    for_cpus, for_gpus = ({node.op_type for node in make(graphs).graph.node} for make in (single, half))
    assert "Max" in for_cpus
    assert "Relu" not in for_cpus
    assert "Relu" in for_gpus  # TensorRT reads it as it is


def older_opset(model: Model) -> None:
    model.opset_import[0].version = 18


def no_number(model: Model) -> None:
    weight = numpy_helper.to_array(stored(model)[f"{LINEAR}.weight_fp8"]).copy()
    weight[0, 0] = np.nan
    set_tensor(model, f"{LINEAR}.weight_fp8", weight)


def shifted(model: Model) -> None:
    set_tensor(model, f"{LINEAR}.input_zero_point", np.array(1, E4M3))


@pytest.mark.parametrize(
    ("change", "rule", "told"),
    [
        (older_opset, "opset", "expected opset 19 or 20 beside FP8 numbers, got ai.onnx 18"),
        (no_number, "weight-axis", "expected FP8 weights that are numbers, got NaN"),
        (shifted, "zero-point", "expected an int8 or FP8 zero point of 0, got float8_e4m3fn up to 1.0"),
    ],
)
def test_lint_sees_what_is_not_the_exporters(
    fp8_graphs: Exported, change: Callable[[Model], None], rule: str, told: str
) -> None:
    from p4q_edge.graph import lint_rules

    model = half(fp8_graphs[0])
    change(model)
    if rule == "opset":  # the checker itself refuses such a graph
        subject = lint_rules.LintedModel(model=onnx_ir(model), quantized_attention=False)
        assert ("", told) in list(lint_rules.RULES[rule](subject))
        return
    assert (rule, told) in {(finding.rule, finding.message) for finding in lint(model)}


def onnx_ir(model: Model) -> object:
    import onnx_ir as ir

    return ir.from_proto(model)


def test_a_wrong_number_and_a_wrong_scale_are_found(fp8_graphs: Exported, images: NDArray[np.uint8]) -> None:
    graphs, model = fp8_graphs
    records = record_layers(model, images[:4])
    assert wrong_layers(records, single(graphs)) == wrong_layers(records, half(graphs)) == {}
    changed = single(graphs)
    name = f"{LINEAR}.weight_fp8"
    weight = numpy_helper.to_array(stored(changed)[name]).astype(np.float32)
    weight[0, 0] = -weight[0, 0] + (weight[0, 0] == 0)
    set_tensor(changed, name, weight.astype(E4M3))
    assert set(wrong_layers(records, changed)) == {LINEAR}
    assert differing_linears(changed, linear_quantizations(model)) == (LINEAR,)
    for scale in (f"{LINEAR}.weight_scale", f"{LINEAR}.input_scale"):
        changed = single(graphs)
        set_tensor(changed, scale, numpy_helper.to_array(stored(changed)[scale]) * np.float32(1.05))
        assert set(wrong_layers(records, changed)) == {LINEAR}
        assert differing_linears(changed, linear_quantizations(model)) == (LINEAR,)


def test_integers_in_the_place_of_fp8_are_found(fp8_graphs: Exported) -> None:
    """The same values on the same scales, in another type, are not what the module multiplies."""
    graphs, model = fp8_graphs
    changed = single(graphs)
    name = f"{LINEAR}.weight_fp8"
    weight = numpy_helper.to_array(stored(changed)[name]).astype(np.float32)
    set_tensor(changed, name, np.rint(weight / 4).astype(np.int8))
    assert differing_linears(changed, linear_quantizations(model)) == (LINEAR,)


def test_the_float_profile_has_the_values_of_the_weights(fp8_graphs: Exported, images: NDArray[np.uint8]) -> None:
    graphs, _ = fp8_graphs
    found = check_float_profile(graphs, images)
    assert flavour_of(found) == "int8"  # nothing of FP8 is left


def test_there_is_no_fast_profile(fp8_graphs: Exported) -> None:
    graphs, _ = fp8_graphs
    with pytest.raises(ArtifactError, match="FP8 weights, whose products are in FP32, so that it has no fast profile"):
        seven_bit_weights(graphs.fp32 + graphs.weights)


def test_the_model_of_an_fp16_plan_holds_the_same_values(fp8_graphs: Exported) -> None:
    graphs, model = fp8_graphs
    whole = graphs.fp16 + graphs.weights
    assert flavour_of(whole) == "fp8"
    restored = onnx.load_from_string(with_fp16_weights(whole))
    onnx.checker.check_model(restored, full_check=True)
    tensors, original = stored(restored), stored(half(graphs))
    assert not [name for name in tensors if name.endswith(("weight_fp8", "weight_zero_point"))]
    nodes = {node.input[0]: node for node in half(graphs).graph.node if node.op_type == "DequantizeLinear"}
    for path in quant_linears(model):
        node = nodes[f"{path}.weight_fp8"]
        numbers, scale = (numpy_helper.to_array(original[name]).astype(np.float32) for name in node.input[:2])
        np.testing.assert_array_equal(
            numpy_helper.to_array(tensors[node.output[0]]), (numbers * scale).astype(np.float16)
        )


def cut_data(model: Model) -> None:
    tensor = stored(model)[f"{LINEAR}.weight_fp8"]
    tensor.raw_data = tensor.raw_data[:-1]


def other_axis(model: Model) -> None:
    node = next(node for node in model.graph.node if node.input and node.input[0] == f"{LINEAR}.weight_fp8")
    next(a for a in node.attribute if a.name == "axis").i = 0


def fewer_scales(model: Model) -> None:
    node = next(node for node in model.graph.node if node.input and node.input[0] == f"{LINEAR}.weight_fp8")
    set_tensor(model, node.input[1], numpy_helper.to_array(stored(model)[node.input[1]])[:-1])


@pytest.mark.parametrize("change", [cut_data, other_axis, fewer_scales])
def test_a_weight_that_contradicts_itself_is_told_in_words(
    fp8_graphs: Exported, change: Callable[[Model], None]
) -> None:
    graphs, _ = fp8_graphs
    for_gpus, for_cpus = half(graphs), single(graphs)
    change(for_gpus)
    with pytest.raises(CorruptArtifactError, match=r"is not as the exporter writes it: .* Export the bundle again"):
        with_fp16_weights(for_gpus.SerializeToString())
    change(for_cpus)
    if change is not other_axis:  # of a square weight the values of another axis are as many
        with pytest.raises(CorruptArtifactError, match="as the exporter writes it"):
            float_weights(for_cpus.SerializeToString())


def test_an_encoder_is_restored_in_fp8(toy_clip: LoadedModel, images: NDArray[np.uint8], tmp_path: Path) -> None:
    scheme = QuantScheme(number_format="fp8")
    calibrated = calibrate_encoder(toy_clip, torch.from_numpy(images), scheme)
    save_encoder(calibrated, tmp_path / "encoder.safetensors", key="k")
    again = restore_encoder(tmp_path / "encoder.safetensors", toy_clip, scheme, key="k")
    assert again is not None
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(calibrated.encoder(pixels), again.encoder(pixels))


@pytest.mark.parametrize(
    ("scale", "weight", "told"),
    [
        (np.ones((2, 4), np.float32), np.ones((2, 8), E4M3), r"weight_scale of E4M3 numbers is \(out,\)"),
        (np.ones(2, np.float32), np.full((2, 8), np.nan, E4M3), "weight is finite"),
        (np.ones(2, np.float32), np.ones((2, 8), np.float32), "weight is int8 or float8_e4m3fn"),
    ],
)
def test_quantizations_that_contradict_themselves(scale: np.ndarray, weight: np.ndarray, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        LinearQuantization(weight=weight, weight_scale=scale, weight_bits=8, input_scale=1.0, input_bits=8)
