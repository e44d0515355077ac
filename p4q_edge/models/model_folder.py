"""Folders of open_clip (``local-dir:``) whose towers are of timm or Hugging Face, described by files in that folder."""

import json
from pathlib import Path
from typing import Any

from p4q_edge.runtime.errors import InputError

CONFIG = "open_clip_config.json"
CODE_KEYS = ("auto_map", "trust_remote_code", "attn_implementation", "_attn_implementation", "custom_pipelines")
"""Keys of Hugging Face's configurations that name code outside of the library."""

TOWER_KEYS = {"vision_cfg": "timm_model_name", "text_cfg": "hf_model_name"}
TIMM_FOLDER = "local-dir:"


def tower_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Sections of the folder's configuration that name a tower beside it, with absolute paths.

    open_clip looks for a relative path from the current folder; here it is one of the model's own folder, so that the
    folder can be moved. ``hf_model_name = "."`` is a Hugging Face ``config.json`` beside the weights, and
    ``timm_model_name = "local-dir:image"`` a timm ``config.json`` in ``image``. Weights are open_clip's alone.

    Returns:
        Of ``vision_cfg`` and ``text_cfg`` those that change, whole, as keywords of ``open_clip.create_model``.

    Raises:
        InputError: a tower is named that is not there, or files that would run code of their own.
    """
    model = _read(folder / CONFIG).get("model_cfg", {})
    changed: dict[str, dict[str, Any]] = {}
    vision, text = (model.get(section) or {} for section in TOWER_KEYS)
    name = str(vision.get("timm_model_name") or "")
    if name.startswith(TIMM_FOLDER):
        place = _tower(folder, name.removeprefix(TIMM_FOLDER), required=True)
        changed["vision_cfg"] = vision | {"timm_model_name": f"{TIMM_FOLDER}{place}", "timm_model_pretrained": False}
    name = str(text.get("hf_model_name") or "")
    place = _tower(folder, name, required=name.startswith(".")) if name else None
    if place is not None:
        _refuse_code(place / "config.json")
        changed["text_cfg"] = text | {"hf_model_name": str(place), "hf_model_pretrained": False}
    if text.get("hf_tokenizer_name"):
        _refuse_code(folder / "tokenizer_config.json")
        _refuse_keys(text.get("tokenizer_kwargs") or {}, folder / CONFIG)
    return changed


def _tower(folder: Path, name: str, *, required: bool) -> Path | None:
    """The folder of a tower with its ``config.json``; None where the name is not a path of one."""
    place = (folder / name).resolve()
    if (place / "config.json").is_file():
        return place
    if required:
        raise InputError(
            f"{folder / CONFIG} names a tower in {name!r}, but {place / 'config.json'} does not exist; put the tower's "
            "config.json there, or correct the name (relative to the model's folder)"
        )
    return None


def _refuse_code(path: Path) -> None:
    if path.is_file():
        _refuse_keys(_read(path), path)


def _refuse_keys(document: dict[str, Any], path: Path) -> None:
    if found := [key for key in CODE_KEYS if document.get(key)]:
        raise InputError(
            f"{path} asks for code that is not part of the libraries ({', '.join(found)}), which is never run; "
            "use a model whose class transformers itself has, and remove the key"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not JSON: {error}; copy the model's folder again") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds a {type(document).__name__}, expected an object; copy the model's folder again")
    return document
