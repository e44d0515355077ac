"""TensorRT against ONNX Runtime through polygraphy; TensorRT is played by ONNX Runtime on a changed graph."""

import inspect
import sys
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from p4q_edge.evaluation import layer_debug_tensorrt as debug_tensorrt
from p4q_edge.evaluation.layer_debug import linear_nodes
from p4q_edge.evaluation.layer_debug_tensorrt import compare_with_onnxruntime, tensorrt_runner, with_linear_outputs
from p4q_edge.runtime.errors import ArtifactError, EnvironmentNotAbleError

polygraphy = pytest.importorskip("polygraphy", reason="polygraphy is not installed")


LINEARS = ("encoder.fc1", "encoder.fc2", "adapter.fc")
WIDTH = 12


@pytest.fixture
def graph() -> bytes:
    """Three quantized linears with an FP16 remainder, named as the exporter names them."""
    generator = np.random.default_rng(0)
    nodes, initializers = [], []

    def constant(name: str, array: np.ndarray) -> str:
        initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=f"/{output}", **attributes))
        return output

    stream = node("Cast", ["image"], "half", to=TensorProto.FLOAT16)
    stream = node("Mul", [stream, constant("inverse", np.array(1 / 255, np.float16))], "unit")
    stream = node("Flatten", [stream], "flat")
    for path in LINEARS:
        step = constant(f"{path}.step", np.array(0.02, np.float16))
        zero = constant(f"{path}.zero", np.array(0, np.int8))
        stream = node("QuantizeLinear", [stream, step, zero], f"{path}.q")
        stream = node("DequantizeLinear", [stream, step, zero], f"{path}.dq")
        weight = [
            constant(f"{path}.weight_int8", generator.integers(-127, 128, (WIDTH, WIDTH), dtype=np.int8)),
            constant(f"{path}.weight_scale", np.full(WIDTH, 0.003, np.float16)),
            constant(f"{path}.weight_zero", np.zeros(WIDTH, np.int8)),
        ]
        stream = node("MatMul", [stream, node("DequantizeLinear", weight, f"{path}.wdq", axis=1)], f"{path}.product")
        stream = node("Add", [stream, constant(f"{path}.bias", np.full(WIDTH, 0.1, np.float16))], f"{path}.out")
    node("Cast", [stream], "features", to=TensorProto.FLOAT)
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 3, 2, 2])]
    outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", WIDTH])]
    made = helper.make_graph(nodes, "linears", inputs, outputs, initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (4, 3, 2, 2), dtype=np.uint8)


def _played_by_onnxruntime(change: Any) -> Any:
    """Return a runner maker that changes the graph as a faulty compiler would."""

    def make(model: onnx.ModelProto, batch: int) -> object:
        from polygraphy.backend.onnxrt import OnnxrtRunner

        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        change(changed)
        session = onnxruntime.InferenceSession(changed.SerializeToString(), providers=["CPUExecutionProvider"])
        return OnnxrtRunner(session, name="TensorRT")

    return make


def _double_scale_of(layer: str) -> Any:
    def change(model: onnx.ModelProto) -> None:
        names = {node.input[0]: node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"}
        scale = next(names[name] for name in names if name == f"{layer}.weight_int8")
        for initializer in model.graph.initializer:
            if initializer.name == scale:
                initializer.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(initializer) * 2, scale))

    return change


def test_equal_runtimes_part_nowhere(graph: bytes, images: np.ndarray) -> None:
    report = compare_with_onnxruntime(graph, images, make_runner=_played_by_onnxruntime(lambda model: None))
    assert (report.first, report.operator, report.keep_float) == (None, None, ())
    assert tuple(layer.layer for layer in report.layers) == LINEARS
    assert all(layer.error_out < 0.01 for layer in report.layers)


@pytest.mark.parametrize("faulty", LINEARS)
def test_the_first_linear_that_differs_is_named(graph: bytes, images: np.ndarray, faulty: str) -> None:
    report = compare_with_onnxruntime(graph, images, make_runner=_played_by_onnxruntime(_double_scale_of(faulty)))
    assert (report.first, report.operator) == (faulty, f"/{faulty}.product")
    before = report.layers[: LINEARS.index(faulty)]
    assert all(layer.error_out <= report.tolerance for layer in before)
    assert report.keep_float[:1] == ((faulty.removeprefix("encoder."),) if faulty.startswith("encoder.") else ())


def test_every_opened_output_has_a_type(graph: bytes) -> None:
    opened = with_linear_outputs(onnx.load_model_from_string(graph))
    onnx.checker.check_model(opened)
    names = {value.name for value in opened.graph.output}
    assert {name for node in linear_nodes(opened) for name in (node.input, node.output)} <= names
    assert all(value.type.tensor_type.elem_type for value in opened.graph.output)


def test_a_graph_without_linears_is_refused(graph: bytes, images: np.ndarray) -> None:
    model = onnx.load_model_from_string(graph)
    for node in model.graph.node:
        if node.op_type == "MatMul":
            node.op_type = "Gemm"
    with pytest.raises(ArtifactError, match="no quantized linears to compare"):
        compare_with_onnxruntime(model.SerializeToString(), images)


def test_without_a_gpu_tensorrt_is_not_imported(
    graph: bytes, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver() -> Any:
        raise EnvironmentNotAbleError("expected a CUDA driver")

    monkeypatch.setattr(debug_tensorrt, "open_cuda", no_driver)
    monkeypatch.setattr(debug_tensorrt, "import_tensorrt", lambda facts: pytest.fail("TensorRT was imported"))
    with pytest.raises(EnvironmentNotAbleError, match="expected a CUDA driver"):
        compare_with_onnxruntime(graph, images)


def test_without_polygraphy_the_command_is_named(
    graph: bytes, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy.backend.onnxrt", None)
    with pytest.raises(EnvironmentNotAbleError, match=r"needs polygraphy .*pip install '\.\[polygraphy\]'"):
        compare_with_onnxruntime(graph, images, make_runner=lambda model, batch: None)


def test_the_runner_asks_for_strong_typing_and_a_profile(graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """polygraphy's own classes take what we give; TensorRT itself is only needed once the runner starts."""
    from polygraphy.backend import trt

    class Cuda:
        facts = None

    given: dict[str, Any] = {}

    def network(model_bytes: bytes, **options: Any) -> Any:
        given.update(options)
        return trt.NetworkFromOnnxBytes(model_bytes, **options)

    monkeypatch.setattr(debug_tensorrt, "open_cuda", Cuda)
    monkeypatch.setattr(debug_tensorrt, "import_tensorrt", lambda facts: None)
    runner: Any = tensorrt_runner(onnx.load_model_from_string(graph), 4)
    assert isinstance(runner, trt.TrtRunner)
    assert runner.name == "TensorRT"
    assert "strongly_typed" in inspect.signature(trt.NetworkFromOnnxBytes.__init__).parameters
    assert network(b"").strongly_typed is not True
    assert network(b"", strongly_typed=True).strongly_typed is True
