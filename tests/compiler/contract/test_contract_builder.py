"""Our builder code on NVIDIA's real parser and compiler: INT8 and FP16 plans of a small encoder, progress, cancelling.

TensorRT-RTX builds on a CPU and cannot run what it built, so plans are judged by the kernels that its log lists. Its
compiler is the one of TensorRT 11; it is evidence for 10.13 and newer and none for 10.3.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from p4q_edge.runtime.builders.tensorrt import worker_process as tensorrt_child
from p4q_edge.runtime.builders.tensorrt.inspection import summarize_inspection
from p4q_edge.runtime.builders.tensorrt.options import TensorRTOptions
from p4q_edge.runtime.builders.tensorrt.progress import Progress

WIDTH, HEADS = 256, 4

# Drives the worker's own function; only CUDA, of which there is none, and the log, which here keeps all, are replaced.
BUILD = """
import json
from pathlib import Path
import tensorrt as trt
from p4q_edge.runtime.builders.tensorrt import worker
from p4q_edge.runtime.engines.cuda.base import DeviceFacts
from p4q_edge.runtime.builders.tensorrt.options import TensorRTOptions
from p4q_edge.runtime.errors import P4QEdgeError
layers, said = [], []
class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.problems = []
    def log(self, severity, msg):
        if severity <= trt.ILogger.WARNING:
            said.append(msg)
        if severity <= trt.ILogger.ERROR:
            self.problems.append(msg)
        if "LayerType: " in msg:
            layers.extend(line for line in msg.split("\\n") if line.startswith("Name: "))
worker.make_logger = lambda trt: Log()
worker.REPORT_EVERY_S = 0
class Cuda:
    facts = DeviceFacts(index=0, name="none", compute_capability="8.6", total_memory_bytes=8 << 30, integrated=False,
                        driver_version="13.0", runtime_version="13.0")
request = json.loads(sys.argv[1])
events = []
job = worker.Job(options=TensorRTOptions(timing_cache=False, **request["options"]), flavour=request["flavour"],
                 model=Path(request["model"]), plan=Path("plan"), engine=Path("engine"), emit=events.append,
                 cancelled=lambda: len(events) >= request["cancel_after"])
outcome = {}
try:
    typing, plan, cache = worker._build_typed(trt, Cuda, job)
    outcome = {"typing": typing, "size": memoryview(plan).nbytes, "cache": cache}
except worker.BuildCancelledError:
    outcome = {"cancelled": True}
except P4QEdgeError as error:
    outcome = {"error": type(error).__name__, "message": str(error)}
