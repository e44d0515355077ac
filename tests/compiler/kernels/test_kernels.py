"""NVIDIA's compiler on our FP16 graphs: what fuses, what does not, and that this stays so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from compiled_kernels import BLOCKS, HEAD_LINEARS, KERNELS, compare_with_recorded, only_on_demand
from onnx import TensorProto, helper, numpy_helper

from p4q_edge.runtime.builders.tensorrt.narrow_weights import with_fp16_weights

MODEL_OPTIMIZER_ENTRIES = 126  # NVIDIA Model Optimizer's default INT8 graph of ViT-B/32, without an adapter

every_vit = pytest.mark.parametrize("architecture", ["demo", pytest.param("ViT-B-32", marks=pytest.mark.slow)])
Compile = Callable[[str], Any]


@every_vit
def test_every_linear_is_an_int8_product(compiled: Compile, architecture: str) -> None:
    products = compiled(architecture).document["products"]
    assert products == {"Int8": 4 * BLOCKS[architecture] + HEAD_LINEARS, "Half": 1}  # the class matrix stays FP16


@every_vit
def test_one_fused_attention_a_block(compiled: Compile, architecture: str) -> None:
    assert compiled(architecture).document["fused_attentions"] == BLOCKS[architecture]


@every_vit
def test_no_product_is_generated_on_the_device(compiled: Compile, architecture: str) -> None:
    assert compiled(architecture).document["runtime_fusions"] == 0


@every_vit
def test_the_uint8_image_enters_one_kernel(compiled: Compile, architecture: str) -> None:
    assert compiled(architecture).document["uint8_kernels"] == 1


@every_vit
def test_the_compiler_warns_of_nothing(compiled: Compile, architecture: str) -> None:
    assert compiled(architecture).document["warnings"] == []


@every_vit
def test_number_of_kernels(compiled: Compile, architecture: str) -> None:
    assert compiled(architecture).document["kernels"] <= KERNELS[architecture]


@pytest.mark.slow
def test_fewer_kernels_than_model_optimizer(compiled: Compile) -> None:
    assert compiled("ViT-B-32").document["entries"] < MODEL_OPTIMIZER_ENTRIES


every_int4 = pytest.mark.parametrize(
    "architecture", ["demo-w4a16", pytest.param("ViT-B-32-w4a16", marks=only_on_demand)]
)
INT4_KERNELS = {"demo": 52, "ViT-B-32": 132}
INT4_PLAN = {"demo": 4_600_000, "ViT-B-32": 61_000_000}
"""Bytes; with INT8 weights that of ViT-B/32 has 103 million, in FP16 183."""


@pytest.mark.slow
@every_int4
def test_int4_weights_are_read_by_the_products(compiled: Compile, repository: Path, architecture: str) -> None:
    document, name = compiled(architecture).document, architecture.removesuffix("-w4a16")
    assert document["warnings"] == []
    # The adapter has 8 bits, and the class matrix stays FP16.
    assert document["products"] == {"Half": 4 * BLOCKS[name] + 1 + 1, "Int8": 2}
    reading = [line for line in document["list"] if line.startswith("runtime_fusion ReplCastMulCastFc: Half -> Half")]
    assert len(reading) == 4 * BLOCKS[name] + 1
    assert document["fused_attentions"] == BLOCKS[name]
    assert document["kernels"] <= INT4_KERNELS[name]
    assert document["plan_bytes"] < INT4_PLAN[name]
    compare_with_recorded(compiled(architecture).text, repository, architecture)


@pytest.mark.slow
def test_the_model_of_an_fp16_plan_compiles(compiled: Compile, compile_tool: ModuleType, tmp_path: Path) -> None:
    model = tmp_path / "fp16_weights.onnx"
    model.write_bytes(with_fp16_weights(compiled("demo-w4a16").model.read_bytes()))
    document = compile_tool.compile_listed(model)
    assert document["warnings"] == []
    assert document["products"] == {"Half": 4 * BLOCKS["demo"] + 2, "Int8": 2}
    assert not [line for line in document["list"] if "ReplCastMulCastFc" in line]  # how INT4 weights are read


def test_blocks_that_are_not_whole_are_compiled_without_a_word(
    compiled: Compile, compile_tool: ModuleType, tmp_path: Path
) -> None:
    """Which is why lint refuses them: 100 inputs in blocks of 64 have 2 scales, and so would blocks of 50."""
    inputs = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 100])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 64])
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT16),
        helper.make_node("DequantizeLinear", ["w", "s"], ["restored"], axis=0, block_size=64),
        helper.make_node("MatMul", ["x", "restored"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.ones((100, 64), ml_dtypes.int4), "w"),
        numpy_helper.from_array(np.ones((2, 64), np.float16), "s"),
    ]
    graph = helper.make_graph(nodes, "g", [inputs], [output], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "m.onnx")
    assert compile_tool.compile_listed(tmp_path / "m.onnx")["built"]


OTHERS = {
    "ViT-B-16": {"Int8": 51, "Half": 1},
    "ViT-B-16-SigLIP": {"Int8": 54, "Half": 1},  # the pool's query is constant and folded
}


CONVOLUTIONAL = {"RN50": (54, 55), "MobileCLIP-S1": (84, 172)}
"""Convolutions in INT8, and all: the stem, those of a channel a group and of squeeze-and-excite stay in FP16.

