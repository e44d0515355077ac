"""Weights named by path: what is taken for them, what is asked, and what is refused."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from p4q_edge.models.checkpoint_settings import PreprocessKeys, settings_for_path
from p4q_edge.models.load import load_model
from p4q_edge.recipe.toml import parse_recipe
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.stages.source import open_model

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)


def config(*, size: int = 64, context: int = 77, quick_gelu: bool = False) -> dict[str, object]:
    return {
        "embed_dim": 32,
        "vision_cfg": {"image_size": size, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": context, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
        "quick_gelu": quick_gelu,
    }


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Saves random weights of a configuration; the architecture `tiny` is registered."""
    names = []

    def register(name: str, **changes: Any) -> None:
        (tmp_path / f"{name}.json").write_text(json.dumps(config(**changes)))
        open_clip.add_model_config(tmp_path / f"{name}.json")
        names.append(name)

    def save(**changes: Any) -> str:
        register("tiny-other", **changes)
        torch.save(open_clip.create_model("tiny-other").state_dict(), tmp_path / "w.pt")
        return str(tmp_path / "w.pt")

    register("tiny")
    yield save
    for name in names:
        open_clip.factory._MODEL_CONFIGS.pop(name, None)
    open_clip.factory._MODEL_CONFIG_PATHS[:] = [
        path for path in open_clip.factory._MODEL_CONFIG_PATHS if not Path(path).name.startswith("tiny")
    ]