print(json.dumps({**outcome, "layers": layers, "events": events, "said": said}))
"""


class Encoder:
    """A Q/DQ encoder of one block as the exporter writes it: FP16 remainder, int8 weights, one QKV linear, a split."""

    def __init__(self, *, zero_point: int = 0, float_scales: bool = False) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.generator = np.random.default_rng(0)
        self.zero_point = zero_point
        self.float_scales = float_scales
        self.weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def constant(self, name: str, array: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}/{operator}", **attributes))
        return output

    def linear(self, source: str, name: str, size: tuple[int, int]) -> str:
        weight = self.generator.normal(size=size).astype(np.float32)
        dtype = np.float32 if self.float_scales else np.float16
        scale = (np.abs(weight).max(axis=0) / 127).astype(dtype)
        integers = np.clip(np.round(weight / scale.astype(np.float32)), -127, 127).astype(np.int8)
        self.weights[name] = (integers, scale)
        step = self.constant(f"{name}.step", np.array(0.05, dtype))
        zero = self.constant(f"{name}.zero", np.array(self.zero_point, np.int8))
        if self.float_scales:
            source = self.node("Cast", [source], f"{name}.x32", to=TensorProto.FLOAT)
        quantized = self.node("QuantizeLinear", [source, step, zero], f"{name}.q")
        activation = self.node("DequantizeLinear", [quantized, step, zero], f"{name}.dq")
        stored = [
            self.constant(f"{name}.weight_int8", integers),
            self.constant(f"{name}.scale", scale),
            self.constant(f"{name}.weight_zero", np.zeros(size[1], np.int8)),
        ]
        weights = self.node("DequantizeLinear", stored, f"{name}.weight", axis=1)
        if self.float_scales:
            activation = self.node("Cast", [activation], f"{name}.x16", to=TensorProto.FLOAT16)
            weights = self.node("Cast", [weights], f"{name}.weight16", to=TensorProto.FLOAT16)
        product = self.node("MatMul", [activation, weights], f"{name}.product")
        bias = self.constant(f"{name}.bias", self.generator.normal(size=size[1]).astype(np.float16))
        return self.node("Add", [product, bias], f"{name}.out")

    def norm(self, source: str, name: str) -> str:
        gain = self.constant(f"{name}.gain", np.ones(WIDTH, np.float16))
        shift = self.constant(f"{name}.shift", np.zeros(WIDTH, np.float16))
        return self.node("LayerNormalization", [source, gain, shift], f"{name}.out", axis=-1)

    def attention(self, source: str) -> str:
        qkv = self.linear(source, "qkv", (WIDTH, 3 * WIDTH))
        self.nodes.append(helper.make_node("Split", [qkv], ["q3", "k3", "v3"], axis=2, num_outputs=3, name="split"))
        shape = self.constant("heads", np.array([0, 0, HEADS, WIDTH // HEADS], np.int64))
        turns = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
        apart = {name: self.node("Reshape", [f"{name}3", shape], f"{name}4") for name in turns}
        query, key, value = (self.node("Transpose", [apart[name]], name, perm=turns[name]) for name in turns)
        root = self.constant("root", np.array((WIDTH // HEADS) ** -0.5, np.float16))
        scores = self.node("MatMul", [self.node("Mul", [query, root], "q.scaled"), key], "scores")
        mixed = self.node("MatMul", [self.node("Softmax", [scores], "shares", axis=-1), value], "mixed")
        together = self.node("Transpose", [mixed], "mixed.t", perm=[0, 2, 1, 3])
        flat = self.constant("flat", np.array([0, 0, WIDTH], np.int64))
        return self.linear(self.node("Reshape", [together, flat], "attended"), "out_proj", (WIDTH, WIDTH))

    def model(self) -> bytes:
        half = self.node("Cast", ["image"], "pixels", to=TensorProto.FLOAT16)
        scale = self.constant("inverse", np.array(1 / 255, np.float16))
        kernel = self.generator.normal(size=(WIDTH, 3, 8, 8)).astype(np.float16)
        kernel = self.constant("patch.weight", kernel * np.float16(0.05))
        patches = self.node("Conv", [self.node("Mul", [half, scale], "unit"), kernel], "patch", strides=[8, 8])
        shape = self.constant("tokens", np.array([0, WIDTH, -1], np.int64))
        tokens = self.node("Reshape", [patches, shape], "patch.flat")
        stream = self.node("Transpose", [tokens], "stream0", perm=[0, 2, 1])
        stream = self.node("Add", [stream, self.attention(self.norm(stream, "norm1"))], "stream1")
        hidden = self.node("Gelu", [self.linear(self.norm(stream, "norm2"), "fc1", (WIDTH, 4 * WIDTH))], "hidden")
        stream = self.node("Add", [stream, self.linear(hidden, "fc2", (4 * WIDTH, WIDTH))], "stream2")
        axes = self.constant("axes", np.array([1], np.int64))
        pooled = self.node("ReduceMean", [stream, axes], "pooled", keepdims=0)
        self.node("Cast", [pooled], "features", to=TensorProto.FLOAT)
        graph = helper.make_graph(
            self.nodes,
            "encoder",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 3, 32, 32])],
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", WIDTH])],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())


def build(
    real_builder: Any, folder: Path, model: bytes, *, flavour: str = "int8", cancel_after: int = 10**9, **options: Any
) -> dict[str, Any]:
    (folder / "model.onnx").write_bytes(model)
    request = {
        "model": str(folder / "model.onnx"),
        "flavour": flavour,
        "cancel_after": cancel_after,
        "options": {"max_batch": 4, **options},
    }
    answer: dict[str, Any] = json.loads(real_builder(BUILD, json.dumps(request)).splitlines()[-1])
    return answer


def inspected(outcome: dict[str, Any]) -> dict[str, Any]:
    """Return the log's layers as the inspector's JSON would have them, summarized."""
    return summarize_inspection({"Layers": [_layer(line) for line in outcome["layers"]], "I/O Tensors": []})


def _layer(line: str) -> dict[str, Any]:
    name, kind = re.search(r"^Name: ([^,]+), LayerType: ([^,]+),", line).groups()  # type: ignore[union-attr]
    sections = dict(re.findall(r"(Inputs|Outputs): \[((?: \{.*?\}[, ]?)*)\]", line))
    return {
        "Name": name,
        "LayerType": kind,
        **{section: [_tensor(text) for text in re.findall(r"\{(.*?)\}", body)] for section, body in sections.items()},
    }


def _tensor(text: str) -> dict[str, Any]:
    dimensions = re.search(r"Dimensions: \[([-\d,]*)\]", text)
    datatype = re.search(r"Datatype: (\w+)", text)
    assert dimensions is not None
    assert datatype is not None
    return {"Dimensions": [int(size) for size in dimensions[1].split(",") if size], "Datatype": datatype[1]}


@pytest.fixture(scope="module")
def built(real_builder: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The INT8 and the FP16 plan of the same model."""
    model = Encoder().model()
    return {
        flavour: build(real_builder, tmp_path_factory.mktemp(flavour), model, flavour=flavour)
        for flavour in ("int8", "fp16")
    }


