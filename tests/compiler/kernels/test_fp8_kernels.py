"""NVIDIA's compiler on our FP8 graphs: whole, as in INT8, for GPUs of compute capability 8.9 and later alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from compiled_contracts import module_of
from compiled_kernels import BLOCKS, HEAD_LINEARS, KERNELS, compare_with_recorded, only_on_demand
from onnx import helper, numpy_helper

Compile = Callable[[str], Any]
every_fp8 = pytest.mark.parametrize(
    "architecture", ["demo-fp8", pytest.param("ViT-B-32-fp8", marks=(pytest.mark.slow, only_on_demand))]
)
ON_ADA, ON_BLACKWELL, ON_AMPERE = (("--capability", name) for name in ("SM89", "SM120", "SM86"))
PLAN = {"demo": 5_000_000, "ViT-B-32": 103_000_000}
"""Bytes; in INT8 that of ViT-B/32 has 103.0 million, in FP16 183."""

BUILD = """
import json, sys
from pathlib import Path
from p4q_edge.runtime.artifacts import TensorRTOptions
from p4q_edge.runtime.builders.tensorrt.ahead_of_time import build_ahead
from p4q_edge.runtime.builders.tensorrt.compilation import Job
from p4q_edge.runtime.engines.tensorrt import RTX, import_library
model, plan, flavour, *capabilities = sys.argv[1:]
plan = Path(plan)
told = {"emit": lambda event: None, "cancelled": lambda: False}
job = Job(options=TensorRTOptions(), flavour=flavour, model=Path(model), plan=plan, engine=plan, **told)
print(json.dumps(build_ahead(import_library(RTX), job, capabilities=tuple(capabilities))["inspection"]))
"""


@every_fp8
def test_every_linear_is_an_fp8_product(compiled: Compile, repository: Path, architecture: str) -> None:
    """As many kernels as in INT8, and the same between the products: 8-bit numbers in and out of each."""
    document, name = compiled(architecture).document, architecture.removesuffix("-fp8")
    assert document["warnings"] == []
    assert document["products"] == {"FP8": 4 * BLOCKS[name] + HEAD_LINEARS, "Half": 1}  # the class matrix stays FP16
    assert document["runtime_fusions"] == 0
    assert document["fused_attentions"] == BLOCKS[name]
    assert document["uint8_kernels"] == 1
    assert document["kernels"] <= KERNELS[name]
    assert document["plan_bytes"] < PLAN[name]
    compare_with_recorded(compiled(architecture).text, repository, architecture)


def test_it_compiles_for_blackwell_as_for_ada_and_not_for_ampere(compiled: Compile, compile_tool: ModuleType) -> None:
    model = compiled("demo-fp8").model
    newer = compile_tool.compile_listed(model, *ON_BLACKWELL)
    assert newer["list"] == compiled("demo-fp8").document["list"]
    older = compile_tool.compile_listed(model, *ON_AMPERE)
    assert (older["parsed"], older["built"]) == (True, False)
    assert any("HW-specific datatypes: fp8_e4m3" in warning for warning in older["warnings"])


@pytest.mark.parametrize(
    ("flavour", "capabilities", "products"),
    [("fp8", ("8.9", "12.0", "12.1"), {"fp8": 19, "fp16": 1}), ("fp16", ("8.6",), {"fp16": 20})],
)
def test_both_flavours_of_a_bundle_are_built(
    compiled: Compile,
    compile_tool: ModuleType,
    tmp_path: Path,
    flavour: str,
    capabilities: tuple[str, ...],
    products: dict[str, int],
) -> None:
    """By the product's own code: of an FP16 plan nothing is FP8, so that it compiles for older GPUs too."""
    toolchain = module_of("compile_check_toolchain", compile_tool.HERE / "toolchain.py")
    model, environment = compiled("demo-fp8").model, toolchain.find_toolchain().environment()
    command = [sys.executable, "-c", BUILD, str(model), str(tmp_path / "out"), flavour, *capabilities]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    inspection = json.loads(done.stdout.splitlines()[-1])
    assert inspection["gemms"] == products
    assert inspection["fused_attention"] == BLOCKS["demo"]


def test_fp8_beside_int8_is_why_lint_refuses_it(compiled: Compile, compile_tool: ModuleType, tmp_path: Path) -> None:
    """Of one linear the weight is made INT8: the compiler has no product for it, and says so in its own words."""
    model = onnx.load(compiled("demo-fp8").model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    path = "encoder.trunk.transformer.resblocks.0.mlp.c_fc"
    for name in (f"{path}.weight_fp8", f"{path}.weight_zero_point"):
        values = numpy_helper.to_array(tensors[name]).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        tensors[name].CopyFrom(numpy_helper.from_array(np.rint(values / 4).astype(np.int8), name))
    onnx.save(model, tmp_path / "mixed.onnx")
    document = compile_tool.compile_listed(tmp_path / "mixed.onnx", *ON_ADA)
    assert not document["built"]
    assert any("Input and filter have to be the same type" in warning for warning in document["warnings"])


def quantize_attentions(model: onnx.ModelProto) -> None:
    """Put query, key, softmax and value of each attention on a grid of FP8."""
    producers = {name: node for node in model.graph.node for name in node.output}
    readers = {name: node for node in model.graph.node for name in node.input}
    constants = {"fp8.scale": np.array(0.01, np.float16)}
    products = [
        product
        for node in model.graph.node
        if node.op_type == "Softmax"
        for product in (producers[node.input[0]], readers[node.output[0]])
    ]
    assert {product.op_type for product in products} == {"MatMul"}
    for product in products:
        for index in (0, 1):
            name = f"fp8.{product.name}.{index}"
            constants |= {f"{name}.{end}": np.array(0, ml_dtypes.float8_e4m3fn) for end in ("zero", "zero_dq")}
            nodes = (
                helper.make_node("QuantizeLinear", [product.input[index], "fp8.scale", f"{name}.zero"], [f"{name}.q"]),
                helper.make_node("DequantizeLinear", [f"{name}.q", "fp8.scale", f"{name}.zero_dq"], [f"{name}.dq"]),
            )
            for node in nodes:
                model.graph.node.insert(list(model.graph.node).index(product), node)
            product.input[index] = f"{name}.dq"
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())


def test_attention_products_in_fp8_are_taken_apart_which_is_why_recipes_refuse_them(
    compiled: Compile, compile_tool: ModuleType, tmp_path: Path
) -> None:
    plain = compiled("demo-fp8")
    model = onnx.load(plain.model)
    quantize_attentions(model)
    onnx.save(model, tmp_path / "attentions.onnx")
    document = compile_tool.compile_listed(tmp_path / "attentions.onnx", *ON_ADA)
    assert document["built"]
    assert document["fused_attentions"] < plain.document["fused_attentions"]
    assert document["kernels"] > plain.document["kernels"]
