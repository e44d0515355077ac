"""Recipes as TOML: read, check, write."""

import difflib
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from p4q_edge.recipe.schema import Recipe, Section
from p4q_edge.runtime.artifacts import RecipeDocument
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.storage import read_bounded

MAX_RECIPE_BYTES = 1 << 20
MAX_NUMBER = (1 << 31) - 1
_SHOWN = 60
_PATHS = ("train", "calibration", "test", "unlabelled", "class_prompts")
_PATHS_OR_WORDS = ("class_names", "templates")
"""A path where they are a text."""


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe; paths in it are relative to its folder.

    Raises:
        UsageError: missing file, broken TOML, unknown key, wrong type or value.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"recipe {path} does not exist; `p4q-edge build --print-config` shows one to start from")
    try:
        document = tomllib.loads(read_bounded(path, limit_bytes=MAX_RECIPE_BYTES, kind="recipe").decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    return anchor(parse_recipe(document, source=str(path)), path.parent)


def parse_recipe(document: dict[str, Any], *, source: str) -> Recipe:
    """Check a parsed document.

    Raises:
        UsageError: unknown key (with the nearest known one), wrong type or value, or sections that contradict.
    """
    problems = [*_unknown_keys(document, Recipe, prefix=""), *_unbounded(document, prefix="")]
    if problems:
        raise UsageError(f"{source}: {'; '.join(problems)}")
    try:
        recipe = msgspec.convert(document, Recipe)
    except (msgspec.ValidationError, ValueError) as error:
        raise UsageError(f"{source}: {error}{_expected(str(error))}") from error
    if problem := recipe.contradiction():
        raise UsageError(f"{source}: {problem}")
    return recipe


def anchor(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with its relative paths absolute, seen from `folder`."""

    def absolute(value: str) -> str:
        if not value or value.startswith("demo:") or Path(value).is_absolute():
            return value
        return str((folder / value).resolve())

    data = recipe.data
    changes: dict[str, Any] = {name: absolute(getattr(data, name)) for name in _PATHS}
    for name in _PATHS_OR_WORDS:
        value = getattr(data, name)
        changes[name] = absolute(value) if isinstance(value, str) else value
    model = recipe.model
    if model.name.startswith("local-dir:"):
        model = msgspec.structs.replace(model, name="local-dir:" + absolute(model.name.removeprefix("local-dir:")))
    elif model.pretrained.endswith((".pt", ".pth", ".bin", ".safetensors")):
        model = msgspec.structs.replace(model, pretrained=absolute(model.pretrained))
    return msgspec.structs.replace(recipe, data=msgspec.structs.replace(data, **changes), model=model)


def without_folders(recipe: Recipe, *, model: str, pretrained: str) -> Recipe:
    """Return the recipe with the names of local files but not where they lay, nor where it ran.

    Args:
        recipe: with paths that `anchor` made absolute.
        model: what the model is called elsewhere.
        pretrained: the same of its weights.
    """
    values = {name: getattr(recipe.data, name) for name in (*_PATHS, *_PATHS_OR_WORDS)}
    names = {name: Path(value).name for name, value in values.items() if isinstance(value, str)}
    return msgspec.structs.replace(
        recipe.anywhere(),
        data=msgspec.structs.replace(recipe.data, **names),
        model=msgspec.structs.replace(recipe.model, name=model, pretrained=pretrained),
    )


def to_document(recipe: Recipe) -> RecipeDocument:
    """Return the recipe as bundles and documents tell it."""
    return msgspec.convert(msgspec.to_builtins(recipe), RecipeDocument)


def on_device(recipe: Recipe, device: str) -> Recipe:
    """Return the same recipe computed on another device, `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: that names no device.
    """
    try:
        compute = msgspec.structs.replace(recipe.compute, device=device)
    except ValueError as error:
        raise UsageError(f"--device: {error}") from error
    return msgspec.structs.replace(recipe, compute=compute)


def to_toml(recipe: Recipe) -> str:
    """Return the resolved recipe as TOML text; reading it back gives the same recipe."""
    document: dict[str, Any] = msgspec.to_builtins(recipe)
    lines = [f"{key} = {_toml_value(value)}" for key, value in document.items() if not isinstance(value, dict)]
    for name, section in document.items():
        if isinstance(section, dict):
            lines += ["", f"[{name}]"]
            lines += [f"{key} = {_toml_value(value)}" for key, value in section.items() if value is not None]
    return "\n".join(lines) + "\n"


def _toml_value(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    # JSON's spelling of strings, numbers and booleans is also TOML's, but for DEL, which JSON leaves unescaped.
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")


def _unbounded(document: dict[str, Any], *, prefix: str) -> Iterator[str]:
    """Numbers that no key takes: not finite, or beyond 32 bits, which loops and arrays have no room for."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _unbounded(value, prefix=f"{prefix}{key[:_SHOWN]}.")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                yield f"{prefix}{key[:_SHOWN]} must be a number that is finite, got {number}"
            elif isinstance(number, int) and abs(number) > MAX_NUMBER and prefix:
                yield f"{prefix}{key[:_SHOWN]} must be between -{MAX_NUMBER} and {MAX_NUMBER}, got a larger one"


def _expected(message: str) -> str:
    """Return the choices of the key of which msgspec found another value, as it does not name them; else nothing."""
    found = re.search(r"Invalid enum value .* - at `\$\.([\w.]+)`", message)
    if found is None:
        return ""
    kind: Any = Recipe
    for key in found[1].split("."):
        kind = {field.name: field.type for field in msgspec.structs.fields(kind)}[key]
    return f"; expected {' or '.join(map(str, _choices(kind)))}"


def _choices(kind: Any) -> Iterator[object]:
    """Yield what a type takes, in words: the values of its Literals, and the names of its other parts."""
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    elif parts := get_args(kind):
        for part in parts:
            yield from _choices(part)
    elif kind is not type(None):
        yield kind.__name__


def _unknown_keys(document: dict[str, Any], section: type[Section], *, prefix: str) -> Iterator[str]:
    known = {field.name: field.type for field in msgspec.structs.fields(section)}
    for key, value in document.items():
        if key not in known:
            # The search takes the square of the length.
            key = key[:_SHOWN]
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            yield f"unknown key {prefix + key!r}; did you mean {prefix + near!r}?"
            continue
        kind = known[key]
        if isinstance(kind, type) and issubclass(kind, Section) and isinstance(value, dict):
            yield from _unknown_keys(value, kind, prefix=f"{prefix}{key}.")