def test_int8_is_built_with_int8_products_and_fused_attention(built: dict[str, dict[str, Any]]) -> None:
    found = inspected(built["int8"])
    assert built["int8"]["typing"] == "strong"
    # On so small a model the compiler splits the QKV product into a kernel of its own; the others must be INT8.
    assert found["gemms"]["int8"] >= 3
    assert sum(found["gemms"].values()) == 4
    assert found["fused_attention"] == 1


def test_fp16_of_the_same_model_has_no_int8_left_and_fuses_attention(built: dict[str, dict[str, Any]]) -> None:
    found = inspected(built["fp16"])
    assert found["gemms"] == {"fp16": 4}
    assert found["gemm_share"] == {"fp16": 1.0}
    assert found["fused_attention"] == 1
    assert not any("Datatype: Int8" in line for line in built["fp16"]["layers"])
    assert found["kernels"] <= inspected(built["int8"])["kernels"]


def test_neither_plan_brings_a_warning(built: dict[str, dict[str, Any]]) -> None:
    for outcome in built.values():
        # Without a GPU the RTX compiler says so, and nothing else may be said.
        assert [text for text in outcome["said"] if "CUDA" not in text and "cuda" not in text] == []


def test_progress_is_reported_by_the_real_compiler_and_never_falls(built: dict[str, dict[str, Any]]) -> None:
    for outcome in built.values():
        fractions = [event["fraction"] for event in outcome["events"]]
        assert len(fractions) >= 20
        assert fractions == sorted(fractions)
        assert 0 < fractions[0] < fractions[-1] <= 1
        assert {"Building engine", "Optimizing graph"} <= {event["phase"] for event in outcome["events"]}


def test_the_real_compiler_stops_when_asked(real_builder: Any, tmp_path: Path) -> None:
    outcome = build(real_builder, tmp_path, Encoder().model(), cancel_after=5)
    assert outcome["cancelled"] is True
    assert len(outcome["events"]) == 5


def test_scales_in_float_with_casts_build_in_both_precisions(real_builder: Any, tmp_path: Path) -> None:
    model = Encoder(float_scales=True).model()
    assert inspected(build(real_builder, tmp_path, model))["gemms"]["int8"] >= 3
    assert inspected(build(real_builder, tmp_path, model, flavour="fp16"))["gemms"] == {"fp16": 4}


WORKER = """
import contextlib
from p4q_edge.runtime.builders.tensorrt import worker
from p4q_edge.runtime.engines.cuda.base import DeviceFacts
class Cuda:
    facts = DeviceFacts(index=0, name="none", compute_capability="8.6", total_memory_bytes=8 << 30, integrated=False,
                        driver_version="13.0", runtime_version="13.0")
    current = staticmethod(contextlib.nullcontext)
worker.open_cuda = lambda backend, device: Cuda
worker.REPORT_EVERY_S = 0
sys.exit(worker.main())
"""


