"""A real CLIP at 260 pixels from two public parts: EfficientNet-Lite2 looks, MiniLM reads.

The two are joined by one ridge regression: from MiniLM's embeddings of the names of the 1,000 classes of ImageNet to
the centred rows of EfficientNet's own classifier for them. Image features are centred by their mean over photographs,
which the image tower's projection carries as its bias.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from index_weights import EFFICIENTNET_LITE2, MINILM
from model_folders import build, write_folder
from real_efficientnet import PREPROCESS, TOWER, WIDTH, timm_weights
from safetensors.torch import load
from torch import Tensor

from p4q_edge.models import encoder_of, fill, preprocess_spec, to_batch

TEMPLATES = ("a photo of a {}.", "a {}.", "{}")
RIDGE = 1.0
TOWER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
TEXT: dict[str, Any] = {
    "hf_model_name": ".",
    "hf_tokenizer_name": ".",
    "hf_proj_type": "linear",
    "hf_pooler_type": "mean_pooler",
    "context_length": 32,
}
VISION: dict[str, Any] = TOWER | {"timm_proj": "linear", "timm_proj_bias": True}
CONFIG: dict[str, Any] = {"embed_dim": WIDTH, "vision_cfg": VISION, "text_cfg": TEXT}
BATCH = 50
TEMPERATURES = [float(2**power) for power in torch.arange(0, 7.01, 0.25)]


def write_clip(image_data: bytes, text_data: bytes, folder: Path, photographs: Tensor, labels: Tensor) -> Path:
    """Write the joined model.

    Args:
        image_data: the member of `EFFICIENTNET_LITE2`.
        text_data: the member of `MINILM`.
        photographs: uint8 ``(N, 3, 260, 260)`` of ImageNet, which center the features and fix the temperature.
        labels: their classes among the 1,000, ``(N,)`` int64.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(text_data)) as archive:
        for name in TOWER_FILES:
            (folder / name).write_bytes(archive.read(name))
        reader = load(archive.read("model.safetensors"))
    image = timm_weights(image_data)
    clip = build(folder, CONFIG)
    trunk = {name: value for name, value in image.items() if not name.startswith("classifier.")}
    clip.visual.trunk.load_state_dict(trunk, strict=True)
    clip.text.transformer.load_state_dict(of_encoder(reader, clip.text.transformer.state_dict()), strict=True)
    seen = image_features(clip.visual.trunk, photographs)
    mean = seen.mean(0)
    names = open_clip.IMAGENET_CLASSNAMES
    words = text_embeddings(clip, folder, names)
    rows = image["classifier.weight"]
    joint = ridge(words, rows - rows.mean(0), strength=RIDGE)  # (width of the text, 1280)
    clip.text.proj.weight.data = joint.T.contiguous()
    clip.visual.head.proj.weight.data, clip.visual.head.proj.bias.data = torch.eye(WIDTH), -mean
    scale = best_scale(F.normalize(seen - mean, dim=-1) @ F.normalize(words @ joint, dim=-1).T, labels)
    return write_folder(
        folder,
        config=CONFIG,
        preprocess=PREPROCESS,
        visual=clip.visual.state_dict(),
        text=clip.text.state_dict(),
        license=EFFICIENTNET_LITE2.license,
        logit_scale=scale,
        parts=[EFFICIENTNET_LITE2.requirement, MINILM.requirement],
    )


def ridge(x: Tensor, y: Tensor, *, strength: float) -> Tensor:
    """The matrix ``(a, b)`` that minimizes ``|x m - y|^2 + strength |m|^2``, for ``(n, a)`` and ``(n, b)``."""
    wide = x.double()
    normal = wide.T @ wide + strength * torch.eye(x.shape[1], dtype=torch.float64)
    return torch.linalg.solve(normal, wide.T @ y.double()).float()


@torch.no_grad()
def text_embeddings(clip: Any, folder: Path, names: Sequence[str]) -> Tensor:
    """Mean over the templates of the text tower's normalized embeddings before its projection, ``(names, width)``."""
    projection, clip.text.proj = clip.text.proj, torch.nn.Identity()
    encode = encoder_of(clip)
    clip.text.proj = projection
    tokenizer = open_clip.tokenizer.HFTokenizer(str(folder), context_length=TEXT["context_length"])
    found = []
    for template in TEMPLATES:
        tokens = tokenizer([fill(template, name) for name in names])
        found.append(torch.cat([F.normalize(encode(some), dim=-1) for some in torch.split(tokens, BATCH)]))
    return torch.stack(found).mean(0)


@torch.no_grad()
def image_features(tower: torch.nn.Module, photographs: Tensor) -> Tensor:
    """What a tower makes of uint8 photographs, ``(N, dim)``."""
    spec = preprocess_spec(PREPROCESS)
    return torch.cat([tower(to_batch(some, spec)) for some in torch.split(photographs, BATCH)])


def best_scale(cosines: Tensor, labels: Tensor) -> float:
    """The logit scale of the least cross-entropy, of cosines ``(N, classes)``."""
    losses = [float(F.cross_entropy(scale * cosines, labels)) for scale in TEMPERATURES]
    return TEMPERATURES[losses.index(min(losses))]


def of_encoder(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that the encoder has; the pooler of the checkpoint is read by nobody."""
    return {name: found[name] for name in wanted}
