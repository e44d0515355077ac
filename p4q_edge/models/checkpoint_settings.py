"""What a checkpoint given by path was trained with: activation, size, normalization, filter. Its file does not say.

A pretrained tag of open_clip records these. For a file, what all tags of the model's name agree on is taken; where they
differ the recipe has to say.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import open_clip
import torch
from torch import nn

from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.images import PreprocessSpec
from p4q_edge.runtime.wording import number_of, one_or_many

logger = logging.getLogger(__name__)

_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
_SHOWN_TAGS = 4
_NEVER_RUN = "text_decoder."  # writes the captions of CoCa
_POSITIONS = {
    "visual.positional_embedding": "image",
    "visual.trunk.pos_embed": "image",
    "positional_embedding": "text",
    "text.positional_embedding": "text",
}


@dataclass(frozen=True, kw_only=True)
class PreprocessKeys:
    """What a recipe says about the images that weights were trained with; None leaves it to the weights' record.

    Attributes:
        image_size: side of the square image in pixels; the table of positions is stretched to it.
        mean: subtracted from each channel, in units of 0 to 1.
        std: divides each channel.
        interpolation: filter of the resize.
        resize_mode: `shortest`, `longest` or `squash`, as in `PreprocessSpec`.
    """

    image_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: str | None = None
    resize_mode: str | None = None


NO_KEYS = PreprocessKeys()


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """How a model is built around the weights of a file.

    Attributes:
        quick_gelu: the activation.
        preprocessing: values of open_clip's preprocessing configuration.
        taken_from: where they come from, in words.
    """

    quick_gelu: bool
    preprocessing: Mapping[str, Any]
    taken_from: str


def settings_for_path(name: str, path: str, *, quick_gelu: bool | None, keys: PreprocessKeys) -> CheckpointSettings:
    """Return what all tags of a model's name agree on, or what the recipe's keys say.

    Args:
        name: a plain name of open_clip.
        path: of the checkpoint, for messages.
        quick_gelu: the recipe's `model.quick_gelu`.
        keys: the recipe's other keys.

    Raises:
        UsageError: the tags differ in something that no key decides.
    """
    plain = name.replace("/", "-")
    config = open_clip.get_model_config(plain)
    tags = {tag: open_clip.get_pretrained_cfg(plain, tag) for tag in open_clip.list_pretrained_tags_by_model(plain)}
    defaults = vars(open_clip.transform.PreprocessCfg())
    given = {"quick_gelu": quick_gelu} | {field: getattr(keys, field) for field in _PREPROCESSING}
    taken: dict[str, Any] = {}
    open_questions = []
    for field, value in given.items():
        default = bool(config.get("quick_gelu", False)) if field == "quick_gelu" else defaults[field]
        found = {tag: _comparable(record.get(field), default) for tag, record in tags.items()}
        if value is not None:
            taken[field] = value
        elif len(set(found.values())) > 1:
            open_questions.append(_question(field, found))
        else:
            taken[field] = next(iter(found.values()), _comparable(None, default))
    if open_questions:
        raise UsageError(
            f"{Path(path).name} does not say how it was trained, and the pretrained tags of {name} differ in "
            f"{'; '.join(open_questions)}. Write what these weights were trained with into the recipe's [model]"
        )
    quick = bool(taken.pop("quick_gelu"))
    source = (
        f"{one_or_many(len(tags), 'the only tag', f'all {len(tags)} tags')} of {name}"
        if tags
        else f"the configuration of {name}, which has no tags"
    )
    said = [field for field, value in given.items() if value is not None]
    if said:
        source = f"the recipe ({', '.join(said)}) and {source}"
    return CheckpointSettings(quick_gelu=quick, preprocessing=taken, taken_from=source)


def apply_keys(spec: PreprocessSpec, settings: Mapping[str, Any], keys: PreprocessKeys) -> PreprocessSpec:
    """Return a preprocessing with settings of a checkpoint, over which the recipe's keys go."""
    said = {field: value for field in _PREPROCESSING if (value := getattr(keys, field)) is not None}
    return msgspec.structs.replace(spec, **{**settings, **said})