def test_ctrl_c_stops_the_real_compiler_in_its_process_and_leaves_no_file(
    real_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker as it is, but for CUDA: the parent is interrupted at the tenth step of the real compiler."""
    (tmp_path / "model.onnx").write_bytes(Encoder().model())
    request = {"action": "build", "flavour": "int8", "options": asdict(TensorRTOptions(timing_cache=False))}
    request |= {name: str(tmp_path / file) for name, file in (("model", "model.onnx"), ("plan", "p"), ("engine", "e"))}
    shown: list[Progress] = []
    codes: list[int] = []

    def interrupt(progress: Progress) -> None:
        shown.append(progress)
        if len(shown) == 10:
            raise KeyboardInterrupt

    stop = tensorrt_child._stop

    def stop_and_note(worker: Any) -> None:
        stop(worker)
        codes.append(worker.returncode)

    monkeypatch.setattr(tensorrt_child, "_stop", stop_and_note)
    with pytest.raises(KeyboardInterrupt):
        tensorrt_child.run_worker(request, task="INT8 plan", progress=interrupt, command=real_command(WORKER))
    assert codes == [130]  # it stopped by itself, and was not killed
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


REROUTE = """
import json
import numpy as np
import tensorrt as trt
from p4q_edge.runtime.engines.tensorrt.library import make_logger
from p4q_edge.runtime.builders.tensorrt.network import parse_network, read_weights, remove_quantization
log = make_logger(trt)
builder = trt.Builder(log)
network, parser = parse_network(trt, builder, log, open(sys.argv[1], "rb").read(), strong=True)
before = network.num_layers
kept = remove_quantization(trt, network)
added = []
for index in range(before, network.num_layers):
    layer = network.get_layer(index)
    layer.__class__ = trt.IConstantLayer
    added.append([list(layer.shape), read_weights(layer.weights).astype(float).tolist()])
readers = [tensor.name for index in range(before) for layer in [network.get_layer(index)]
           if layer.type not in (trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE)
           for tensor in [layer.get_input(k) for k in range(layer.num_inputs)] if tensor is not None]
print(json.dumps({"added": added, "readers": readers}))
"""


@pytest.mark.parametrize("float_scales", [False, True])
def test_the_weights_that_the_real_network_holds_are_the_dequantized_ones(
    real_builder: Any, tmp_path: Path, float_scales: bool
) -> None:
    encoder = Encoder(float_scales=float_scales)
    (tmp_path / "model.onnx").write_bytes(encoder.model())
    found = json.loads(real_builder(REROUTE, str(tmp_path / "model.onnx")).splitlines()[-1])
    expected = [
        (integers.astype(np.float32) * scale.astype(np.float32)).astype(scale.dtype)
        for integers, scale in encoder.weights.values()
    ]
    assert [shape for shape, _ in found["added"]] == [list(array.shape) for array in expected]
    for (shape, values), array in zip(found["added"], expected, strict=True):
        np.testing.assert_array_equal(np.array(values).reshape(shape), array.astype(float))
    # Nothing but quantization itself reads a quantized or dequantized tensor any more.
    assert not [name for name in found["readers"] if name.endswith((".q", ".dq", ".weight"))]


def test_the_real_parsers_words_reach_the_user(real_builder: Any, tmp_path: Path) -> None:
    outcome = build(real_builder, tmp_path, Encoder(zero_point=3).model())
    assert outcome["error"] == "ArtifactError"
    assert re.search(
        r"cannot parse the model: node \d+ \(qkv\.q/QuantizeLinear\): .*Non-zero zero point is not supported",
        outcome["message"],
    )


def test_bytes_that_are_no_model_are_refused(real_builder: Any, tmp_path: Path) -> None:
    outcome = build(real_builder, tmp_path, b"no model")
    assert (outcome["error"], "cannot parse the model" in outcome["message"]) == ("ArtifactError", True)


def test_a_fixed_batch_needs_no_profile(real_builder: Any, tmp_path: Path) -> None:
    model = onnx.load_from_string(Encoder().model())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    fixed = {"min_batch": 2, "opt_batch": 2, "max_batch": 2}
    assert build(real_builder, tmp_path, model.SerializeToString(), **fixed)["size"] > 0
    outcome = build(real_builder, tmp_path, model.SerializeToString())
    assert outcome["error"] == "UsageError"


def test_level_and_workspace_are_accepted_by_the_real_configuration(real_builder: Any, tmp_path: Path) -> None:
    outcome = build(real_builder, tmp_path, Encoder().model(), optimization_level=5, workspace_mib=64)
    assert outcome["size"] > 0


def test_the_graph_of_debug_with_every_linear_opened_builds(real_builder: Any, tmp_path: Path) -> None:
    """`validate --debug` builds the graph with the linears' inputs and outputs as outputs, of FP16."""
    debug = pytest.importorskip("p4q_edge.evaluation.layer_debug_tensorrt", reason="the toolkit is not installed")
    opened = debug.with_linear_outputs(onnx.load_model_from_string(Encoder().model()))
    assert len(opened.graph.output) == 1 + 2 * 4
    outcome = build(real_builder, tmp_path, opened.SerializeToString())
    assert outcome["typing"] == "strong"
    assert inspected(outcome)["gemms"]["int8"] >= 3


POLYGRAPHY = """
from polygraphy.backend.trt import CreateConfig, NetworkFromOnnxBytes, Profile
builder, network, parser = NetworkFromOnnxBytes(open(sys.argv[1], "rb").read(), strongly_typed=True)()
profile = Profile().add("image", (1, 3, 32, 32), (4, 3, 32, 32), (4, 3, 32, 32))
config = CreateConfig(profiles=[profile])(builder, network)
print(network.num_layers > 10, config.num_optimization_profiles, network.get_input(0).name)
"""


def test_polygraphy_takes_our_arguments_on_the_real_parser(real_builder: Any, tmp_path: Path) -> None:
    """Up to the build itself, whose printed summary crashes in this pairing of bindings and compiler."""
    pytest.importorskip("polygraphy", reason="polygraphy is not installed")
    (tmp_path / "model.onnx").write_bytes(Encoder().model())
    assert real_builder(POLYGRAPHY, str(tmp_path / "model.onnx")).splitlines()[-1] == "True 1 image"
