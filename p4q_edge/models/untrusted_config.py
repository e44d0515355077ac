"""What a model's own configuration may say: an allow-list, so that opening a stranger's model never runs its code.

open_clip hands the key words of `open_clip_config.json` on to transformers and timm, which import modules and open
pickles if they are asked to. Here only what describes an architecture passes.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import open_clip
from open_clip.hf_configs import arch_dict
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from p4q_edge.runtime.errors import ArtifactError, InputError
from p4q_edge.runtime.storage import decode_json, printable, read_bounded, what_is_at

CONFIG = "open_clip_config.json"
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pth")
MAX_CONFIG_BYTES = 1 << 20
MAX_TOKENIZER_BYTES = 16 << 20
MAX_NAME = 200
MAX_NUMBER = 1 << 21  # a vocabulary of two million words; no size of a CLIP is larger

_MODEL_KEYS = {
    "embed_dim": int,
    "vision_cfg": dict,
    "text_cfg": dict,
    "multimodal_cfg": dict,
    "quick_gelu": bool,
    "custom_text": bool,
    "init_logit_scale": float,
    "init_logit_bias": float,
    "nonscalar_logit_scale": bool,
}
_MULTIMODAL_KEYS = {field.name for field in dataclasses.fields(CLIPTextCfg)} | {
    "dim_head",
    "n_queries",
    "attn_pooler_heads",
}
_PREPROCESS_KEYS = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}
_TOKENIZER_KEYS: Mapping[str, type] = {"clean": str, "strip_sep_token": bool, "language": str}
_TOKENIZER_CLASSES = frozenset(
    f"{name}Tokenizer{kind}"
    for name in ("Bert", "CLIP", "GPT2", "Gemma", "M2M100", "Nllb", "Roberta", "Siglip", "T5", "XLMRoberta")
    for kind in ("", "Fast")
) | {"PreTrainedTokenizerFast", "TokenizersBackend"}
_CODE_KEYS = frozenset({"kernel_config", "quantization_config", "use_kernels", "experts_implementation"})
_CODE_WORDS = ("auto_map", "remote_code", "attn_implementation", "custom", "code_revision", "gguf", "mistral_format")
_PICKLES = (".pkl", ".pickle", ".joblib", ".dill", ".npy")
_SMALL_MODEL = 1 << 24
_VALUES_A_BYTE = 2
_LOCAL = "local-dir:"
_TIMM_NAME = re.compile(r"[a-z0-9_]{1,100}(\.[a-z0-9_]{1,100})?")


def checked_config(name: str) -> dict[str, Any]:
    """Return the configuration of a `local-dir:` or `hf-hub:` model, of which nothing can run code.

    Returns:
        `model_cfg`, with towers of the model's own folder as absolute paths, `preprocess_cfg`, and what else describes
        the model.

    Raises:
        InputError: it is not a configuration, or asks for more than an architecture.
    """
    if not name.startswith(_LOCAL):
        model = open_clip.get_model_config(name)
        document = {"model_cfg": model} if isinstance(model, dict) else {}
        check_config(document, source=f"{CONFIG} of {name}", folder=None, own_name=name.removeprefix("hf-hub:"))
        return document
    folder = Path(name.removeprefix(_LOCAL))
    document = _read(folder / CONFIG, limit_bytes=MAX_CONFIG_BYTES)
    check_config(document, source=str(folder / CONFIG), folder=folder)
    weights = [path for path in folder.iterdir() if path.suffix in WEIGHTS_SUFFIXES]
    if odd := [path for path in weights if not path.is_file()]:
        raise InputError(f"{odd[0]} {what_is_at(odd[0])}; expected a file of weights. Copy the model's folder again.")
    if not weights:
        # Without them open_clip would fetch those of the towers by name.
        raise InputError(
            f"open_clip could not load model {name!r}: {folder} has no weights ({', '.join(WEIGHTS_SUFFIXES)}). "
            "Copy the model's folder again."
        )
    _check_fits(document["model_cfg"], sum(path.stat().st_size for path in weights), source=str(folder / CONFIG))
    _point_into(folder, document["model_cfg"])
    return document


def _check_fits(model: Mapping[str, Any], weights_bytes: int, *, source: str) -> None:
    """Refuse sizes whose weights would not fit into those of the folder, before anything is allocated for them."""
    expected = least_values(model)
    if expected > max(_SMALL_MODEL, _VALUES_A_BYTE * weights_bytes):
        raise InputError(
            f"{source} describes a model of at least {expected} numbers; the weights beside it have {weights_bytes} "
            "bytes. Copy the model's folder again."
        )


def least_values(model: Mapping[str, Any]) -> int:
    """Return how many numbers the towers of a configuration hold at least, tables of positions and masks included."""
    image, text = model["vision_cfg"], model["text_cfg"]
    total = 0
    if not image.get("timm_model_name"):
        layers, width = image.get("layers", 12), _whole(image.get("width", 768))
        sides = image.get("image_size", 224)
        patch = max(1, _whole(image.get("patch_size", 16)))
        tokens = 1
        for side in sides if isinstance(sides, list) else [sides, sides]:
            tokens *= max(1, _whole(side) // patch)
        if isinstance(layers, list):  # a ResNet, whose last width is 32 times the first
            total += 4 * (32 * width) ** 2 + sum(_whole(count) for count in layers) * width**2
        else:
            total += _blocks(image, layers, width) + tokens * width + 3 * patch**2 * width
            total += _whole(image.get("attn_pooler_queries", 0)) * width
        total += width * _whole(model.get("embed_dim", 512))
    if not text.get("hf_model_name"):
        for section in (text, model.get("multimodal_cfg") or {}):
            width, context = _whole(section.get("width", 0)), _whole(section.get("context_length", 0))
            total += _blocks(section, section.get("layers", 0), width) + context**2 + context * width
            total += _whole(section.get("vocab_size", 0)) * width
    return total


def _blocks(section: Mapping[str, Any], layers: object, width: int) -> int:
    """Return the weights of a transformer's products: four of its attention, two of its MLP."""
    hidden = _whole(width * float(section.get("mlp_ratio") or 4.0))
    return _whole(layers) * (4 * width**2 + 2 * width * hidden)