def log_settings(path: str, spec: PreprocessSpec, settings: CheckpointSettings) -> None:
    """Say in one line what was taken for weights whose file does not tell it."""
    logger.info(
        "%s: %s, %d x %d pixels, mean %s, std %s, %s, %s; from %s",
        Path(path).name,
        "QuickGELU" if settings.quick_gelu else "GELU",
        *spec.size,
        _short(spec.mean),
        _short(spec.std),
        spec.interpolation,
        spec.resize_mode,
        settings.taken_from,
    )


def check_positions(model: nn.Module, state: Mapping[str, torch.Tensor], *, path: str, image_size: int | None) -> None:
    """Refuse a checkpoint of another image size or text length; open_clip would stretch its table of positions.

    Args:
        model: the model that was built for the checkpoint.
        state: the checkpoint's weights.
        path: of the checkpoint, for messages.
        image_size: the recipe's `model.image_size`; where it is given, stretching is what was asked for.

    Raises:
        InputError: a table of positions has another length.
    """
    built = model.state_dict()
    for key, side in _POSITIONS.items():
        if key not in state or key not in built or state[key].shape == built[key].shape:
            continue
        had, has = state[key].shape[-2], built[key].shape[-2]
        if side == "text":
            raise InputError(
                f"{Path(path).name} was trained with texts of {number_of(had, 'token')}, and this model reads "
                f"{has}. Name the "
                "architecture it belongs to (`p4q-edge models`), or a folder local-dir: whose open_clip_config.json "
                f"has context_length = {had}"
            )
        if image_size is not None:
            logger.info("%s: positions stretched from %d to %d, as model.image_size asks", Path(path).name, had, has)
            continue
        size = _size_of(model, had)
        advice = f"set model.image_size = {size}" if size else "set model.image_size to the size of its images"
        raise InputError(
            f"{Path(path).name} has {number_of(had, 'image position')}, and this model has {has} "
            f"({_pixels(model)}): it was trained "
            f"at another size; {advice}"
        )


def check_finite(model: nn.Module, *, source: str) -> None:
    """Refuse weights that are not numbers.

    Raises:
        InputError: a tensor has NaN or infinite values; the message names it.
    """
    used = {name: value for name, value in model.state_dict().items() if not name.startswith(_NEVER_RUN)}
    bad = [name for name, value in used.items() if value.is_floating_point() and not _finite(value)]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise InputError(
            f"{source}: the tensor {bad[0]}{more} has NaN or infinite values. Its training diverged or its file is "
            "damaged: take an earlier checkpoint, or fetch it again"
        )


def _finite(value: torch.Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def _comparable(value: object, default: object) -> Any:
    chosen = default if value is None else value
    return tuple(chosen) if isinstance(chosen, list | tuple) else chosen


def _question(field: str, found: Mapping[str, object]) -> str:
    by_value: dict[object, list[str]] = {}
    for tag, value in found.items():
        by_value.setdefault(value, []).append(tag)
    sides = [f"{_toml(value)} ({_some(tags)})" for value, tags in by_value.items()]
    return f"model.{field}: {' or '.join(sides)}"


def _some(tags: list[str]) -> str:
    return ", ".join(tags[:_SHOWN_TAGS]) + (f" and {len(tags) - _SHOWN_TAGS} more" if len(tags) > _SHOWN_TAGS else "")


def _toml(value: object) -> str:
    return msgspec.json.encode(value).decode().replace(",", ", ")


def _short(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.3g}" for value in values)


def _size_of(model: nn.Module, positions: int) -> int | None:
    """Return the side in pixels of square images with this number of positions; None where it cannot be told."""
    patch = getattr(getattr(model, "visual", None), "patch_size", None)
    patch = patch[0] if isinstance(patch, list | tuple) else patch
    for patches in (positions - 1, positions):  # with and without a class token
        side = math.isqrt(patches)
        if isinstance(patch, int) and side * side == patches:
            return side * patch
    return None


def _pixels(model: nn.Module) -> str:
    size = getattr(getattr(model, "visual", None), "image_size", "?")
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return f"{height} x {width} pixels"
