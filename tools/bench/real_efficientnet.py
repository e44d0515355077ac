"""EfficientNet-Lite2 with its weights for ImageNet-1k, from the package index, as an image tower of timm.

Its own classifier gives accuracy without any text: logits are its products with the pooled features.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import timm
import torch
from index_weights import EFFICIENTNET_LITE2
from model_folders import RANDOM_TEXT, write_folder
from safetensors.torch import load_file, save_file
from torch import Tensor

from p4q_edge.runtime.errors import CorruptArtifactError

ARCHITECTURE = "tf_efficientnet_lite2"
PIXELS, WIDTH = 260, 1280
PREPROCESS: dict[str, Any] = {
    "size": PIXELS,
    "mode": "RGB",
    "mean": [127 / 255] * 3,
    "std": [128 / 255] * 3,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
TOWER: dict[str, Any] = {"timm_model_name": ARCHITECTURE, "timm_pool": "avg", "image_size": PIXELS}
CLASSIFIER = "classifier.safetensors"


def timm_weights(data: bytes) -> dict[str, Tensor]:
    """The checkpoint by timm's names, which are in the same order; no pickled code is run.

    Raises:
        CorruptArtifactError: a tensor has another shape than its place.
    """
    found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    names = timm.create_model(ARCHITECTURE, pretrained=False).state_dict()
    if [value.shape for value in found.values()] != [value.shape for value in names.values()]:
        raise CorruptArtifactError(
            f"the {len(found)} tensors of {EFFICIENTNET_LITE2.requirement} do not fit the {len(names)} of timm's "
            f"{ARCHITECTURE} in order; use the timm of tools/constraints.txt"
        )
    return dict(zip(names, found.values(), strict=True))


def write_efficientnet(data: bytes, folder: Path) -> Path:
    """Write the image tower with its pooled features as result, and the classifier beside it."""
    weights = timm_weights(data)
    visual = {f"trunk.{name}": value for name, value in weights.items() if not name.startswith("classifier.")}
    config = {"embed_dim": WIDTH, "vision_cfg": TOWER | {"timm_proj": "none"}, "text_cfg": RANDOM_TEXT}
    write_folder(folder, config=config, preprocess=PREPROCESS, visual=visual, license=EFFICIENTNET_LITE2.license)
    save_file(
        {kind: weights[f"classifier.{kind}"].contiguous().clone() for kind in ("weight", "bias")}, folder / CLASSIFIER
    )
    return folder


def imagenet_logits(features: Tensor, folder: Path) -> Tensor:
    """Logits of the 1,000 classes ``(N, 1000)`` for pooled features ``(N, 1280)``."""
    classifier = load_file(folder / CLASSIFIER)
    return features @ classifier["weight"].T + classifier["bias"]
