"""The exported toy as text: every node in order, and where each reads its quantized input."""

import difflib
import os
from pathlib import Path

import onnx
import pytest


def outline(model: onnx.ModelProto) -> str:
    """One line a node: its name, which tells module and operator, and the nodes it reads."""
    makers = {output: node.name for node in model.graph.node for output in node.output}
    lines = []
    for node in model.graph.node:
        sources = [makers.get(name, "*" if name != "image" else name) for name in node.input]
        lines.append(f"{node.name} <- {', '.join(dict.fromkeys(sources))}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("remainder", ["fp16", "fp32"])
def test_nodes_are_the_recorded_ones(request: pytest.FixtureRequest, repository: Path, remainder: str) -> None:
    path = repository / "tests" / "golden" / "graphs" / f"toy.{remainder}.txt"
    found = outline(request.getfixturevalue(f"{remainder}_model"))
    if os.environ.get("P4Q_REWRITE_GOLDEN"):
        path.write_text(found)
    recorded = path.read_text()
    difference = "\n".join(difflib.unified_diff(recorded.splitlines(), found.splitlines(), "recorded", "found", n=1))
    assert found == recorded, f"the graph changed; P4Q_REWRITE_GOLDEN=1 pytest {__file__} rewrites it\n{difference}"
