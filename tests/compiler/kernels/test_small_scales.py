"""NVIDIA's compiler on scales that FP16 does not hold as normal numbers: of values near zero everywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from compiled_contracts import module_of
from compiled_kernels import BLOCKS, HEAD_LINEARS, KERNELS
from torch import nn

from p4q_edge.graph.export import export_classifier
from p4q_edge.quant.scheme import QuantScheme

BLOCK = "encoder.trunk.transformer.resblocks.1"
LINEAR = f"{BLOCK}.mlp.c_proj"
RESNET: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [2, 2, 2, 2], "width": 32, "head_width": 32, "patch_size": None},
}
FLOAT = onnx.TensorProto.FLOAT
Shrink = Callable[[Any], None]


def shrink(clip: Any) -> None:
    """Bring what the second linear of an MLP reads near zero."""
    for parameter in clip.visual.transformer.resblocks[1].mlp.c_fc.parameters():
        parameter.data *= 1e-4


def shrink_attention(*parts: str) -> Shrink:
    """Return what brings some of query, key and value of an attention near zero."""

    def shrink_rows(clip: Any) -> None:
        attention = clip.visual.transformer.resblocks[1].attn
        for parameter in (attention.in_proj_weight, attention.in_proj_bias):
            for name, rows in zip(("query", "key", "value"), parameter.data.chunk(3), strict=True):
                rows *= 1e-4 if name in parts else 1.0

    return shrink_rows


def shrink_convolutions(clip: Any) -> None:
    """Bring near zero what a pool and a convolution read, and what a residual addition and a convolution share."""
    visual = clip.visual
    # At initialization the last norm of each block is zero.
    for norm in (module for module in visual.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.weight.data.uniform_(0.5, 1)
        norm.bias.data.normal_(0, 0.1)
    shared = visual.layer2[0]
    for norm in (visual.layer1[0].bn1, visual.layer3[0].bn2, shared.bn3, list(shared.downsample)[-1]):
        norm.weight.data *= 1e-6
        norm.bias.data *= 1e-6


def compile_shrunk(
    tool: ModuleType,
    folder: Path,
    prepare: Shrink,
    capability: str,
    *,
    config: Mapping[str, Any] | None = None,
    **scheme: Any,
) -> tuple[dict[str, int], dict[str, Any]]:
    """Types of the stored tensors of a random model that was changed, and the compile check's document about it."""
    random = module_of("compile_check_random", tool.HERE / "random_classifier.py")
    widths = QuantScheme(observer="minmax", weight_observer="minmax", **scheme)
    model, images = random.classifier_of(config or random.DEMO, "demo", classes=5, scheme=widths, prepare=prepare)
    graphs = export_classifier(model, images)
    assert not graphs.unsound
    path = folder / "small.onnx"
    path.write_bytes(graphs.fp16 + graphs.weights)
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}
    try:
        document = tool.compile_listed(path, "--capability", capability)
    except FileNotFoundError as unavailable:
        pytest.skip(f"NVIDIA's compiler: {unavailable}")
    return stored, document


@pytest.mark.slow
@pytest.mark.parametrize(("number_format", "capability", "kind"), [("int", "SM86", "Int8"), ("fp8", "SM89", "FP8")])
def test_its_product_is_one_of_eight_bits_without_another_kernel(
    compile_tool: ModuleType, tmp_path: Path, number_format: Any, capability: str, kind: str
) -> None:
    """With the scale of the weight in FP16 it says: type mismatch between matmul operand scales."""
    stored, document = compile_shrunk(compile_tool, tmp_path, shrink, capability, number_format=number_format)
    assert stored[f"{LINEAR}.input_scale"] == FLOAT
    assert document["built"], document["warnings"]
    assert document["products"] == {kind: 4 * BLOCKS["demo"] + HEAD_LINEARS, "Half": 1}
    assert document["kernels"] <= KERNELS["demo"]


@pytest.mark.slow
@pytest.mark.parametrize("parts", [("value",), ("query",), ("query", "key", "value")])
def test_an_attention_of_values_near_zero_stays_fused_in_int8(
    compile_tool: ModuleType, tmp_path: Path, parts: tuple[str, ...]
) -> None:
    """Its products are of two activations: each has its scales in float32 between two Casts, the other in FP16."""
    prepare = shrink_attention(*parts)
    stored, document = compile_shrunk(compile_tool, tmp_path, prepare, "SM86", quantize_attention=True)
    small = {part: stored.get(f"{BLOCK}.attn.{part}_scale") for part in ("query", "key", "value")}
    assert small == {part: FLOAT if part in parts else None for part in small}
    assert document["built"], document["warnings"]
    assert document["products"] == {"Int8": 4 * BLOCKS["demo"] + HEAD_LINEARS, "Half": 1}
    attentions = [line for line in document["list"] if "_mha_" in line]
    # The last block's reads the joint product as it comes.
    inner, last = "kgen _gemm_mha_v2: Int8 Int8 Int8 -> Int8", "kgen _gemv_mha_v1: Half -> Int8"
    assert attentions == [inner] * (BLOCKS["demo"] - 1) + [last]
    assert document["kernels"] <= KERNELS["demo"]


@pytest.mark.slow
def test_convolutions_and_pools_of_values_near_zero_stay_in_int8(compile_tool: ModuleType, tmp_path: Path) -> None:
    """77 kernels as without; with the pool in FP16 between scales in float32 there were 78, and 6 pools in INT8."""
    stored, document = compile_shrunk(compile_tool, tmp_path, shrink_convolutions, "SM86", config=RESNET)
    trunk = "encoder.trunk"
    small = {name for name, kind in stored.items() if name.endswith("scale") and kind == FLOAT}
    assert small == {
        f"{trunk}.layer1.0.conv2.input_scale",
        f"{trunk}.layer2.0.downsample.0.output_scale",
        f"{trunk}.layer2.1.conv1.input_scale",
        f"{trunk}.layer3.0.conv3.pooled_scale",
        f"{trunk}.layer3.0.conv3.input_scale",
    }
    assert document["built"], document["warnings"]
    kinds = Counter(line.split()[0] for line in document["list"] if ": Int8" in line)
    assert (kinds["correlation"], kinds["avgpool"], document["kernels"]) == (30, 7, 77)
