"""A real pretrained ViT-S/14 at 224 pixels, from an ONNX of the package index, in open_clip's form and in timm's.

Its backbone is DINOv2's, fine-tuned to find what a picture is about: a testbed for fidelity, export and speed, not for
accuracy. The text tower is random, the projection the identity.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import timm
import torch
from index_weights import VIT_FOCUS
from model_folders import RANDOM_TEXT, write_folder
from onnx import numpy_helper
from torch import Tensor

from p4q_edge.runtime.errors import QualityGateError

PIXELS, WIDTH, DEPTH = 224, 384, 12
ARCHITECTURE = "vit_small_patch14_dinov2"
PREPROCESS: dict[str, Any] = {
    "size": PIXELS,
    "mode": "RGB",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
VISION: dict[str, Any] = {
    "image_size": PIXELS,
    "layers": DEPTH,
    "width": WIDTH,
    "head_width": 64,
    "patch_size": 14,
    "ls_init_value": 1e-5,
    "no_ln_pre": True,
    "pool_type": "tok",
    "final_ln_after_pool": True,
    "norm_kwargs": {"eps": 1e-6},
}
BLOCK = {
    "norm1": "norm1",
    "attn.proj": "attention.output.dense",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Parts of a block: timm's name and that of the ONNX."""

TO_OPEN_CLIP = {
    "norm1": "ln_1",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj": "attn.out_proj",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "ls1": "ls_1",
    "ls2": "ls_2",
}
TOLERANCE = 1e-4
"""Of the class token's elements, which reach about 10."""


def write_open_clip(data: bytes, folder: Path) -> Path:
    """Write the model as open_clip's own transformer."""
    visual = open_clip_weights(timm_weights(data))
    config = {"embed_dim": WIDTH, "vision_cfg": VISION, "text_cfg": RANDOM_TEXT}
    return write_folder(folder, config=config, preprocess=PREPROCESS, visual=visual, license=VIT_FOCUS.license)


def write_timm(data: bytes, folder: Path) -> Path:
    """Write the same model as a tower of timm, whose own configuration gives the size."""
    (folder / "image").mkdir(parents=True, exist_ok=True)
    own = {"architecture": ARCHITECTURE, "num_classes": 0, "model_args": {"img_size": PIXELS}, "pretrained_cfg": {}}
    (folder / "image" / "config.json").write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")
    tower = {"timm_model_name": "local-dir:image", "timm_pool": "token", "timm_proj": "none", "image_size": PIXELS}
    visual = {f"trunk.{name}": value for name, value in timm_weights(data).items()}
    config = {"embed_dim": WIDTH, "vision_cfg": tower, "text_cfg": RANDOM_TEXT}
    return write_folder(folder, config=config, preprocess=PREPROCESS, visual=visual, license=VIT_FOCUS.license)


def timm_weights(data: bytes) -> dict[str, Tensor]:
    """The backbone by timm's names, checked against the ONNX on random images.

    Raises:
        QualityGateError: the class token differs.
    """
    model = onnx.load_from_string(data)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    products = {node.name: weights.get(node.input[1]) for node in model.graph.node if node.op_type == "MatMul"}

    def part(name: str, kind: str) -> Tensor:
        value = weights.get(f"backbone.{name}.{kind}")
        if value is None:  # weights of linears are anonymous and transposed, the nodes that read them are not
            value = products[
                f"/backbone/{name.replace('layer.', 'layer~').replace('.', '/').replace('~', '.')}/MatMul"
            ].T
        return torch.from_numpy(np.array(value, order="C"))

    state = {f"patch_embed.proj.{kind}": part("embeddings.patch_embeddings.projection", kind) for kind in _KINDS}
    state |= {f"norm.{kind}": part("layernorm", kind) for kind in _KINDS}
    for block in range(DEPTH):
        old, new = f"encoder.layer.{block}", f"blocks.{block}"
        for kind in _KINDS:
            joint = [part(f"{old}.attention.attention.{one}", kind) for one in ("query", "key", "value")]
            state[f"{new}.attn.qkv.{kind}"] = torch.cat(joint)
            state |= {f"{new}.{ours}.{kind}": part(f"{old}.{theirs}", kind) for ours, theirs in BLOCK.items()}
        for number in "12":
            state[f"{new}.ls{number}.gamma"] = part(f"{old}.layer_scale{number}", "lambda1")
    positions = tapped(model, _position_table(model), torch.zeros(1, 3, PIXELS, PIXELS))
    # timm has one class token whose place is in the table.
    state["cls_token"] = torch.from_numpy(weights["backbone.embeddings.cls_token"].copy())
    state["pos_embed"] = torch.from_numpy(positions)
    _check(state, model)
    return state


_KINDS = ("weight", "bias")


def open_clip_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of timm's module by the names of open_clip's, whose patches have no bias: it moves to the places."""
    positions = state["pos_embed"][0].clone()
    positions[1:] += state["patch_embed.proj.bias"]
    found = {
        "class_embedding": state["cls_token"][0, 0],
        "positional_embedding": positions,
        "conv1.weight": state["patch_embed.proj.weight"],
        "proj": torch.eye(WIDTH),
    }
    found |= {f"ln_post.{kind}": state[f"norm.{kind}"] for kind in _KINDS}
    for name, value in state.items():
        if name.startswith("blocks."):
            _, block, rest = name.split(".", 2)
            old = next(part for part in TO_OPEN_CLIP if rest.startswith(part))
            found[f"transformer.resblocks.{block}.{TO_OPEN_CLIP[old]}{rest.removeprefix(old)}"] = value
    return found


def tapped(model: onnx.ModelProto, name: str, images: Tensor) -> Any:
    """What one tensor inside the ONNX is for images ``(N, 3, H, W)``."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    del copied.graph.output[:]
    copied.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(copied.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([name], {"input_image": images.numpy()})[0]


def _position_table(model: onnx.ModelProto) -> str:
    """Name of the table of places that the ONNX has resized to its input, with that of the class token in front."""
    tokens = "/backbone/embeddings/Concat_1_output_0"
    add = next(node for node in model.graph.node if node.op_type == "Add" and tokens in node.input)
    return next(name for name in add.input if name != tokens)


def _check(state: dict[str, Tensor], model: onnx.ModelProto) -> None:
    trunk = timm.create_model(ARCHITECTURE, num_classes=0, img_size=PIXELS, global_pool="token").eval()
    trunk.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    last = next(node.output[0] for node in model.graph.node if node.name == "/backbone/layernorm/Add_1")
    expected = tapped(model, last, images)[:, 0]
    with torch.no_grad():
        difference = float(np.abs(trunk(images).numpy() - expected).max())
    if not difference < TOLERANCE:
        raise QualityGateError(
            f"the class token of the converted ViT differs by {difference:.1e} from that of {VIT_FOCUS.requirement}, "
            f"expected less than {TOLERANCE:.0e}; use the versions of tools/constraints.txt"
        )