Of the 91 convolutions of one group of MobileCLIP-S1, 6 are squeeze-and-excite, whose output is one pixel, and one is
the stem.
"""


@only_on_demand
@pytest.mark.parametrize("architecture", OTHERS)
def test_other_architectures(compiled: Compile, repository: Path, architecture: str) -> None:
    document = compiled(architecture).document
    assert document["warnings"] == []
    assert document["uint8_kernels"] == 1
    assert document["products"] == OTHERS[architecture]
    assert document["runtime_fusions"] == 0
    compare_with_recorded(compiled(architecture).text, repository, architecture)


@only_on_demand
@pytest.mark.parametrize("architecture", CONVOLUTIONAL)
def test_convolutions_are_int8_products(compiled: Compile, repository: Path, architecture: str) -> None:
    document = compiled(architecture).document
    convolutions = [line for line in document["list"] if line.startswith("correlation")]
    quantized = [line for line in convolutions if ": Int8" in line]
    assert (len(quantized), len(convolutions)) == CONVOLUTIONAL[architecture]
    # What this compiler says of every INT8 convolution.
    assert all("Converting conv" in warning and "scales to fp32" in warning for warning in document["warnings"])
    compare_with_recorded(compiled(architecture).text, repository, architecture)


@every_vit
def test_kernels_are_the_recorded_ones(compiled: Compile, repository: Path, architecture: str) -> None:
    compare_with_recorded(compiled(architecture).text, repository, architecture)


@pytest.mark.slow
def test_quantized_attention_stays_fused(compiled: Compile, compile_tool: ModuleType, tmp_path: Path) -> None:
    plain = compiled("demo").document
    model = compile_tool.export("demo", tmp_path, "--quantize-attention")
    document = compile_tool.compile_listed(model)
    attentions = [line for line in document["list"] if "_mha_" in line]
    inner, last = "kgen _gemm_mha_v2: Int8 Int8 Int8 -> Int8", "kgen _gemv_mha_v1: Half -> Int8"
    assert attentions == [inner] * (BLOCKS["demo"] - 1) + [last]
    assert document["kernels"] == plain["kernels"]


def test_the_check_sees_a_lost_int8_product(compiled: Compile, compile_tool: ModuleType, tmp_path: Path) -> None:
    """The tests above can fail: an input that is not quantized costs the INT8 product."""
    model = onnx.load(compiled("demo").model)
    nodes = {node.name: node for node in model.graph.node}
    path = "encoder.trunk.transformer.resblocks.0.attn.out_proj"
    nodes[f"{path}/MatMul"].input[0] = nodes[f"{path}/QuantizeLinear"].input[0]
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        model.graph.node.remove(nodes[f"{path}/{kind}"])
    onnx.save(model, tmp_path / "float_input.onnx")
    products = compile_tool.compile_listed(tmp_path / "float_input.onnx")["products"]
    assert products["Int8"] == 4 * BLOCKS["demo"] + HEAD_LINEARS - 1


def test_a_refused_model_says_why(compiled: Compile, compile_tool: ModuleType, tmp_path: Path) -> None:
    model = onnx.load(compiled("demo").model)
    zero = next(t for t in model.graph.initializer if t.name.endswith("c_fc.input_zero_point"))
    zero.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(zero) + 3, zero.name))
    onnx.save(model, tmp_path / "shifted.onnx")
    document = compile_tool.compile_listed(tmp_path / "shifted.onnx")
    assert not document["built"]
    assert any("zero point" in warning.lower() for warning in document["warnings"])