def test_what_was_taken_is_said_in_one_line(saved: Callable[..., str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="p4q_edge"):
        load_model("tiny", saved())
    assert [message for message in caplog.messages if message.startswith("w.pt")] == [
        "w.pt: GELU, 64 x 64 pixels, mean 0.481/0.458/0.408, std 0.269/0.261/0.276, bicubic, shortest; "
        "from the configuration of tiny, which has no tags"
    ]


def test_where_all_tags_agree_their_record_is_taken() -> None:
    settings = settings_for_path("MobileCLIP2-S0", "w.pt", quick_gelu=None, keys=PreprocessKeys())
    assert not settings.quick_gelu
    assert settings.preprocessing["mean"] == (0.0, 0.0, 0.0)
    assert settings.preprocessing["std"] == (1.0, 1.0, 1.0)
    assert settings.preprocessing["interpolation"] == "bilinear"
    assert settings.taken_from == "the only tag of MobileCLIP2-S0"
    assert settings_for_path("RN50", "w.pt", quick_gelu=None, keys=PreprocessKeys()).quick_gelu
    assert settings_for_path("ViT-L-14-336", "w.pt", quick_gelu=None, keys=PreprocessKeys()).quick_gelu
    assert settings_for_path("ViT-B-32-quickgelu", "w.pt", quick_gelu=None, keys=PreprocessKeys()).quick_gelu
    squashed = settings_for_path("ViT-B-16-SigLIP", "w.pt", quick_gelu=None, keys=PreprocessKeys())
    assert squashed.preprocessing["resize_mode"] == "squash"


@pytest.mark.parametrize(
    ("name", "questions"),
    [
        ("ViT-B-32", ["model.quick_gelu: true (openai, ", "false (laion2b_e16, "]),
        (
            "ViT-L-14",
            ["model.quick_gelu: ", "model.mean: [0.48145466", "[0.5, 0.5, 0.5] (laion2b_s32b_b82k", "model.std"],
        ),
        ("ViT-H-14", ["model.quick_gelu", 'model.resize_mode: "shortest" (', '"squash" (dfn5b)']),
    ],
)
def test_where_tags_differ_the_keys_and_the_tags_are_named(name: str, questions: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        settings_for_path(name, "/there/w.pt", quick_gelu=None, keys=PreprocessKeys())
    message = str(caught.value)
    assert message.startswith(
        f"w.pt does not say how it was trained, and the pretrained tags of {name} differ in model."
    )
    assert message.endswith("Write what these weights were trained with into the recipe's [model]")
    for question in questions:
        assert question in message


def test_the_recipe_decides_where_tags_differ() -> None:
    keys = PreprocessKeys(mean=OPENAI_MEAN, std=(0.2, 0.3, 0.4))
    settings = settings_for_path("ViT-L-14", "w.pt", quick_gelu=True, keys=keys)
    assert settings.quick_gelu
    assert settings.preprocessing["std"] == (0.2, 0.3, 0.4)
    assert settings.taken_from == "the recipe (quick_gelu, mean, std) and all 12 tags of ViT-L-14"


def test_keys_of_a_recipe_reach_the_model(saved: Callable[..., str]) -> None:
    section = {
        "name": "tiny",
        "pretrained": saved(size=96),
        "quick_gelu": True,
        "image_size": 96,
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    loaded = open_model(parse_recipe({"model": section, "data": {"train": "x"}}, source="r.toml"))
    spec = loaded.preprocess
    assert (spec.size, spec.mean, spec.std) == ((96, 96), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert (spec.interpolation, spec.resize_mode) == ("bilinear", "squash")
    assert type(loaded.clip.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 3}, "image_size must be between 8 and 4096 pixels, got 3"),
        ({"std": [0.0, 1.0, 1.0]}, "std must be positive"),
        ({"mean": [123.7, 116.3, 103.5]}, "divide mean and std of pixels from 0 to 255 by 255"),
        ({"mean": [-0.1, 0.5, 0.5]}, "mean must be between 0 and 1 for each channel"),
        ({"interpolation": "nearest"}, "model.interpolation: expected bicubic or bilinear, got 'nearest'"),
        ({"mean": [0.5]}, "model.mean: expected a list of numbers, 3 of them, got 1"),
    ],
)
def test_wrong_keys_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_recipe({"model": {"name": "tiny"} | values, "data": {"train": "x"}}, source="r.toml")


def test_a_checkpoint_of_another_image_size_is_refused_with_its_size(saved: Callable[..., str]) -> None:
    path = saved(size=96)
    with pytest.raises(
        InputError,
        match=r"w\.pt has 37 image positions, and .* has 17 \(64 x 64 pixels\).*model.image_size = 96",
    ):
        load_model("tiny", path)
    assert load_model("tiny", path, keys=PreprocessKeys(image_size=96)).preprocess.size == (96, 96)


def test_positions_are_stretched_where_the_recipe_asks(
    saved: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="p4q_edge"):
        loaded = load_model("tiny", saved(), keys=PreprocessKeys(image_size=128))
    assert loaded.preprocess.size == (128, 128)
    assert "w.pt: positions stretched from 17 to 65, as model.image_size asks" in caplog.messages


def test_a_checkpoint_of_another_text_length_is_refused(saved: Callable[..., str]) -> None:
    with pytest.raises(InputError, match=r"with texts of 32 tokens, and this model reads 77.*context_length = 32"):
        load_model("tiny", saved(context=32))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["visual.transformer.resblocks.0.mlp.c_fc.weight", "logit_scale"])
def test_weights_that_are_no_numbers_are_refused_by_name(saved: Callable[..., str], name: str, value: float) -> None:
    path = saved()
    state = torch.load(path, weights_only=True)
    state[name].view(-1)[0] = value
    torch.save(state, path)
    with pytest.raises(InputError, match=f"w.pt: the tensor {name} has NaN or infinite values"):
        load_model("tiny", path)


def test_several_bad_tensors_are_counted(saved: Callable[..., str]) -> None:
    path = saved()
    state = torch.load(path, weights_only=True)
    bad = {key: torch.full_like(value, float("nan")) for key, value in state.items()}
    torch.save(bad, path)
    model: nn.Module = open_clip.create_model("tiny")
    with pytest.raises(InputError, match=f"and {len(model.state_dict()) - 1} more has NaN"):
        load_model("tiny", path)
