"""Stage `load`: a float CLIP model of open_clip with everything else that belongs to it."""

import hashlib
import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import open_clip
import torch
from torch import nn

from p4q_edge.models.checkpoint_file import plain_checkpoint
from p4q_edge.models.checkpoint_settings import (
    NO_KEYS,
    CheckpointSettings,
    PreprocessKeys,
    apply_keys,
    check_finite,
    check_positions,
    log_settings,
    settings_for_path,
)
from p4q_edge.models.compute import ON_CPU, Compute
from p4q_edge.models.hub import HUB, fetching_failed, first_line, guarded_fetches, require_hub
from p4q_edge.models.untrusted_config import checked_config, written_licence
from p4q_edge.runtime.artifacts import ModelInfo
from p4q_edge.runtime.errors import EnvironmentNotAbleError, InputError, P4QEdgeError, UsageError
from p4q_edge.runtime.images import PreprocessSpec

logger = logging.getLogger(__name__)

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
SCHEMAS = (HUB, "local-dir:")

# The tags' own model cards; a checkpoint's licence is not in its file.
TAG_LICENCES = (
    ("openai", "MIT"),
    ("laion", "MIT"),
    ("datacomp", "MIT"),
    ("commonpool", "MIT"),
    ("metaclip", "CC-BY-NC-4.0"),
    ("dfn", "apple-amlr"),
    ("webli", "Apache-2.0"),
)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A float CLIP model in evaluation mode.

    Attributes:
        clip: open_clip's module, float32, no gradients.
        tokenizer: maps a list of strings to int64 `(texts, context_length)`.
        preprocess: resizing and normalization of the image side.
        info: name, licence and digest, as the bundle's manifest carries them.
        logit_scale: exponentiated scale of the logits.
        logit_bias: added to the logits (SigLIP), or None.
        compute: where `clip` lies, and how images are run through it.
    """

    clip: nn.Module
    tokenizer: Any
    preprocess: PreprocessSpec
    info: ModelInfo
    logit_scale: float
    logit_bias: float | None
    compute: Compute = ON_CPU

    def on(self, compute: Compute) -> "LoadedModel":
        """Return the same model, its weights moved to a device."""
        return replace(self, clip=self.clip.to(compute.device), compute=compute)


def load_model(
    name: str,
    pretrained: str = "",
    *,
    quick_gelu: bool | None = None,
    licence: str = "",
    keys: PreprocessKeys = NO_KEYS,
) -> LoadedModel:
    """Load an open_clip model.

    Args:
        name: a name of `open_clip.list_models()`, `hf-hub:org/repo` or `local-dir:path`.
        pretrained: with a plain name: a pretrained tag, or the path of a `.pt` or `.safetensors` checkpoint.
        quick_gelu: the activation of the checkpoint; None follows the tag's own record.
        licence: overrides the licence string found with the weights.
        keys: what the recipe says about the images that the weights were trained with.

    Raises:
        UsageError: the name, tag or path does not exist, or nothing tells how a checkpoint was trained.
        InputError: the checkpoint does not fit the model, or holds values that are not finite.
        EnvironmentNotAbleError: a package of the model is missing, such as its tokenizer's.
    """
    _check_arguments(name, pretrained)
    with guarded_fetches():
        return _loaded(name, pretrained, quick_gelu=quick_gelu, licence=licence, keys=keys)


def _loaded(name: str, pretrained: str, *, quick_gelu: bool | None, licence: str, keys: PreprocessKeys) -> LoadedModel:
    by_path = not name.startswith(SCHEMAS) and pretrained not in _tags(name)
    if by_path:
        settings = settings_for_path(name, pretrained, quick_gelu=quick_gelu, keys=keys)
        with plain_checkpoint(pretrained) as (path, state):
            clip, tokenizer, document = _create(name, path, quick_gelu=settings.quick_gelu, image_size=keys.image_size)
            check_positions(clip, state, path=pretrained, image_size=keys.image_size)
    else:
        needed = _tag_needs_quick_gelu(name, pretrained) if quick_gelu is None else quick_gelu
        clip, tokenizer, document = _create(name, pretrained, quick_gelu=needed, image_size=keys.image_size)
        settings = CheckpointSettings(quick_gelu=needed, preprocessing={}, taken_from="its record")
    check_finite(clip, source=pretrained or name)
    clip.eval().requires_grad_(False)
    spec = apply_keys(preprocess_spec(open_clip.get_model_preprocess_cfg(clip)), settings.preprocessing, keys)
    if by_path:
        log_settings(pretrained, spec, settings)
    return LoadedModel(
        clip=clip,
        tokenizer=tokenizer,
        preprocess=spec,
        info=ModelInfo(
            name=_portable(name),
            pretrained=_portable(pretrained),
            family=type(getattr(clip, "visual", clip)).__name__,
            license=licence or _licence(document, pretrained),
            weights_sha256=weights_digest(clip),
        ),
        logit_scale=float(clip.logit_scale.exp()),
        logit_bias=None if clip.logit_bias is None else float(clip.logit_bias),
    )


def _create(name: str, pretrained: str, *, quick_gelu: bool, image_size: int | None) -> tuple[Any, Any, dict[str, Any]]:
    """open_clip's model and tokenizer, and the checked configuration of a folder or repository."""
    if not Path(pretrained).is_file():
        require_hub(name, pretrained)
    try:
        document = checked_config(name) if name.startswith(SCHEMAS) else {}
        towers = _checked_towers(document)
        if image_size is not None and "vision_cfg" in towers:
            towers["vision_cfg"] = {**towers["vision_cfg"], "image_size": image_size}
        with warnings.catch_warnings():
            # a tag trained with QuickGELU on a config without it is mended by force_quick_gelu
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")
            clip = open_clip.create_model(
                name,
                pretrained or None,
                force_quick_gelu=quick_gelu,
                force_image_size=image_size,
                precision="fp32",
                device="cpu",
                require_pretrained=True,
                **towers,
            )
            return clip, open_clip.get_tokenizer(name, **_no_code(name)), document
    except P4QEdgeError:
        raise
    except ModuleNotFoundError as error:
        raise EnvironmentNotAbleError(_missing_package(name, str(error.name))) from error
    except Exception as error:  # what four libraries raise on damaged files has no common class
        if "pip install transformers" in str(error):  # open_clip's own words for a Hugging Face text tower
            raise EnvironmentNotAbleError(_missing_package(name, "transformers")) from error
        if (failed := fetching_failed(name, pretrained, error)) is not None:
            raise failed from error
        raise InputError(
            f"open_clip could not load model {name!r} with weights {pretrained!r}: {first_line(error)}; "
            "check that the checkpoint belongs to this architecture (`p4q-edge models` lists them)"
        ) from error


