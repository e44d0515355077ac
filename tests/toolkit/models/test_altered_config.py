"""Every key of a model's configuration, with values that no one expects there: loaded, or refused in one line."""

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file

from p4q_edge.models.load import load_model, preprocess_spec
from p4q_edge.models.untrusted_config import checked_config, least_values
from p4q_edge.runtime.errors import InputError, P4QEdgeError

VISION = {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1, "head_width": 16}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
PREPROCESS = {"size": [16, 16], "mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3], "interpolation": "bicubic"}
MODEL = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}
REMOVED = object()
VALUES: tuple[Any, ...] = (
    REMOVED, None, True, -1, 0, 1, 1.5, 1 << 20, 1 << 40, 10**30, 1e300, float("nan"), "", "x", "nan", [], {}, [1, 2],
    [[]], [None], {"a": 1}, {"a": {"b": 1}}, "x" * 300, "\x1b[2J\n",
)  # fmt: skip
LOADED = (None, 3)


def _document() -> dict[str, Any]:
    model = copy.deepcopy(MODEL) | {"quick_gelu": False, "custom_text": False, "nonscalar_logit_scale": False}
    preprocess = PREPROCESS | {"resize_mode": "shortest", "fill_color": 0, "mode": "RGB"}
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def _paths() -> Iterator[tuple[str, ...]]:
    """Every key that may be said."""
    for section, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        yield "model_cfg", section
        yield from (("model_cfg", section, field.name) for field in dataclasses.fields(kind))
    yield from (("model_cfg", key) for key in (*_document()["model_cfg"], "multimodal_cfg", "init_logit_bias"))
    yield from (("preprocess_cfg", key) for key in _document()["preprocess_cfg"])
    yield from (("model_cfg",), ("preprocess_cfg",))


PATHS = list(dict.fromkeys(_paths()))


def _altered(path: tuple[str, ...], value: Any) -> str:
    document = _document()
    place = document
    for key in path[:-1]:
        place = place[key]
    if value is REMOVED:
        place.pop(path[-1], None)
    else:
        place[path[-1]] = value
    return json.dumps(document)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("model")
    save_file(open_clip.CLIP(32, VISION, TEXT).state_dict(), place / "open_clip_model.safetensors")  # type: ignore[arg-type]
    return place


def _refused_in_one_line(error: P4QEdgeError) -> bool:
    return isinstance(error, InputError) and "\n" not in str(error) and "\x1b" not in str(error)


def _outcome(read: Callable[[], object]) -> P4QEdgeError | None:
    try:
        read()
    except P4QEdgeError as error:
        return error
    return None


def test_the_whole_configuration_is_loaded(folder: Path) -> None:
    (folder / "open_clip_config.json").write_text(json.dumps(_document()))
    assert load_model(f"local-dir:{folder}").preprocess.size == (16, 16)


@pytest.mark.parametrize("path", PATHS, ids=".".join)
def test_any_value_of_any_key(folder: Path, path: tuple[str, ...]) -> None:
    """What is checked before anything is built."""
    for value in VALUES:
        (folder / "open_clip_config.json").write_text(_altered(path, value))
        error = _outcome(lambda: preprocess_spec(checked_config(f"local-dir:{folder}").get("preprocess_cfg") or {}))
        assert error is None or _refused_in_one_line(error), (value, error)


@pytest.mark.parametrize("path", PATHS, ids=".".join)
def test_some_values_of_any_key_are_built(folder: Path, path: tuple[str, ...]) -> None:
    for value in LOADED:
        (folder / "open_clip_config.json").write_text(_altered(path, value))
        error = _outcome(lambda: load_model(f"local-dir:{folder}"))
        assert error is None or "\n" not in str(error), (value, error)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "{}", '{"model_cfg": 1}', "\x00", "[" * 1000, "\xff"])
def test_configurations_that_are_none(folder: Path, text: str) -> None:
    (folder / "open_clip_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        load_model(f"local-dir:{folder}")
    assert _refused_in_one_line(caught.value)


@pytest.mark.parametrize("size", [0, 1, 8, 100, 5000])
def test_weights_that_are_cut_off(folder: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps(_document()))
    whole = (folder / "open_clip_model.safetensors").read_bytes()
    (tmp_path / "open_clip_model.safetensors").write_bytes(whole[:size])
    with pytest.raises(InputError) as caught:
        load_model(f"local-dir:{tmp_path}")
    assert _refused_in_one_line(caught.value)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_cfg", "context_length", 1 << 20),  # its mask alone has the square of it
        ("text_cfg", "width", 1 << 20),
        ("vision_cfg", "width", 1 << 20),
        ("vision_cfg", "image_size", 1 << 20),
        ("vision_cfg", "layers", 1 << 20),
        ("vision_cfg", "layers", [1 << 20] * 4),
        ("vision_cfg", "mlp_ratio", 1 << 20),
        ("vision_cfg", "attn_pooler_queries", 1 << 20),
        ("text_cfg", "mlp_ratio", 1 << 20),
    ],
)
def test_sizes_beyond_the_weights_are_refused_before_they_are_allocated(
    folder: Path, section: str, key: str, value: object
) -> None:
    document = _document()
    document["model_cfg"][section][key] = value
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="describes a model of at least"):
        checked_config(f"local-dir:{folder}")


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "ViT-L-14-336", "RN50x4"])
def test_the_estimate_is_below_what_models_have(name: str) -> None:
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        model = open_clip.create_model(name, device="meta")
    values = sum(one.numel() for one in (*model.parameters(), *model.buffers()))
    assert 0.2 * values < least_values(config) < values
