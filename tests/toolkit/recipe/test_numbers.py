"""Every number of a recipe with values that nobody expects there, and words that say nothing."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
import pytest

from p4q_edge.recipe.schema import Recipe, Section
from p4q_edge.recipe.toml import parse_recipe, to_toml
from p4q_edge.runtime.errors import UsageError

VALUES: tuple[Any, ...] = (
    0, -1, 1, 1.5, 1e308, -1e308, 1e6, 1e-320, float("nan"), float("inf"), 2**31, 2**63, 10**30, True, "3", [], {}, [1],
)  # fmt: skip
BASE = {"model": {"name": "demo"}, "data": {"train": "demo:digits"}}


def _parts(kind: Any) -> Iterator[Any]:
    if get_origin(kind) is Annotated:
        yield from _parts(get_args(kind)[0])
    elif get_args(kind) and get_origin(kind) is not Literal:
        for part in get_args(kind):
            yield from _parts(part)
    else:
        yield kind


def _numbers() -> Iterator[tuple[str, str]]:
    """Yield the section and the name of every key that is a number; the section is empty for those of none."""
    for field in msgspec.structs.fields(Recipe):
        kind = field.type
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            if {int, float} & set(_parts(kind)):
                yield "", field.name
            continue
        for inner in msgspec.structs.fields(kind):
            if {int, float} & set(_parts(inner.type)):
                yield field.name, inner.name


KEYS = list(_numbers())


def test_all_numbers_are_found() -> None:
    assert len(KEYS) > 35
    assert ("", "seed") in KEYS
    assert {("model", "mean"), ("quantization", "attention_bits"), ("compute", "workers")} < set(KEYS)


@pytest.mark.parametrize(("section", "name"), KEYS)
def test_a_number_is_taken_and_stays_or_is_refused_by_its_key(section: str, name: str) -> None:
    refused = 0
    for value in VALUES:
        inner = {**BASE.get(section, {}), name: value}
        document = {**BASE, section: inner} if section else {**BASE, name: value}
        try:
            recipe = parse_recipe(document, source="x.toml")
        except UsageError as error:
            refused += 1
            told = str(error)
            assert told.startswith("x.toml: ")
            assert f"{section}.{name}" in told or name in told
            assert "must" in told or "expected" in told, told
            assert "got" in told, told
            assert "`" not in told
            continue
        assert to_toml(recipe)
        assert getattr(getattr(recipe, section) if section else recipe, name) == value
    assert refused >= 7


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"model": {"name": ""}}, "model.name must name a model: .* got ''"),
        ({"model": {"name": " \t"}}, "model.name must name a model"),
        (
            {"class_names": ["cat", "dog", "cat "]},
            "data.class_names: 'cat' appears more than once",
        ),
        ({"class_names": ["cat", ""]}, "data.class_names: an entry is empty; .* got '' as number 2"),
        ({"templates": ["a {}.", "a {}."]}, "data.templates: 'a {}.' appears more than once"),
        ({"templates": ["a cat"]}, "data.templates: 'a cat' has no {} for the class name; write e.g."),
        ({"templates": []}, "data.templates is empty; write e.g. .* or name prompts with data.class_prompts"),
        ({"templates": ""}, "data.templates is empty"),
    ],
)
def test_words_that_say_nothing_are_refused(changed: dict[str, Any], told: str) -> None:
    document = {**BASE, **changed} if "model" in changed else {**BASE, "data": {"train": "demo:digits", **changed}}
    with pytest.raises(UsageError, match=told):
        parse_recipe(document, source="x.toml")


def test_without_templates_prompts_of_the_classes_do() -> None:
    data = {"train": "demo:digits", "templates": [], "class_prompts": "prompts.json"}
    assert parse_recipe({**BASE, "data": data}, source="x.toml").data.templates == ()
