"""What NVIDIA's real parser makes of our graphs: weights, words of refusal, fixed batches, debug outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from encoder_graph import Encoder
from real_builds import build, inspected

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
