"""Words of a recipe that say nothing, or the same twice: where they stand in the recipe, and in files that it names."""

from collections import Counter
from collections.abc import Sequence

from p4q_edge.recipe.schema import Recipe

_SHOWN = 60


def words_problem(recipe: Recipe) -> str:
    """Return what is wrong with a recipe's names and prompts, in words; empty if nothing is.

    What stands in files of their own is checked where these are read.
    """
    if not recipe.model.name.strip():
        return (
            f"model.name must name a model: one of open_clip, hf-hub:org/repo, local-dir:path or demo; "
            f"got {recipe.model.name!r}"
        )
    data = recipe.data
    for key, words in (("data.class_names", data.class_names), ("data.templates", data.templates)):
        if not isinstance(words, str) and (problem := entries_problem(words, key=key)):
            return problem
    if not data.templates:
        return "" if data.class_prompts else template_problems(())[0]
    return "" if isinstance(data.templates, str) else next(iter(template_problems(data.templates)), "")


def entries_problem(words: Sequence[str], *, key: str) -> str:
    """Return what is wrong with class names or templates, of which each says something and none stands twice."""
    stripped = [word.strip() for word in words]
    if "" in stripped:
        number = stripped.index("") + 1
        return f"{key}: an entry is empty; every entry needs a word, got {words[number - 1]!r} as number {number}"
    repeated = min((word for word, count in Counter(stripped).items() if count > 1), default=None)
    return "" if repeated is None else f"{key}: {repeated[:_SHOWN]!r} appears more than once; every entry must differ"


def template_problems(templates: Sequence[str]) -> list[str]:
    """Return what is wrong with each template that has no place for the name of a class, or that there is none."""
    if not templates:
        return ["data.templates is empty; write e.g. ['a photo of a {}.'], or name prompts with data.class_prompts"]
    return [
        f"data.templates: {template[:_SHOWN]!r} has no {{}} for the class name; write e.g. 'a photo of a {{}}.'"
        for template in templates
        if "{}" not in template
    ]
