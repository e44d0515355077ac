"""Change code in small ways, one at a time, and see which changes no test notices.

Each change is made in a copy of its room, which Python finds before the checkout's: nothing here is written to.
Run: python tools/mutate.py p4q_edge/quant --tests tests/toolkit/quant --count 10 --seed 0 --output mutations.json
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 600
"""A change that keeps the tests busy for longer counts as noticed."""
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
}


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One change: the line, what stood there and what stands there now."""

    path: str
    line: int
    before: str
    after: str


def mutations(source: str, *, path: str) -> Iterator[tuple[Mutation, str]]:
    """Yield every change of a module with the changed source; texts and annotations stay as they are."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        changed = _changed(node)
        if changed is None or node.end_lineno != node.lineno:  # type: ignore[attr-defined]
            continue
        before = ast.get_source_segment(source, node) or ""
        after = ast.unparse(changed)
        lines = source.splitlines(keepends=True)
        number, start, end = node.lineno - 1, node.col_offset, node.end_col_offset  # type: ignore[attr-defined]
        line = lines[number].encode()
        lines[number] = (line[:start] + f"({after})".encode() + line[end:]).decode()
        yield Mutation(path=path, line=node.lineno, before=before, after=after), "".join(lines)  # type: ignore[attr-defined]


def _changed(node: ast.AST) -> ast.expr | None:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        return ast.Compare(node.left, [COMPARISONS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    if isinstance(node, ast.BoolOp):
        return ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return node.operand
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return ast.Constant(node.value + 1)
    return None


def choose(room: Path, *, count: int, seed: int) -> list[tuple[Mutation, str]]:
    """Draw changes from all modules of a room."""
    found = []
    for path in sorted(room.rglob("*.py")):
        found += mutations(path.read_text(encoding="utf-8"), path=str(path.relative_to(ROOT)))
    return random.Random(seed).sample(found, min(count, len(found)))


def lives(mutation: Mutation, source: str, room: Path, tests: list[str]) -> bool:
    """Return whether all tests pass although the code is changed."""
    with tempfile.TemporaryDirectory() as name:
        in_runtime = room.is_relative_to(ROOT / "runtime")
        # Python takes a regular package from one folder as a whole: of the runtime, all rooms are copied.
        base = ROOT / "runtime" if in_runtime else ROOT
        package = base / "p4q_edge/runtime" if in_runtime else room
        shutil.copytree(package, Path(name) / package.relative_to(base), ignore=shutil.ignore_patterns("__pycache__"))
        changed = Path(name) / (ROOT / mutation.path).relative_to(base)
        changed.write_text(source, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        environment = {**os.environ, "PYTHONPATH": name, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return False
    if done.returncode not in (0, 1, 2):
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stderr.decode()[-500:]}")
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("room", type=Path, help="folder of a room")
    parser.add_argument("--tests", nargs="+", required=True, help="what should notice")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    room, rows = args.room.resolve(), []
    for mutation, source in choose(room, count=args.count, seed=args.seed):
        row = {**asdict(mutation), "lives": lives(mutation, source, room, args.tests)}
        rows.append(row)
        print(f"{'LIVES' if row['lives'] else 'found'}  {mutation.path}:{mutation.line}  {mutation.before}", flush=True)
        if args.output is not None:
            args.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"{sum(row['lives'] for row in rows)} of {len(rows)} live")
    return 0


if __name__ == "__main__":
    sys.exit(main())
