"""What the documentation site is made of: pages of this repository, their links, and the commands' own help.

Every page is a file that reads well where it lies; nothing is written twice. `tools/site_hook.py` gives them to mkdocs.
A line of the form `> [words](other.md#heading)` stands for that section of the other file, which the site shows in its
place.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from write_schema_docs import fields_of, is_record, spelled, words_of

ROOT = Path(__file__).resolve().parent.parent
_SINGLE = {
    "README.md": "overview.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "runtime/README.md": "runtime.md",
    "runtime/JSON.md": "json.md",
    "calibration/README.md": "calibration.md",
    "examples/README.md": "examples/index.md",
    "tools/bench/photo_clip/README.md": "measured/photo-clip.md",
}
MADE = ("commands.md", "reference-recipe.md", "measured/index.md")
"""Pages that are made while the site is built."""
_FENCE = re.compile(r"(?m)^(?P<fence>```+|~~~+)[^\n]*\n.*?^(?P=fence)[ ]*$", re.DOTALL)
# A link, whose words may hold code, or code, in which nothing is a link: whatever comes first.
_LINK = re.compile(
    r"(?P<image>!?)\[(?P<words>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^()\s]+)\)|(?P<code>(?<!`)`[^`\n]+`(?!`))"
)
_INCLUDED = re.compile(r"(?m)^> \[[^\]]*\]\((?P<file>[^)#]+)#(?P<anchor>[^)]+)\)$")


def pages(root: Path = ROOT) -> dict[str, Path]:
    """Return the file of each page by the page's name in the site."""
    found = {name: root / file for file, name in _SINGLE.items()}
    found |= {path.name: path for path in sorted((root / "docs").glob("*.md"))}
    found |= {f"examples/{path.parent.name}.md": path for path in sorted((root / "examples").glob("*/README.md"))}
    found |= {f"measured/{path.name}": path for path in sorted((root / "tools/bench/results").glob("*.md"))}
    return found


def page_text(name: str, known: Mapping[str, Path], root: Path = ROOT) -> str:
    """Return the Markdown of a page: with the sections that it includes, and links to pages of the site.

    Raises:
        ValueError: a link leads nowhere, or an included section is not there.
    """
    path = known[name]
    text = "".join(
        with_links(part, name, file, known, root)
        for file, part in with_sections(path.read_text(encoding="utf-8"), path)
    )
    if name.startswith("examples/") and name != "examples/index.md":
        text += "".join(_code(file) for file in sorted(path.parent.iterdir()) if file.suffix in (".py", ".ipynb"))
    return text


