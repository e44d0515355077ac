"""Write models as open_clip folders, which the product loads as any user's (``local-dir:FOLDER``)."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

RANDOM_TEXT: dict[str, Any] = {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
"""A text tower that nobody asks: for image towers that were never a CLIP's."""


def write_folder(
    folder: Path,
    *,
    config: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    visual: Mapping[str, Tensor],
    text: Mapping[str, Tensor] | None = None,
    **facts: object,
) -> Path:
    """Write ``open_clip_config.json`` and ``open_clip_model.safetensors``.

    Args:
        config: `model_cfg` of open_clip; towers named beside it are relative to the folder.
        visual: weights of the image tower by open_clip's names, all of them.
        text: weights of the text tower; None draws random ones.
        facts: further keys of the file, such as the licence and the logit scale as `logit_scale`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scale = facts.pop("logit_scale", None)
    clip = build(folder, config)
    clip.visual.load_state_dict(dict(visual), strict=True)
    if text is not None:
        clip.text.load_state_dict(dict(text), strict=True)
    if isinstance(scale, float):
        clip.logit_scale.data = torch.tensor(scale).log()
    save_file({n: t.contiguous().clone() for n, t in clip.state_dict().items()}, folder / "open_clip_model.safetensors")
    document = {"model_cfg": config, "preprocess_cfg": preprocess, **facts}
    (folder / "open_clip_config.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return folder


def build(folder: Path, config: Mapping[str, Any]) -> Any:
    """The module of a configuration before its weights, the same each time."""
    local: dict[str, Any] = copy.deepcopy(dict(config))
    vision, text = local["vision_cfg"], local["text_cfg"]
    if str(vision.get("timm_model_name", "")).startswith("local-dir:"):
        vision["timm_model_name"] = f"local-dir:{(folder / vision['timm_model_name'][10:]).resolve()}"
    whole = open_clip.CLIP
    if "hf_model_name" in text:
        text |= {"hf_model_name": str((folder / text["hf_model_name"]).resolve()), "hf_model_pretrained": False}
        whole = open_clip.CustomTextCLIP
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module: nn.Module = whole(**local)
    return module.eval().requires_grad_(False)
