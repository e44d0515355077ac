"""The recipe in bundles and documents has the form that the toolkit's recipe has, key by key."""

from __future__ import annotations

from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
import pytest

from p4q_edge.recipe import Recipe, anchor, demo_recipe, read_recipe, to_document, without_folders
from p4q_edge.runtime.artifacts import RecipeDocument
from p4q_edge.runtime.artifacts.manifest import Manifest

RECIPES = sorted((Path(__file__).resolve().parents[3] / "calibration" / "recipes").glob("*.toml"))


def kinds(kind: Any) -> set[Any]:
    """What a type takes: choices count as what they are made of, and `UNSET` as nothing."""
    if get_origin(kind) is Annotated:  # with the range of its numbers, which the toolkit alone checks
        return kinds(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return {type(value) for value in get_args(kind)}
    if get_origin(kind) in (Union, UnionType):
        return set().union(*map(kinds, get_args(kind)))
    return set() if kind is msgspec.UnsetType else {NoneType if kind is None else kind}


def section_of(kind: Any) -> type[msgspec.Struct] | None:
    """Return the record among what a type takes."""
    return next((one for one in kinds(kind) if isinstance(one, type) and issubclass(one, msgspec.Struct)), None)


def differences(recipe: type[msgspec.Struct], document: type[msgspec.Struct], prefix: str = "") -> list[str]:
    """Return every key of one of two records that the other one has not, or not with these types."""
    ours, theirs = ({one.name: one.type for one in msgspec.structs.fields(kind)} for kind in (recipe, document))
    found = [f"{prefix}{name}" for name in ours.keys() ^ theirs.keys()]
    if [name for name in ours if name in theirs] != [name for name in theirs if name in ours]:
        found.append(f"{prefix}order")
    for name in ours.keys() & theirs.keys():
        mine, other = section_of(ours[name]), section_of(theirs[name])
        if mine is not None and other is not None:
            found += differences(mine, other, f"{prefix}{name}.")
        elif kinds(ours[name]) != kinds(theirs[name]):
            found.append(f"{prefix}{name}")
    return found


def test_a_document_has_every_key_of_the_recipe() -> None:
    assert differences(Recipe, RecipeDocument) == []


def test_a_key_that_is_missing_or_of_another_type_is_found() -> None:
    class Part(msgspec.Struct):
        steps: int
        rate: float

    class Other(msgspec.Struct):
        steps: int | str | msgspec.UnsetType

    ours, theirs = (msgspec.defstruct("Whole", [("part", part)]) for part in (Part, Other))
    assert sorted(differences(ours, theirs)) == ["part.rate", "part.steps"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_document_says_all_that_the_recipe_says(path: Path) -> None:
    recipe = read_recipe(path)
    assert msgspec.json.encode(to_document(recipe)) == msgspec.json.encode(recipe)


def test_a_bundle_does_not_tell_where_files_lay() -> None:
    recipe = demo_recipe()
    data = msgspec.structs.replace(
        recipe.data,
        train="a/train",
        test="b.tar",
        unlabelled="c/more",
        class_names="d/names.txt",
        class_prompts="e.json",
    )
    placed = anchor(msgspec.structs.replace(recipe, data=data), Path("home"))
    assert placed.data.unlabelled == str(Path("home/c/more").resolve())
    there = without_folders(placed, model="CLIP", pretrained="w.pt")
    kept = there.data
    assert (kept.train, kept.test, kept.unlabelled) == ("train", "b.tar", "more")
    assert (kept.class_names, kept.class_prompts, kept.templates) == ("names.txt", "e.json", recipe.data.templates)
    assert (there.model.name, there.model.pretrained) == ("CLIP", "w.pt")
    assert str(Path.cwd()) not in msgspec.json.encode(to_document(there)).decode()


def test_recipes_of_other_versions_are_read() -> None:
    """A key of a later version is passed over, and one that an earlier one lacked stays away."""
    found = msgspec.json.decode(b'{"seed":3,"learn":{"steps":5,"later":[{}]},"later":{"a":1}}', type=RecipeDocument)
    assert isinstance(found.learn, msgspec.Struct)
    assert msgspec.json.encode(found) == b'{"seed":3,"learn":{"steps":5}}'
    assert {field.name: field.type for field in msgspec.structs.fields(Manifest)}["recipe"] is RecipeDocument


def test_a_recipe_of_other_types_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"got `str` - at `\$\.learn\.steps`"):
        msgspec.json.decode(b'{"learn":{"steps":"many"}}', type=RecipeDocument)
