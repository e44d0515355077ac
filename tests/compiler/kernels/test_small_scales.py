"""NVIDIA's compiler on an input scale that FP16 does not hold as a normal number: of values near zero everywhere."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from compiled_contracts import module_of
from compiled_kernels import BLOCKS, HEAD_LINEARS, KERNELS

from p4q_edge.graph.export import export_classifier
from p4q_edge.quant.scheme import QuantScheme

LINEAR = "encoder.trunk.transformer.resblocks.1.mlp.c_proj"


def shrink(clip: Any) -> None:
    """Bring what the second linear of an MLP reads near zero."""
    for parameter in clip.visual.transformer.resblocks[1].mlp.c_fc.parameters():
        parameter.data *= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("number_format", "capability", "kind"), [("int", "SM86", "Int8"), ("fp8", "SM89", "FP8")])
def test_its_product_is_one_of_eight_bits_without_another_kernel(
    compile_tool: ModuleType, tmp_path: Path, number_format: Any, capability: str, kind: str
) -> None:
    """With the scale of the weight in FP16 it says: type mismatch between matmul operand scales."""
    tool = module_of("compile_check_random", compile_tool.HERE / "random_classifier.py")
    scheme = QuantScheme(number_format=number_format, observer="minmax", weight_observer="minmax")
    model, images = tool.classifier_of(tool.DEMO, "demo", classes=5, scheme=scheme, prepare=shrink)
    graphs = export_classifier(model, images)
    assert not graphs.unsound
    path = tmp_path / "small.onnx"
    path.write_bytes(graphs.fp16 + graphs.weights)
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert stored[f"{LINEAR}.input_scale"] == onnx.TensorProto.FLOAT
    try:
        document = compile_tool.compile_listed(path, "--capability", capability)
    except FileNotFoundError as unavailable:
        pytest.skip(f"NVIDIA's compiler: {unavailable}")
    assert document["built"], document["warnings"]
    assert document["products"] == {kind: 4 * BLOCKS["demo"] + HEAD_LINEARS, "Half": 1}
    assert document["kernels"] <= KERNELS["demo"]
