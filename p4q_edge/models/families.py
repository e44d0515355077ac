"""`p4q-edge models`: the models of open_clip, and what this project can do with each."""

import logging
from dataclasses import dataclass
from typing import Any

# Counting builds the tower without its weights, a tenth of a second for a ViT and a second for a FastViT.
MAX_COUNTED = 24
_CONVOLUTIONAL = ("convnext", "fastvit", "resnet", "regnet", "efficientnet")
_MIXED = ("vitamin", "swin", "coatnet", "mci")
_BYTES_OF_FLOAT = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """One architecture.

    Attributes:
        tags: pretrained weights that open_clip knows.
        family: kind of image tower: `vit`, `mixed` (convolutions and attention), `conv`.
        input: side of the square image, in pixels.
        dim: width of the embedding.
        image_parameters: of the image tower; None if not counted.
        int8: what is quantized: `all linears`, or `linears and convolutions`, but those of a channel a group.
        prompts: whether context vectors can be learned: through any text tower but that of a captioner.
    """

    name: str
    tags: tuple[str, ...]
    family: str
    input: int
    dim: int
    image_parameters: int | None
    int8: str
    prompts: bool


def list_models(search: str = "", *, count: bool | None = None) -> tuple[ModelRow, ...]:
    """Return the architectures whose name or tag contains `search`, ignoring case.

    Args:
        search: part of a name or of a tag; empty for all.
        count: whether to count parameters; None counts when there are at most 24.
    """
    # Imported here: open_clip takes seconds, and the parser of this command needs none of it.
    import open_clip

    rows = []
    for name in open_clip.list_models():
        tags = tuple(open_clip.list_pretrained_tags_by_model(name))
        if search.lower() in name.lower() or any(search.lower() in tag.lower() for tag in tags):
            rows.append((name, tags))
    counted = len(rows) <= MAX_COUNTED if count is None else count
    return tuple(_row(name, tags, open_clip.get_model_config(name), count=counted) for name, tags in rows)


def image_parameters(name: str) -> int:
    """Return the number of parameters of the image tower, without making its weights."""
    import open_clip
    import torch

    # open_clip warns on the root logger that the model has no weights; here that is the point.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with torch.device("meta"):
            model: Any = open_clip.create_model(name, device="meta")
    finally:
        root.setLevel(level)
    return sum(parameter.numel() for parameter in model.visual.parameters())


def _row(name: str, tags: tuple[str, ...], config: dict[str, Any], *, count: bool) -> ModelRow:
    vision, text = config["vision_cfg"], config["text_cfg"]
    family = _family(vision)
    return ModelRow(
        name=name,
        tags=tags,
        family=family,
        input=int(vision.get("image_size", 224)),
        dim=int(config["embed_dim"]),
        image_parameters=image_parameters(name) if count and not text.get("hf_model_name") else None,
        int8="all linears" if family == "vit" else "linears and convolutions",
        prompts="multimodal_cfg" not in config,
    )


def _family(vision: dict[str, Any]) -> str:
    timm = str(vision.get("timm_model_name") or "").lower()
    if isinstance(vision.get("layers"), list) or timm.startswith(_CONVOLUTIONAL):
        return "conv"
    return "mixed" if any(word in timm for word in _MIXED) else "vit"
