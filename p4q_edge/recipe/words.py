"""Words of a recipe that say nothing, or the same twice, so that they are told of when it is read."""

from collections import Counter

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
    for key in ("class_names", "templates"):
        words = getattr(data, key)
        if isinstance(words, str):
            continue
        if not all(map(str.strip, words)):
            return f"data.{key} must not hold an empty text; got {[word[:_SHOWN] for word in words[:8]]}"
        word, count = next(iter(Counter(map(str.strip, words)).most_common(1)), ("", 0))
        if count > 1:
            return f"data.{key} must name each once, and names {word[:_SHOWN]!r} {count} times"
    bare = next((one for one in data.templates if "{}" not in one), None) if isinstance(data.templates, tuple) else None
    if bare is not None:
        return f"data.templates must each have {{}} for the class name, as 'a photo of a {{}}.'; got {bare[:_SHOWN]!r}"
    if not data.templates and not data.class_prompts:
        return "data.templates must hold a prompt such as 'a photo of a {}.', as data.class_prompts is empty; got none"
    return ""
