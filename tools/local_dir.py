"""Write a trained open_clip ``CLIP`` as a small ``local-dir:`` that a git repository can carry."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.storage import atomic_write, require_writable

if TYPE_CHECKING:
    import open_clip
    from torch import Tensor

WEIGHTS_NAME = "open_clip_model.safetensors"
CONFIG_NAME = "open_clip_config.json"


def write_local_dir(
    model: open_clip.CLIP,
    folder: Path,
    *,
    config: Mapping[str, Any],
    used_tokens: Tensor,
    force: bool = False,
) -> int:
    """Write ``open_clip_config.json`` and ``open_clip_model.safetensors`` (float16) into ``folder``.

    Rows of the token embedding that no caption used still hold their random start; they are written as
    zeros, which git compresses away.

    Args:
        model: The trained model; it is not changed.
        folder: Created when missing.
        config: ``model_cfg``, ``preprocess_cfg`` and whatever describes the model's origin.
        used_tokens: Token ids (n,) int64 whose rows are kept; repeats are allowed.
        force: Replace files that exist.

    Returns:
        The zlib-compressed size of the weights in bytes: about what the git object takes.

    Raises:
        UsageError: ``config`` lacks a key that open_clip reads.
    """
    # torch is imported here so that `p4q_edge.demo` can be listed without it.
    import torch
    from safetensors.torch import save

    missing = {"model_cfg", "preprocess_cfg"} - set(config)
    if missing:
        raise UsageError(
            f"the config of a local-dir needs model_cfg and preprocess_cfg; {', '.join(sorted(missing))} "
            "is missing: pass the dictionary the model was created from"
        )
    state = {name: value.detach().to("cpu", torch.float16) for name, value in model.state_dict().items()}
    kept = torch.zeros(len(state["token_embedding.weight"]), 1, dtype=torch.float16)
    kept[used_tokens] = 1
    state["token_embedding.weight"] = state["token_embedding.weight"] * kept  # (vocabulary, width)
    weights = save({name: value.contiguous() for name, value in state.items()}, metadata={"format": "pt"})
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        require_writable(folder / name, force=force)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / WEIGHTS_NAME, weights, force=force)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    atomic_write(folder / CONFIG_NAME, text.encode("utf-8"), force=force)
    return len(zlib.compress(weights))
