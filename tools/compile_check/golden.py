"""Record what NVIDIA's compiler makes of our graphs: operators in, kernels out, as text.

usage: python tools/compile_check/golden.py [ARCHITECTURE ...]

Rewrites tests/golden/kernels/<architecture>.txt; without names, for those that are there. A name that ends in -w4a16
is of the architecture before it with INT4 weights in blocks of 128, one that ends in -fp8 with linears in FP8, compiled
for compute capability 8.9.
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import onnx

HERE = Path(__file__).resolve().parent
INT4 = "-w4a16"
FP8 = "-fp8"
"""End the names of those with INT4 weights, and of those in FP8."""
GOLDEN = HERE.parents[1] / "tests" / "golden" / "kernels"


def export(architecture: str, folder: Path, *options: str) -> Path:
    """Export random weights of an architecture and return the FP16 graph's path."""
    if architecture.endswith(INT4):
        architecture, options = architecture.removesuffix(INT4), (*options, "--weight-block", "128")
    if architecture.endswith(FP8):
        architecture, options = architecture.removesuffix(FP8), (*options, "--fp8")
    command = [sys.executable, str(HERE / "random_classifier.py"), architecture, str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{architecture} cannot be exported: {done.stderr.strip().splitlines()[-1]}")
    return folder / "fp16.onnx"


def options_for(architecture: str) -> tuple[str, ...]:
    """Return the options of the compile check by the name of what is compiled."""
    return ("--capability", "SM89") if architecture.endswith(FP8) else ()


def compile_listed(model: Path, *options: str) -> dict[str, Any]:
    """Return the compile check's document with its kernel list; exit code 3 raises FileNotFoundError."""
    command = [sys.executable, str(HERE), str(model), "--list", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 3:
        raise FileNotFoundError(done.stderr.strip())
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def describe(model: Path, document: dict[str, Any]) -> str:
    """Return the text that is compared: figures, operators, kernels; equal neighbours are counted."""
    operators = Counter(node.op_type for node in onnx.load(model, load_external_data=False).graph.node)
    lines = [f"kernels {document['kernels']}", f"fused attentions {document['fused_attentions']}"]
    lines += [f"products {kind} {number}" for kind, number in sorted(document["products"].items())]
    lines += ["", "operators"]
    lines += [f"  {number:4} {name}" for name, number in sorted(operators.items())]
    lines += ["", "kernel list"]
    for line, repeats in groupby(document["list"]):
        lines.append(f"  {line}{f' x{number}' if (number := len(list(repeats))) > 1 else ''}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command."""
    names = sys.argv[1:] or sorted(path.stem for path in GOLDEN.glob("*.txt"))
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            model = export(name, Path(folder))
            text = describe(model, compile_listed(model, *options_for(name)))
        GOLDEN.mkdir(parents=True, exist_ok=True)
        (GOLDEN / f"{name}.txt").write_text(text)
        print(f"{name}: {text.splitlines()[0]}")


if __name__ == "__main__":
    main()