def _missing_package(name: str, package: str) -> str:
    wanted = "'p4q-edge[huggingface]'" if package == "transformers" else package
    return f"model {name!r} needs the package {package}, which is not installed; run: pip install {wanted}"


def preprocess_spec(config: dict[str, Any]) -> PreprocessSpec:
    """open_clip's preprocessing configuration as our own record.

    Raises:
        InputError: a value is missing, of another type or out of its range.
    """
    defaults = open_clip.transform.PreprocessCfg()
    values = {
        key: config.get(key, getattr(defaults, key))
        for key in ("size", "mean", "std", "interpolation", "resize_mode", "fill_color")
    }
    if isinstance(values["size"], int):
        values["size"] = (values["size"], values["size"])
    try:
        return msgspec.convert(values, PreprocessSpec)
    except msgspec.ValidationError as error:
        raise InputError(
            f"the model's preprocess_cfg cannot be used: {error}. Correct it in its configuration."
        ) from error


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes and float32 values of all weights, independent of the checkpoint's format."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}:{tuple(value.shape)}".encode())
        digest.update(value.detach().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


def _check_arguments(name: str, pretrained: str) -> None:
    if name.startswith(SCHEMAS):
        if name.startswith("local-dir:"):
            folder = Path(name.removeprefix("local-dir:"))
            if not (folder / "open_clip_config.json").is_file():
                raise UsageError(
                    f"{folder} has no open_clip_config.json; local-dir: expects a folder with that file and its weights"
                )
        if pretrained:
            raise UsageError(f"model {name!r} brings its own weights; remove pretrained = {pretrained!r}")
        return
    if name.replace("/", "-") not in open_clip.list_models():
        import difflib

        near = difflib.get_close_matches(name, open_clip.list_models(), n=1, cutoff=0.0)
        raise UsageError(
            f"open_clip has no model {name!r}; did you mean {near[0]!r}? `p4q-edge models` lists all of them"
        )
    if not pretrained:
        raise UsageError(
            f"model {name!r} needs weights: set pretrained to a tag ({', '.join(_tags(name)) or 'none known'}) "
            "or to a .pt or .safetensors file"
        )
    if pretrained not in _tags(name) and not Path(pretrained).is_file():
        kind = "file" if pretrained.endswith(CHECKPOINT_SUFFIXES) else "tag or file"
        raise UsageError(
            f"{kind} {pretrained!r} does not exist for model {name!r}; known tags: {', '.join(_tags(name)) or 'none'}"
        )


def _tags(name: str) -> list[str]:
    return list(open_clip.list_pretrained_tags_by_model(name.replace("/", "-")))


def _tag_needs_quick_gelu(name: str, pretrained: str) -> bool:
    if name.startswith(SCHEMAS) or pretrained not in _tags(name):
        return False
    record = open_clip.get_pretrained_cfg(name.replace("/", "-"), pretrained)
    needed = bool(record.get("quick_gelu", False))
    if needed and not open_clip.get_model_config(name.replace("/", "-")).get("quick_gelu", False):
        logger.info("tag %s was trained with QuickGELU: model %s is built with it", pretrained, name)
    return needed


def _checked_towers(document: dict[str, Any]) -> dict[str, Any]:
    """Return the towers as they were checked: open_clip reads the file again, which may have changed since."""
    if not document:
        return {}
    model = document["model_cfg"]
    towers = {key: dict(model[key]) for key in ("vision_cfg", "text_cfg", "multimodal_cfg") if model.get(key)}
    # The model's own weights are loaded, never others by name.
    if "timm_model_name" in towers["vision_cfg"]:
        towers["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in towers["text_cfg"]:
        towers["text_cfg"]["hf_model_pretrained"] = False
    return towers


def _no_code(name: str) -> dict[str, bool]:
    """Return the option that outweighs what the tokenizer's own files say, where transformers reads them."""
    config = open_clip.get_model_config(name if name.startswith(SCHEMAS) else name.replace("/", "-")) or {}
    return {"trust_remote_code": False} if config.get("text_cfg", {}).get("hf_tokenizer_name") else {}


def _licence(document: dict[str, Any], pretrained: str) -> str:
    if document:
        return written_licence(document)
    if pretrained.endswith(".safetensors"):
        from safetensors import safe_open

        with safe_open(pretrained, framework="pt") as file:
            return str((file.metadata() or {}).get("license", "unknown"))
    return tag_licence(pretrained)


def tag_licence(tag: str) -> str:
    """Return the licence of the weights that a tag of open_clip names, `unknown` where it is not known here."""
    return next((licence for prefix, licence in TAG_LICENCES if tag.startswith(prefix)), "unknown")


def _portable(reference: str) -> str:
    # The manifest travels to other machines: it names a local file or folder, not where it lay.
    prefix = "local-dir:" if reference.startswith("local-dir:") else ""
    path = reference.removeprefix(prefix)
    local = bool(prefix) or path.endswith(CHECKPOINT_SUFFIXES)
    return prefix + Path(path).name if local else reference


def to_batch(images: torch.Tensor, spec: PreprocessSpec) -> torch.Tensor:
    """Turn uint8 `(N, 3, H, W)` into the normalized float32 batch that the float model takes."""
    mean = torch.tensor(spec.mean, device=images.device).view(3, 1, 1)
    std = torch.tensor(spec.std, device=images.device).view(3, 1, 1)
    return (images.float() / 255.0 - mean) / std