def with_sections(text: str, path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the parts of a text and the file of each: its own, or that of a section that it includes.

    Raises:
        ValueError: there is no such section.
    """
    end = 0
    for found in _INCLUDED.finditer(text):
        yield path, text[end : found.start()]
        other = (path.parent / found["file"]).resolve()
        body = section_of(other.read_text(encoding="utf-8"), found["anchor"])
        if body is None:
            raise ValueError(f"{path}: {other} has no heading #{found['anchor']}")
        yield other, body
        end = found.end()
    yield path, text[end:]


def section_of(text: str, anchor: str) -> str | None:
    """Return what stands under a heading, without it, up to the next one of its level or above; None without it."""
    lines, level, taken = text.splitlines(), 0, []
    fenced = False
    for line in lines:
        fenced ^= line.startswith("```")
        heading = None if fenced else re.fullmatch(r"(#+) (.+)", line)
        if heading and level and len(heading[1]) <= level:
            break
        if level:
            taken.append(line)
        elif heading and slug(heading[2]) == anchor:
            level = len(heading[1])
    return "\n".join(taken).strip() if level else None


def slug(heading: str) -> str:
    """Return the anchor of a heading, as mkdocs and GitHub make it of plain words."""
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def with_links(text: str, name: str, path: Path, known: Mapping[str, Path], root: Path) -> str:
    """Return a text whose relative links lead to pages of the site; what the site has no page of is named instead.

    Raises:
        ValueError: a link leads to a file that is not there.
    """
    by_file = {file.resolve(): page for page, file in known.items()}

    def link(found: re.Match[str]) -> str:
        target, _, anchor = (found["target"] or "").partition("#")
        if found["code"] or "://" in target or not target or target in MADE:
            return found[0]
        file = (path.parent / target).resolve()
        file = file / "README.md" if (file / "README.md").is_file() else file
        if not file.exists():
            raise ValueError(f"{path} links to {target}, which is not there")
        there = by_file.get(file) or (file.name if file.parent == (root / "docs/assets").resolve() else None)
        if there is not None:
            there = posixpath.relpath(there, posixpath.dirname(name) or ".")
            return f"{found['image']}[{found['words']}]({there}{anchor and '#'}{anchor})"
        shown = file.relative_to(root.resolve()).as_posix()
        return found["words"] if shown in found["words"] else f"{found['words']} (`{shown}`)"

    return "".join(_LINK.sub(link, part) if prose else part for prose, part in _parts(text))


def _parts(text: str) -> Iterator[tuple[bool, str]]:
    """Yield the parts of a text, and whether each is prose; the others are blocks of code."""
    end = 0
    for fence in _FENCE.finditer(text):
        yield True, text[end : fence.start()]
        yield False, fence[0]
        end = fence.end()
    yield True, text[end:]


def _code(file: Path) -> str:
    text = file.read_text(encoding="utf-8").rstrip()
    if file.suffix == ".ipynb":
        cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        text = "\n\n".join(cells)
    return f"\n## {file.name}\n\n```python\n{text}\n```\n"


def commands_page() -> str:
    """Return the page of all commands: their own help."""
    from p4q_edge.runtime.cli.known_words import known_commands
    from p4q_edge.runtime.cli.main import build_parser

    parts = ["# Commands\n\nThe help of every command, as `p4q-edge COMMAND --help` shows it.\n"]
    for one in known_commands():
        title = " ".join(one.path)
        parser = build_parser(one.path[0])
        for word in one.path[1:]:
            parser = next(  # type: ignore[assignment]
                action.choices[word] for action in parser._actions if isinstance(action.choices, Mapping)
            )
        about = one.help[:1].upper() + one.help[1:] + "."
        parts.append(f"## {title}\n\n{about}\n\n```text\n{parser.format_help().rstrip()}\n```\n")
    return "\n".join(parts)


def recipe_page() -> str:
    """Return the page of all keys of a recipe, with type, default and meaning."""
    from p4q_edge.recipe.schema import Recipe

    parts = [
        "# Recipe keys\n\nEvery section of a recipe. A key that no section knows is an error that names the nearest "
        "one. How to choose them: [Recipes](recipes.md).\n"
    ]
    for name, kind in (("", Recipe), *fields_of(Recipe).items()):
        if not is_record(kind):
            continue
        what, meanings = words_of(kind)
        rows = [
            f"| `{key}` | {spelled(of).replace('|', '&#124;')} | {_default(kind, key)} | {meanings.get(key, '')} |"
            for key, of in fields_of(kind).items()
            if not is_record(of)
        ]
        title = f"[{name}]" if name else "Above all sections"
        text = what.partition("\n")[0].removeprefix(f"[{name}]: ")
        table = "\n".join(["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows])
        parts.append(f"## {title}\n\n{text[:1].upper()}{text[1:]}\n\n{table}\n")
    return "\n".join(parts)


def _default(record: type, key: str) -> str:
    import msgspec

    field = next(field for field in msgspec.structs.fields(record) if field.encode_name == key)
    if field.default_factory is not msgspec.NODEFAULT:
        return f"`{json.dumps(msgspec.to_builtins(field.default_factory()))}`"
    if field.default is msgspec.NODEFAULT:
        return "none: it must be given"
    return "left out" if field.default is None else f"`{json.dumps(msgspec.to_builtins(field.default))}`"


def results_page(known: Mapping[str, Path]) -> str:
    """Return the list of measurements, with the title of each."""
    names = sorted(name for name in known if name.startswith("measured/"))
    lines = [f"- [{_title(known[name])}]({posixpath.basename(name)})" for name in names]
    return "# All measurements\n\nEach names the command that made it, n, and what it does not show.\n\n" + "\n".join(
        lines
    )


def _title(path: Path) -> str:
    first = next((line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")), "")
    return first.removeprefix("# ") or path.stem
