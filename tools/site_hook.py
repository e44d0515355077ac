"""Gives mkdocs the pages of the documentation site; docs/mkdocs.yml names this file as a hook."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# mkdocs loads a hook by its path alone.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from site_pages import commands_page, page_text, pages, recipe_page, results_page


def on_files(files: Files, *, config: Any) -> Files:
    """Add every page to the files that mkdocs found, which are those of docs/assets."""
    known = pages()
    try:
        texts = {name: page_text(name, known) for name in known}
    except ValueError as error:
        raise PluginError(str(error)) from error
    texts |= {
        "commands.md": commands_page(),
        "reference-recipe.md": recipe_page(),
        "measured/index.md": results_page(known),
    }
    for name, text in texts.items():
        files.append(File.generated(config, name, content=text))
    return files
