"""A word of another kind, or a key in the wrong section, is told of by the key and by what it takes."""

from typing import Any

import pytest

from p4q_edge.recipe.toml import parse_recipe
from p4q_edge.runtime.errors import UsageError

MINIMAL: dict[str, Any] = {"model": {"name": "ViT-B-32"}, "data": {"train": "photos"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learn": {"epochs": "three"}}, "x.toml: learn.epochs: expected a whole number, got a text$"),
        ({"learn": {"teacher": 1}}, "learn.teacher: expected learned or zero-shot or none, got a whole number$"),
        ({"learn": {"teacher": "wise"}}, "learn.teacher: expected learned or zero-shot or none, got 'wise'$"),
        ({"quantization": {"observer": "best"}}, "observer: expected minmax or .* or search, got 'best'$"),
        ({"quantization": {"rotation": 1}}, "quantization.rotation: expected true or false, got a whole number$"),
        ({"quantization": {"keep_float": "a"}}, "keep_float: expected a list of texts, got a text$"),
        ({"data": {"train": "x", "templates": [1]}}, "templates: expected a list of texts or a text, got a whole"),
        ({"compute": {"batch_size": "large"}}, "batch_size: expected a whole number or auto, got 'large'$"),
        ({"compute": {"precision": "fp16"}}, "precision: expected float32 or tf32 or bf16, got 'fp16'$"),
        ({"model": {"name": "a", "interpolation": "area"}}, "expected bicubic or bilinear, got 'area'$"),
        ({"model": {"name": "a", "mean": [0.5]}}, "model.mean: expected a list of numbers, 3 of them, got 1$"),
        ({"model": "demo"}, "model: expected a section of keys, got a text$"),
        ({"model": {}}, "x.toml: model.name is missing$"),
        ({"schema_version": 2}, "schema_version: expected 1, got 2$"),
        ({"teacher": "learned"}, "unknown key 'teacher'; did you mean 'learn.teacher'"),
        ({"data": {"train": "x", "seed": 3}}, "unknown key 'data.seed'; did you mean 'seed'"),
    ],
)
def test_words_of_another_kind(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_recipe(MINIMAL | change, source="x.toml")