def _whole(value: object) -> int:
    return max(0, int(value)) if isinstance(value, (int, float)) else 0


def _point_into(folder: Path, model: dict[str, dict[str, Any]]) -> None:
    """Make the towers of a folder absolute: open_clip looks for them from the current folder."""
    name = model["text_cfg"].get("hf_model_name")
    if name and _has_tower(folder, name):
        model["text_cfg"]["hf_model_name"] = str((folder / name).resolve())
    name = str(model["vision_cfg"].get("timm_model_name") or "")
    if name.startswith(_LOCAL):
        model["vision_cfg"]["timm_model_name"] = f"{_LOCAL}{(folder / name.removeprefix(_LOCAL)).resolve()}"


def check_config(document: Mapping[str, Any], *, source: str, folder: Path | None, own_name: str = "") -> None:
    """Raise `InputError` unless a configuration says nothing but what a model looks like.

    Args:
        document: what `open_clip_config.json` holds.
        source: what errors call it.
        folder: where files that it names must lie; None for a model of the hub.
        own_name: of a model of the hub, whose tokenizer may lie beside it.
    """
    model = _section(document, "model_cfg", source)
    _allow(model, set(_MODEL_KEYS), "model_cfg", source)
    for key, kind in _MODEL_KEYS.items():
        if model.get(key) is not None:
            _convert(model[key], kind, f"model_cfg.{key}", source)
    vision, text = (_section(model, key, source) for key in ("vision_cfg", "text_cfg"))
    _typed(vision, CLIPVisionCfg, "vision_cfg", source)
    _typed(text, CLIPTextCfg, "text_cfg", source)
    if model.get("multimodal_cfg") is not None:
        _allow(model["multimodal_cfg"], _MULTIMODAL_KEYS, "multimodal_cfg", source)
    _allow(document.get("preprocess_cfg") or {}, _PREPROCESS_KEYS, "preprocess_cfg", source)
    _check_sizes(model, source)
    _check_tokenizer_options(text, source)
    _check_image_tower(vision, source, folder)
    known = _known_names() | ({own_name} if own_name else set())
    _check_text_tower(text, source, folder, known)
    if text.get("hf_tokenizer_name") and folder is not None:
        # open_clip takes the tokenizer of a folder from that folder, whatever its name.
        _check_tokenizer_files(folder)
    elif text.get("hf_tokenizer_name") and text["hf_tokenizer_name"] not in known:
        raise _refused(source, f"text_cfg.hf_tokenizer_name = {text['hf_tokenizer_name']!r}, a tokenizer elsewhere")


