"""The count of rooms and arrows that `tools/rooms.py` prints."""

from __future__ import annotations

import re

import pytest
import rooms


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from p4q_edge.runtime.storage import files", {("p4q_edge.quant", "p4q_edge.runtime.storage")}),
        ("from p4q_edge import runtime", set()),
        ("def f():\n    import p4q_edge.runtime.storage", {("p4q_edge.quant", "p4q_edge.runtime.storage")}),
        ("from p4q_edge.quant import affine", set()),
        ("import json", set()),
    ],
)
def test_an_arrow_is_an_import_of_another_room(source: str, expected: set[tuple[str, str]]) -> None:
    modules = {
        "p4q_edge.runtime": "",
        "p4q_edge.runtime.storage": "",
        "p4q_edge.runtime.storage.files": "",
        "p4q_edge.quant": "",
        "p4q_edge.quant.affine": source,
    }
    assert rooms.arrows(modules) == expected


def test_the_rooms_are_those_of_this_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    assert rooms.main() == 0
    lines = capsys.readouterr().out.splitlines()
    named = {line.partition(":")[0] for line in lines[:-1]}
    assert {"p4q_edge.runtime.errors", "p4q_edge.runtime.storage", "p4q_edge.quant", "p4q_edge.cli"} <= named
    figures = [int(word) for word in re.findall(r"\d+", lines[-1])]
    assert figures[0] + figures[5] == len(named)
    assert figures[1] == sum(figures[2:5])
    assert next(line for line in lines if line.startswith("p4q_edge.runtime.errors:")).endswith(" -")
