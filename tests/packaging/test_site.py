"""The documentation site: pages, links, what they quote, and a strict build that loads nothing from elsewhere."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from site_pages import commands_page, page_text, pages, recipe_page, results_page, section_of
from write_schema_docs import fields_of, is_record

from p4q_edge import api, runtime
from p4q_edge.recipe.schema import Recipe

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
ONLY_NAMED = {"canonical", "next", "prev"}
"""Relations of `<link>` that a browser does not fetch."""


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Path]:
    """A repository of three pages, by their names in the site."""
    for name, text in {
        "docs/a.md": "[b](../b/README.md#two) `[x](none.md)` ![p](assets/p.svg) [code](../c.py) [out](http://x.y)\n",
        "b/README.md": "# B\n\n## One\none [c](../c.py)\n\n## Two\ntwo\n### Below\nmore\n\n## Three\n```\n## no\n```\n",
        "docs/c.md": "before\n\n> [Two of b](../b/README.md#two)\n\nafter\n",
        "docs/assets/p.svg": "<svg/>",
        "c.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return {
        "a.md": tmp_path / "docs/a.md",
        "deep/b.md": tmp_path / "b/README.md",
        "c.md": tmp_path / "docs/c.md",
    }


def test_links_lead_to_pages_and_what_has_none_is_named(small: dict[str, Path], tmp_path: Path) -> None:
    expected = "[b](deep/b.md#two) `[x](none.md)` ![p](p.svg) code (`c.py`) [out](http://x.y)\n"
    assert page_text("a.md", small, tmp_path) == expected
    assert "one c (`c.py`)" in page_text("deep/b.md", small, tmp_path)


def test_a_section_stands_where_it_is_included(small: dict[str, Path], tmp_path: Path) -> None:
    assert page_text("c.md", small, tmp_path) == "before\n\ntwo\n### Below\nmore\n\nafter\n"


@pytest.mark.parametrize(
    ("line", "problem"),
    [("[x](none.md)", "links to none.md, which is not there"), ("> [x](../b/README.md#four)", "has no heading #four")],
)
def test_what_is_not_there_is_an_error(small: dict[str, Path], tmp_path: Path, line: str, problem: str) -> None:
    small["a.md"].write_text(line + "\n")
    with pytest.raises(ValueError, match=problem):
        page_text("a.md", small, tmp_path)


def test_a_heading_in_code_is_none() -> None:
    assert section_of("## A\n```\n## B\n```\nrest\n## C\n", "a") == "```\n## B\n```\nrest"
    assert section_of("## A\n", "b") is None


def test_every_page_can_be_made(repository: Path) -> None:
    known = pages(repository)
    assert len(known) > 40
    for name in known:
        assert page_text(name, known, repository)
    assert all(f"](accuracy-{data}" in results_page(known) for data in ("digits", "cifar100"))


def test_every_command_and_key_is_on_its_page() -> None:
    text = commands_page()
    assert "## head calibrate\n" in text
    assert "--cpu-profile" in text
    keys = recipe_page()
    sections = [kind for kind in fields_of(Recipe).values() if is_record(kind)]
    assert len(sections) >= 6
    for key in (key for section in sections for key in fields_of(section)):
        assert f"| `{key}` |" in keys
    assert "| `weight_bits` | " in keys


def messages(repository: Path) -> Iterator[str]:
    """Yield every text of the sources, with `...` for what is filled in."""
    for root in ("p4q_edge", "runtime/p4q_edge"):
        for path in (repository / root).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def said(heading: str, texts: list[str]) -> bool:
    """Return whether a heading quotes one of the texts; `...` stands for anything."""
    quoted = re.compile(".*".join(map(re.escape, heading.split("..."))), re.DOTALL)
    return any(quoted.search(text) for text in texts)


def test_every_message_that_is_explained_can_come(repository: Path) -> None:
    texts = list(messages(repository))
    page = (repository / "docs/troubleshooting.md").read_text()
    headings = [found[1] for found in re.findall(r"(?m)^### (`+) ?(.*?) ?\1$", page)]
    assert len(headings) > 30
    assert [heading for heading in headings if not said(heading, texts)] == []
    assert not said("the moon ... is not made of cheese", texts)


@pytest.mark.parametrize(
    ("page", "names"),
    [("reference-runtime.md", runtime.__all__), ("reference-toolkit.md", sorted({*api.__all__} - {*runtime.__all__}))],
)
def test_every_public_name_is_described_once(repository: Path, page: str, names: list[str]) -> None:
    listed = re.findall(r"members: \[([^\]]*)\]", (repository / "docs" / page).read_text())
    assert sorted(name for line in listed for name in line.split(", ")) == sorted(names)


class Fetched(HTMLParser):
    """What a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in LOADED and values.get("rel") not in ONLY_NAMED:
            self.addresses.append(values.get(LOADED[tag]) or "")


def fetched(html: str) -> list[str]:
    parser = Fetched()
    parser.feed(html)
    return parser.addresses


def test_the_search_for_what_is_fetched_can_find_some() -> None:
    html = '<script src="https://a/b.js"></script><link rel="canonical" href="https://c"><a href="https://d">x</a>'
    assert fetched(html) == ["https://a/b.js"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs mkdocs: pip install '.[docs]'")
def test_the_site_is_built_strictly_and_needs_nothing_from_elsewhere(repository: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-f",
        "docs/mkdocs.yml",
        "-d",
        str(tmp_path / "site"),
    ]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=repository, env=quiet, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    built = sorted((tmp_path / "site").rglob("*.html"))
    assert len(built) > 45
    for page in built:
        for address in fetched(page.read_text()):
            assert not re.match(r"(https?:)?//", address), (page, address)
            there = page.parent / address.partition("?")[0].partition("#")[0]
            assert address.startswith(("data:", "/")) or there.exists(), (page, address)
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )['\"]?https?:", sheet.read_text()), sheet
    shown = {path.relative_to(tmp_path / "site").as_posix() for path in built}
    assert {Path(name).with_suffix(".html").as_posix() for name in pages(repository)} <= shown
    text = (tmp_path / "site/reference-runtime.html").read_text()
    assert all(f'id="p4q_edge.runtime.{name}"' in text for name in ("ZeroShotClassifier", "build_engine", "InputError"))


def contrast_with_white(colour: str) -> float:
    """As WCAG defines it, of a colour `#rrggbb`."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 1.05 / (0.05 + 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])


def test_links_and_the_head_of_a_page_can_be_read(repository: Path) -> None:
    style = (repository / "docs/assets/site.css").read_text(encoding="utf-8")
    for name in ("--md-primary-fg-color", "--md-typeset-a-color"):
        (colour,) = re.findall(rf"{name}: (#[0-9a-f]{{6}});", style)
        assert contrast_with_white(colour) >= 4.5, name
    assert contrast_with_white("#009485") < 4.5, "the theme's own"
    assert "text-decoration: underline" in style, "a link is known without its colour"


def test_the_site_follows_a_system_that_becomes_dark(repository: Path) -> None:
    """The first entry is that of a reader who chose nothing."""
    text = (repository / "docs/mkdocs.yml").read_text(encoding="utf-8")
    assert re.findall(r'- media: "(.*)"', text)[0] == "(prefers-color-scheme)"