def _check_text_tower(text: Mapping[str, Any], source: str, folder: Path | None, known: set[str]) -> None:
    name = text.get("hf_model_name")
    if not name:
        return
    if folder is None or not _has_tower(folder, name):
        if name.startswith(".") and folder is not None and _is_local(name):
            raise InputError(
                f"{source} names a tower in {name!r}, but {folder / name / 'config.json'} does not exist. Put the "
                "config.json of the tower there, or correct the name (relative to the model's folder)."
            )
        if name not in known or Path(name).exists():  # transformers prefers a folder to a model of the hub
            raise _refused(source, f"text_cfg.hf_model_name = {name!r}, which open_clip does not know")
        return
    config = _inside(folder, name, source) / "config.json"
    document = _read(config, limit_bytes=MAX_CONFIG_BYTES)
    _refuse_code(document, config)
    if document.get("model_type") not in arch_dict:
        raise InputError(
            f"{config} has model_type {document.get('model_type')!r}; expected one of {', '.join(arch_dict)}. "
            "Use a text tower that open_clip knows."
        )


def _check_image_tower(vision: Mapping[str, Any], source: str, folder: Path | None) -> None:
    name = vision.get("timm_model_name") or ""
    if name.startswith(_LOCAL) and folder is not None:
        config = _inside(folder, name.removeprefix(_LOCAL), source) / "config.json"
        _refuse_code(_read(config, limit_bytes=MAX_CONFIG_BYTES), config)
    elif name and not _TIMM_NAME.fullmatch(name):
        raise _refused(source, f"vision_cfg.timm_model_name = {name!r}, which timm does not know")


def _check_tokenizer_options(text: Mapping[str, Any], source: str) -> None:
    options = text.get("tokenizer_kwargs") or {}
    _allow(options, set(_TOKENIZER_KEYS), "text_cfg.tokenizer_kwargs", source)
    for key, value in options.items():
        _convert(value, _TOKENIZER_KEYS[key], f"text_cfg.tokenizer_kwargs.{key}", source)


def _check_tokenizer_files(folder: Path) -> None:
    """Refuse a tokenizer of a folder that transformers could only read by running code."""
    if pickles := sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _PICKLES):
        raise InputError(
            f"{folder} holds {pickles[0]}, a pickle, which can run code. Remove it; expected a tokenizer.json."
        )
    for name in ("tokenizer_config.json", "config.json", "special_tokens_map.json"):
        path = folder / name
        if not path.exists():
            continue
        document = _read(path, limit_bytes=MAX_TOKENIZER_BYTES)
        _refuse_code(document, path)
        kind = document.get("tokenizer_class")
        if kind is not None and kind not in _TOKENIZER_CLASSES:
            raise InputError(
                f"{path} has tokenizer_class {kind!r}, which is not allowed. Save the tokenizer as a tokenizer.json "
                'with tokenizer_class "PreTrainedTokenizerFast".'
            )
        for key, value in document.items():
            if key.endswith("_file") and value is not None and not _is_local(value):
                raise _refused(str(path), f"{key} = {value!r}, a file elsewhere")


