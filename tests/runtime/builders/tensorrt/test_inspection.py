"""Reading the engine inspector's JSON in both dialects."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.builders.tensorrt.inspection import datatype, inspect_engine, summarize_inspection
from p4q_edge.runtime.errors import P4QEdgeError

# One encoder block as each TensorRT describes it: (name, type, input type and shape, output shape).
BLOCK = [
    ("__mye12_0_myl0_0", "shape_call", None, None),
    ("Reformatting CopyNode for Input Tensor 0", "Reformat", ("uint8", [-1, 3, 32, 32]), [-1, 3, 32, 32]),
    ("patch_myl0_2", "correlation", ("fp16", [-1, 4, 32, 32]), [-1, 64, 4, 4]),
    ("__myl_CastMulAddRounCast_myl0_3", "kgen", ("fp16", [-1, 16, 64]), [-1, 16, 64]),
    ("block0/qkv/MatMul_myl0_4", "gemm", ("int8", [-1, 64]), [-1, 192]),
    ("_gemm_mha_v2_myl0_5", "fusion", ("fp16", [-1, 2, 16, 32]), [-1, 16, 64]),
    ("block0/fc2/MatMul_myl0_6", "gemm", ("int8", [-1, 256]), [-1, 64]),
    ("head/MatMul_myl0_7", "MatrixMultiply", ("fp16", [-1, 64]), [-1, 10]),
    ("__mye99", "signal", None, None),
]
TEXTS_10 = {"uint8": "Row major linear UInt8 format", "fp16": "Half", "int8": "Row major Int8 format"}
TEXTS_11 = {"uint8": "UInt8", "fp16": "Half", "int8": "Int8"}


def _tensor_10(name: str, kind: str, shape: list[int]) -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": shape, "Format/Datatype": TEXTS_10[kind]}


def _tensor_11(name: str, kind: str, shape: list[int]) -> dict[str, Any]:
    return {"Name": name, "Dimensions": shape, "Datatype": TEXTS_11[kind], "Format": "(Linear) Row major linear format"}


def _information(dialect: str) -> dict[str, Any]:
    tensor = _tensor_10 if dialect == "10" else _tensor_11
    layers = []
    for name, kind, source, result in BLOCK:
        inputs = [] if source is None else [tensor(f"{name}_in", *source)]
        outputs = [] if result is None else [tensor(f"{name}_out", "fp16", result)]
        layers.append({"Name": name, "LayerType": kind, "Inputs": inputs, "Outputs": outputs, "TacticName": ""})
    if dialect == "10":
        return {"Layers": layers, "Bindings": ["image", "logits"]}
    return {
        "Layers": layers,
        "I/O Tensors": [tensor("image", "uint8", [-1, 3, 32, 32]), tensor("logits", "fp16", [-1])],
    }


@pytest.mark.parametrize("dialect", ["10", "11"])
def test_both_dialects_give_the_same_figures(dialect: str) -> None:
    found = summarize_inspection(_information(dialect))
    assert found["dialect"] == dialect
    assert found["detailed"]
    assert found["kernels"] == 7
    assert found["pseudo_layers"] == 2
    assert found["gemms"] == {"fp16": 1, "int8": 2}
    operations = {"int8": 64 * 192 + 256 * 64, "fp16": 64 * 10}
    total = sum(operations.values())
    assert found["gemm_share"] == {name: round(operations[name] / total, 4) for name in ("fp16", "int8")}
    assert found["fused_attention"] == 1
    assert found["attentions"] == {"fp16": 1}
    assert found["convolutions"] == {"fp16": 1}
    assert found["convolution_share"] == {}
    assert found["reformats"] == 1
    assert found["kinds"]["gemm"] == 2
    expected = {"image": "unknown", "logits": "unknown"} if dialect == "10" else {"image": "uint8", "logits": "fp16"}
    assert found["io"] == expected
    json.dumps(found)


@pytest.mark.parametrize("dialect", ["10", "11"])
def test_attentions_in_int8_are_told_from_others(dialect: str) -> None:
    information = _information(dialect)
    tensor = _tensor_10 if dialect == "10" else _tensor_11
    quantized = {"Name": "_gemm_mha_v2_myl0_9", "LayerType": "kgen", "Inputs": [tensor("q", "int8", [-1, 16, 32])]}
    information["Layers"].append(quantized)
    assert summarize_inspection(information)["attentions"] == {"fp16": 1, "int8": 1}


CONVOLUTIONS = ("CaskConvActPool", "ConvActPool", "CudaDepthwiseConvolution", "CaskGemmConvolution", "CaskJitConv")


@pytest.mark.parametrize("kind", [*CONVOLUTIONS, "CaskDeconvolution", "CaskConvolution", "correlation", "Convolution"])
def test_convolutions_under_all_their_names(kind: str) -> None:
    """Counted by precision, and by weights times positions; none passes for a matrix product."""
    layers = [
        {
            "Name": f"conv{index}",
            "LayerType": kind,
            "Weights": {"Type": "Half", "Count": count},
            "Inputs": [_tensor_10("x", datatype, [-1, 16, 8, 8])],
            "Outputs": [_tensor_10("y", datatype, [-1, 16, side, side])],
        }
        for index, (datatype, count, side) in enumerate([("int8", 2304, 8), ("int8", 256, 4), ("fp16", 512, 4)])
    ]
    found = summarize_inspection({"Layers": layers, "Bindings": []})
    assert found["convolutions"] == {"fp16": 1, "int8": 2}
    total = 2304 * 64 + 256 * 16 + 512 * 16
    share = round(512 * 16 / total, 4)
    assert found["convolution_share"] == {"fp16": share, "int8": pytest.approx(1 - share)}
    assert found["gemms"] == {}


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        ({"Datatype": "FP8"}, "fp8"),
        ({"Datatype": "Float8E4M3FN"}, "fp8"),
        ({"Format/Datatype": "Row major linear FP4 format"}, "fp4"),
        ({"Datatype": "Float4E2M1"}, "fp4"),
        ({"Datatype": "Int4"}, "int4"),
        ({"Format/Datatype": "Row major linear FP16 format"}, "fp16"),
        ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}, "int8"),
        ({"Format/Datatype": "Row major linear FP32"}, "fp32"),
        ({"Datatype": "UInt8"}, "uint8"),
        ({"DataType": "FP16"}, "fp16"),
        ({"Datatype": "BFloat16"}, "bf16"),
        ({"Datatype": "Float"}, "fp32"),
        ({"Datatype": "FP8E4M3"}, "fp8"),
        ({"Datatype": "Int32"}, "int32"),
        ({"Datatype": "Mystery"}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_types_are_found_in_every_spelling(tensor: dict[str, str], expected: str) -> None:
    assert datatype(tensor) == expected


@pytest.mark.parametrize(
    ("name", "inputs", "gemms"),
    [
        ("__myl_CastMulFc_myl0_5", ["Int8", "Half"], {"fp16": 1}),
        ("__myl_FcAdd_myl0_5", ["Int8"], {"int8": 1}),
        ("__myl_FcAddAdd_myl0_9", ["Half", "Half"], {"fp16": 1}),
        ("__myl_MulAdd_myl0_9", ["Half", "Half"], {}),
    ],
)
def test_a_product_in_a_generated_kernel_counts_with_its_widest_input(
    name: str, inputs: list[str], gemms: dict[str, int]
) -> None:
    tensors = [{"Dimensions": [1, 8], "Datatype": kind} for kind in inputs]
    layer = {"Name": name, "LayerType": "runtime_fusion", "Inputs": tensors, "Outputs": tensors[:1]}
    found = summarize_inspection({"Layers": [layer], "I/O Tensors": []})
    assert found["gemms"] == gemms
    assert found["runtime_fusions"] == len(gemms)


def test_an_engine_that_only_names_its_layers_is_counted_and_marked() -> None:
    found = summarize_inspection({"Layers": ["a", "b + c"], "Bindings": ["image"]})
    assert (found["detailed"], found["kernels"], found["gemms"], found["gemm_share"]) == (False, 2, {}, {})


@given(st.lists(st.sampled_from(BLOCK)))
def test_shares_sum_to_one_and_kinds_to_the_layers(chosen: list[Any]) -> None:
    layers = [layer for layer in _information("11")["Layers"] if any(layer["Name"] == name for name, *_ in chosen)]
    found = summarize_inspection({"Layers": layers, "I/O Tensors": []})
    assert sum(found["kinds"].values()) == len(layers) == found["kernels"] + found["pseudo_layers"]
    assert sum(found["gemm_share"].values()) == pytest.approx(1 if found["gemms"] else 0, abs=2e-4)


def test_the_inspector_is_asked_for_json(double: Any) -> None:
    engine = _engine(double)
    double.inspection = json.dumps(_information("11"))
    assert inspect_engine(double.trt, engine)["gemms"] == {"fp16": 1, "int8": 2}
    double.inspection = "Layer(Constant) ..."
    with pytest.raises(P4QEdgeError, match=r"inspector: expected JSON, got 'Layer\(Constant\) ...'"):
        inspect_engine(double.trt, engine)


def _engine(double: Any) -> Any:
    return double.trt.Runtime(double.trt.ILogger()).deserialize_cuda_engine(b"plan")
