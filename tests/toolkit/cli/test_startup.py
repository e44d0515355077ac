"""Help and wrong arguments of the toolkit's subcommands are told before its large libraries are loaded."""

import subprocess
import sys

from p4q_edge.runtime.cli.registry import TOOLKIT_HELP

HEAVY = ("torch", "torchvision", "open_clip", "transformers", "onnx", "scipy")
CODE = """
import sys
from p4q_edge.runtime.cli.main import build_parser
for name in {names!r}:
    build_parser(name)
    print(name, *sorted(set(sys.modules) & set({heavy!r})))
"""


def test_parsing_needs_no_large_library() -> None:
    code = CODE.format(names=tuple(TOOLKIT_HELP), heavy=HEAVY)
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.split() == list(TOOLKIT_HELP)
