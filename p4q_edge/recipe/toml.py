"""Recipes as TOML: read, check, write."""

import difflib
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from p4q_edge.recipe.schema import Recipe, Section
from p4q_edge.recipe.words import words_problem
from p4q_edge.runtime.artifacts import RecipeDocument
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.storage import not_fetched, one_line, read_bounded, what_is_at

MAX_RECIPE_BYTES = 1 << 20
MAX_DOTS = 100
"""Of a line, outside of texts: the parser takes time as the square of a dotted key's parts, minutes for a megabyte."""
MAX_NUMBER = (1 << 31) - 1
_TEXTS = re.compile(
    r'"""(?:[^"\\]++|\\.|"{1,2}+(?!"))*+(?:"{3,5}|\\?\Z)'
    r"|'''(?:[^']++|'{1,2}+(?!'))*+(?:'{3,5}|\Z)"
    r'|"(?:\\.|[^"\\\n])*+"?'
    r"|'[^'\n]*+'?"
    r"|#[^\n]*+",
    re.DOTALL,
)
"""Texts and comments, closed or not."""
_SHOWN = 60
_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_CAME = {kind.__name__: words for kind, words in _KINDS.items()} | {"array": "a list", "object": "a section of keys"}
_LIMITS = {">=": "at least", "<=": "at most", ">": "above", "<": "below"}
_PATHS = ("train", "calibration", "test", "unlabelled", "class_prompts")
_PATHS_OR_WORDS = ("class_names", "templates")
"""A path where they are a text."""


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe; paths in it are relative to its folder.

    Raises:
        UsageError: missing file, broken TOML, unknown key, wrong type or value.
    """
    path = Path(path)
    return anchor(parse_recipe(_read_document(path), source=str(path)), path.parent)


def read_right_keys(path: str | Path) -> Recipe | None:
    """Read what is right of a recipe that `read_recipe` refuses, to look for what else is wrong; None if that is none.

    Raises:
        UsageError: missing file, broken TOML.
    """
    path = Path(path)
    recipe, _ = _checked(_read_document(path))
    return None if recipe is None else anchor(recipe, path.parent)


def _read_document(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"recipe {path} {what_is_at(path)}; `p4q-edge build --print-config` shows one to start from")
    try:
        text = read_bounded(path, limit_bytes=MAX_RECIPE_BYTES, kind="recipe").decode("utf-8")
        _refuse_long_keys(text, path)
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of Python's own, for whole numbers of thousands of digits
        raise UsageError(f"{path} is not TOML: {one_line(error)}") from error


def _refuse_long_keys(text: str, path: Path) -> None:
    for number, line in enumerate(_TEXTS.sub("", text).split("\n"), start=1):
        if (dots := line.count(".")) > MAX_DOTS:
            raise UsageError(f"{path}: expected keys of a section and a name, got {dots} dots in line {number}")


def parse_recipe(document: dict[str, Any], *, source: str) -> Recipe:
    """Check a parsed document.

    Raises:
        UsageError: unknown key (with the nearest known one), wrong type or value, or sections that contradict.
    """
    recipe, problems = _checked(document)
    if recipe is None or problems:
        raise UsageError(f"{source}: {'; '.join(problems)}")
    return recipe


def _checked(document: dict[str, Any]) -> tuple[Recipe | None, list[str]]:
    """Return what the right keys of a document make, None if that is no recipe, and all that is wrong with others."""
    problems = [*_unknown_keys(document, Recipe, prefix=""), *_unbounded(document, prefix="")]
    left = _known(document, Recipe)
    while True:
        try:
            recipe = msgspec.convert(left, Recipe)
        except (msgspec.ValidationError, ValueError) as error:
            words = _in_words(str(error), left)
            dropped = _drop(left, words)
            # What sections lack, or ask of each other, may be what is written wrong elsewhere.
            if dropped or not problems:
                problems.append(words)
            if not dropped:
                return None, problems
            continue
        if problem := words_problem(recipe):
            problems.append(problem)
            if _drop(left, problem):
                continue
        elif not problems and (problem := recipe.contradiction()):
            problems.append(problem)
        return recipe, problems


def _known(document: dict[str, Any], section: type[Section]) -> dict[str, Any]:
    """Return a copy of a document without keys that are unknown, and without numbers that no key takes."""
    kinds = {field.name: field.type for field in msgspec.structs.fields(section)}
    left: dict[str, Any] = {}
    for key, value in document.items():
        kind = kinds.get(key)
        if isinstance(kind, type) and issubclass(kind, Section) and isinstance(value, dict):
            left[key] = _known(value, kind)
        elif key in kinds and not any(_unbounded({key: value}, prefix="" if section is Recipe else ".")):
            left[key] = value
    return left


def _drop(document: dict[str, Any], words: str) -> bool:
    """Take out the key of a section that a problem begins with; return whether there was one."""
    found = re.match(r"(\w+)\.(\w+)\b", words)
    if found is None or not isinstance(section := document.get(found[1]), dict) or found[2] not in section:
        return False
    del section[found[2]]
    return True


def anchor(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with its relative paths absolute, seen from `folder`."""

    def absolute(value: str) -> str:
        if not value or value.startswith("demo:") or Path(value).is_absolute() or not_fetched(value):
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
    """Numbers that no key takes: not finite, or beyond 32 bits, which loops and arrays have no room for.

    A seed has 63.
    """
    most = MAX_NUMBER if prefix else (1 << 63) - 1
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _unbounded(value, prefix=f"{prefix}{key[:_SHOWN]}.")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                yield f"{prefix}{key[:_SHOWN]} must be a number that is finite, got {number}"
            elif isinstance(number, int) and abs(number) > most:
                yield f"{prefix}{key[:_SHOWN]} must be between {-most if prefix else 0} and {most}, got a larger one"


