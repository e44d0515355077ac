"""The recipe of the built-in demo, and that of a run folder."""

from pathlib import Path

from p4q_edge.recipe.schema import Recipe
from p4q_edge.recipe.toml import read_recipe
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.storage import quoted


def demo_recipe() -> Recipe:
    """Return the built-in demo: printed glyphs to real handwriting."""
    from p4q_edge.demo import MODEL_DIR

    return read_recipe(MODEL_DIR.parent / "recipe.toml")


def run_recipe_of(folder: Path) -> Recipe:
    """Return the resolved recipe that a run folder holds.

    Raises:
        UsageError: the folder is not a run folder.
    """
    path = folder / "recipe.toml"
    if not path.is_file():
        raise UsageError(
            f"{folder} is not a run folder (it has no recipe.toml); `p4q-edge learn -o {quoted(folder)}` makes one"
        )
    return read_recipe(path)
