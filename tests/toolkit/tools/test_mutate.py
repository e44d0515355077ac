"""The changes that `tools/mutate.py` makes."""

from __future__ import annotations

import ast

import pytest
from mutate import mutations


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a < b\n", ["x = (a <= b)\n"]),
        ("x = a + b\n", ["x = (a - b)\n"]),
        ("x = a and b\n", ["x = (a or b)\n"]),
        ("if not a:\n    pass\n", ["if (a):\n    pass\n"]),
        ("x = 'é' == a\n", ["x = ('é' != a)\n"]),
        ("x = 3\n", ["x = (4)\n"]),
        ("x = 'text'\n", []),
    ],
)
def test_one_place_is_changed_at_a_time(source: str, expected: list[str]) -> None:
    found = [changed for _, changed in mutations(source, path="a.py")]
    assert found == expected


def test_every_change_still_parses() -> None:
    source = "def f(a, b):\n    return a[1:] if a >= 2 * b and not b else (a - 1) // 2\n"
    found = list(mutations(source, path="a.py"))
    assert len(found) == 10
    for mutation, changed in found:
        ast.parse(changed)
        assert changed != source
        assert mutation.line == 2
