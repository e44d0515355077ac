"""Words beside counts: one image, two images, wherever users read them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from p4q_edge.runtime.wording import number_of, one_or_many


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (number_of(1, "image"), "1 image"),
        (number_of(0, "image"), "0 images"),
        (number_of(2, "image"), "2 images"),
        (number_of(2, "class"), "2 classes"),
        (number_of(3, "branch"), "3 branches"),
        (number_of(3, "epoch"), "3 epochs"),
        (number_of("1", "step"), "1 step"),
        (number_of("1.5", "step"), "1.5 steps"),
        (number_of("1,637", "image"), "1,637 images"),
        (number_of(1, "copy is", "copies are"), "1 copy is"),
        (number_of(4, "copy is", "copies are"), "4 copies are"),
        (one_or_many(1, "has", "have"), "has"),
        (one_or_many(11, "has", "have"), "have"),
    ],
)
def test_words_go_with_their_count(found: str, expected: str) -> None:
    assert found == expected


_NOUNS = (
    "images|photographs|pictures|classes|files|folders|heads|shards|layers|linears|convolutions|attentions|captions|texts|"
    "tags|levers|rules|versions|frames|limits|samples|embeddings|problems|epochs|kernels|threads|seeds|shots"
)
_NUMBER = r"(?:%d|\{\{[^{}]*\}\}|\{(?![A-Z_]+\})[^{}]*\})"
_BESIDE = re.compile(rf"{_NUMBER}(?: more| other| class| labelled)? (?:{_NOUNS})\b")
"""A number and a noun that is written in the plural whatever the number; constants in capitals are never 1."""
_NEVER_ONE = (
    *("{len(problems)} problems were found", "{len(tags)} tags", "{len(labels)} images are"),  # told otherwise if one
    *("at most {MAX_SHARDS} are", "at most {MAX_HEADS} are", "Take fewer images with --limit"),  # above a limit
    *("all %d images are learned", "{count} labelled images, ", "Of {len(rows)} classes"),  # two of a class, or more
    *("ran out of memory with %d images", "{suffix} files ({how})"),
)


def plurals(text: str) -> list[str]:
    """Return each piece of source text that puts a number beside a noun in the plural."""
    return [
        line.strip()
        for line in text.splitlines()
        if _BESIDE.search(line) and not any(known in line for known in _NEVER_ONE)
    ]


def test_the_guard_sees_what_it_guards_against() -> None:
    bad = ['f"{len(found)} images are"', '"%d of %d layers"', "{{ report.n }} images", 'f"{left} class names"']
    good = ['f"at least {MIN_IMAGES} images"', "f\"{number_of(n, 'image')}\"", "{{ n | number_of('image') }}"]
    assert [len(plurals(line)) for line in (*bad, *good)] == [1, 1, 1, 0, 0, 0, 0]


def test_no_text_has_a_number_beside_a_plural_that_it_may_not_have(repository: Path) -> None:
    found = {
        str(path.relative_to(repository)): lines
        for folder in ("p4q_edge", "runtime/p4q_edge", "tools", "examples")
        for path in sorted((repository / folder).rglob("*"))
        if path.parent.name != "bench"  # tables of what was measured, with many of each
        and path.suffix in (".py", ".j2")
        and (lines := plurals(path.read_text(encoding="utf-8")))
    }
    assert found == {}