def _refuse_code(document: Mapping[str, Any], path: Path) -> None:
    for key, value in _walk(document):
        named = key in _CODE_KEYS or any(word in key for word in _CODE_WORDS)
        if named and value not in (None, False, {}, []):
            raise InputError(
                f"{path} asks for code that is not part of the libraries ({key}), which is never run. "
                "Use a model that transformers itself knows, and remove the key."
            )


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key, inner
            yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)


def _check_sizes(value: Any, source: str) -> None:
    for key, inner in _walk(value):
        numbers = inner if isinstance(inner, list) else [inner]
        for number in numbers:
            if isinstance(number, (int, float)) and not abs(number) <= MAX_NUMBER:
                raise InputError(f"{source} has {key} = {number}; at most {MAX_NUMBER} is built. Correct it.")


def _typed(section: Mapping[str, Any], kind: type[Any], name: str, source: str) -> None:
    _allow(section, {field.name for field in dataclasses.fields(kind)}, name, source)
    _convert({key: value for key, value in section.items() if value is not None}, kind, name, source)
    for key, value in section.items():
        if isinstance(value, dict) and any(isinstance(inner, (dict, list)) for inner in value.values()):
            raise _refused(source, f"nested values in {name}.{key}")


def _convert(value: Any, kind: type[Any], name: str, source: str) -> None:
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        raise InputError(
            f"{source}: {name} is not of the expected type: {printable(str(error)[:300])}. Correct it."
        ) from error


def _allow(section: object, allowed: set[str], name: str, source: str) -> None:
    if not isinstance(section, dict):
        raise InputError(f"{source}: {name} must be an object, got {type(section).__name__}. Copy the model again.")
    if unknown := sorted(set(section) - allowed):
        raise _refused(source, f"{name}.{unknown[0]}")


def _section(document: Mapping[str, Any], key: str, source: str) -> dict[str, Any]:
    section = document.get(key)
    if not isinstance(section, dict):
        raise InputError(f"{source}: {key} must be an object, got {type(section).__name__}. Copy the model again.")
    return section


def _refused(source: str, what: str) -> InputError:
    return InputError(
        f"{source} asks for {printable(what[:300])}. A model's configuration may describe an architecture and name "
        "files beside it, nothing else (SECURITY.md). Remove the key, or use a model of open_clip."
    )


def _known_names() -> set[str]:
    """Return the towers and tokenizers that open_clip's own models name."""
    texts = [(open_clip.get_model_config(name) or {}).get("text_cfg", {}) for name in open_clip.list_models()]
    return {text[key] for text in texts for key in ("hf_model_name", "hf_tokenizer_name") if text.get(key)}


def _has_tower(folder: Path, name: str) -> bool:
    return _is_local(name) and (folder / name / "config.json").is_file()


def _is_local(name: object) -> bool:
    """Return whether a name is a relative path that stays below its folder."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or "\0" in name:
        return False
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _inside(folder: Path, name: str, source: str) -> Path:
    place = folder / name
    if not _is_local(name) or not place.resolve().is_relative_to(folder.resolve()):
        raise _refused(source, f"{name!r}, which is not below the model's folder")
    return place


def _read(path: Path, *, limit_bytes: int) -> dict[str, Any]:
    try:
        return decode_json(read_bounded(path, limit_bytes=limit_bytes, kind="configuration"), dict, source=str(path))
    except ArtifactError as error:
        raise InputError(f"{path} is not a JSON object: {error}") from error


def written_licence(document: Mapping[str, Any]) -> str:
    """Return the licence that a configuration states, or `unknown`."""
    stated = document.get("license")
    return stated if isinstance(stated, str) and stated else "unknown"