def _in_words(message: str, document: dict[str, Any]) -> str:
    """Return what msgspec, or a section's own check, found at `$.section.key`: the key first, and what it takes."""
    found = re.fullmatch(r"(.*) - at `\$\.?([\w.]*)(?:\[.*)?`", message, re.DOTALL)
    what, key = (message, "") if found is None else (found[1], found[2])
    missing = re.fullmatch(r"Object missing required field `(\w+)`", what)
    if missing is not None:
        return f"{key}{'.' if key else ''}{missing[1]} is missing"
    kind: Any = Recipe
    came: Any = document
    for part in filter(None, key.split(".")):
        came = came.get(part) if isinstance(came, dict) else None
        kind = {field.name: field.type for field in msgspec.structs.fields(kind)}[part]
    if isinstance(kind, type) and issubclass(kind, Section):
        own = what.split(" ", 1)[0] in {field.name for field in msgspec.structs.fields(kind)}
        if wrong := re.fullmatch("Expected `object`, got `(.*)`", what):
            return f"{key or 'the recipe'}: expected a section of keys, got {_CAME.get(wrong[1], wrong[1])}"
        return f"{key}.{what}" if key and own else f"{key}: {what}" if key else what
    wrong = re.fullmatch(r"Invalid enum value (.*)|Expected `[^`]*`, got `(.*)`", what)
    if limit := re.fullmatch(r"Expected `\w+(?: \| null)?` (>=|<=|>|<) (\S+)", what):
        return f"{key} must be {_LIMITS[limit[1]]} {limit[2]}, got {came}"
    if length := re.fullmatch(r"Expected `array` of length (\d+), got (\d+)", what):
        return f"{key}: expected {' or '.join(map(str, _choices(kind)))}, {length[1]} of them, got {length[2]}"
    if wrong is None:
        return f"{key}: {what.replace('`', '')}"
    return f"{key}: expected {' or '.join(map(str, _choices(kind)))}, got {wrong[1] or _CAME.get(wrong[2], wrong[2])}"


def _choices(kind: Any) -> Iterator[object]:
    """Yield what a type takes, in words: the values of its Literals, and the names of its other parts."""
    if get_origin(kind) is Annotated:  # with limits, of which the message speaks
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    elif get_origin(kind) is tuple:
        yield f"a list of {_KINDS[get_args(kind)[0]].removeprefix('a ')}s"
    elif parts := get_args(kind):
        for part in parts:
            yield from _choices(part)
    elif kind is not type(None):
        yield _KINDS[kind]


def _unknown_keys(document: dict[str, Any], section: type[Section], *, prefix: str) -> Iterator[str]:
    known = {field.name: field.type for field in msgspec.structs.fields(section)}
    for key, value in document.items():
        if key not in known:
            # The search takes the square of the length.
            key = key[:_SHOWN]
            elsewhere = _places_of(key)
            near = elsewhere or prefix + difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            yield f"unknown key {prefix + key!r}; did you mean {near!r}?"
            continue
        kind = known[key]
        if isinstance(kind, type) and issubclass(kind, Section) and isinstance(value, dict):
            yield from _unknown_keys(value, kind, prefix=f"{prefix}{key}.")


def _places_of(key: str) -> str:
    """Return a key of the whole recipe, or of one section, that is called like this; empty if there is none."""
    for field in msgspec.structs.fields(Recipe):
        if field.name == key:
            return key
        kind = field.type
        inner = msgspec.structs.fields(kind) if isinstance(kind, type) and issubclass(kind, Section) else ()
        if any(one.name == key for one in inner):
            return f"{field.name}.{key}"
    return ""
