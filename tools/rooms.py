"""Print the rooms of both distributions and the arrows between them: which room imports which others.

Type-only and lazy imports count as well. Run: python tools/rooms.py
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

GROUND_FLOOR = tuple(f"p4q_edge.runtime.{name}" for name in ("errors", "lazy", "choices", "stage"))
"""Modules below all rooms."""
ROOT = Path(__file__).resolve().parent.parent


def sources(root: Path) -> dict[str, str]:
    """Return the source text of every shipped module by its dotted name."""
    found = {}
    for distribution in (root, root / "runtime"):
        for path in sorted((distribution / "p4q_edge").rglob("*.py")):
            parts = path.relative_to(distribution).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def room_of(module: str) -> str | None:
    """Return the room of a module: `p4q_edge.runtime.images`, `p4q_edge.quant`; None of the packages above.

    `python -m p4q_edge` is a module of the command line, that lies in the namespace itself.
    """
    if module == "p4q_edge.__main__":
        return "p4q_edge.runtime.cli"
    parts = module.split(".")
    depth = 3 if parts[1:2] == ["runtime"] else 2
    return ".".join(parts[:depth]) if len(parts) >= depth else None


def arrows(modules: Mapping[str, str]) -> set[tuple[str, str]]:
    """Return each pair of rooms of which the first imports the second."""
    found = set()
    for importer, source in modules.items():
        here = room_of(importer)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom):
                named = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            else:
                continue
            rooms = {room_of(name) for name in named if name in modules}
            found |= {(here, there) for there in rooms if here and there and here != there}
    return found


def main() -> int:
    modules = sources(ROOT)
    rooms = sorted({room for module in modules if (room := room_of(module))})
    found = arrows(modules)
    for room in rooms:
        targets = sorted(there for here, there in found if here == room)
        print(f"{room}: {', '.join(targets) or '-'}")
    packages = {*rooms}.difference(GROUND_FLOOR)
    between = {pair for pair in found if packages.issuperset(pair)}
    inside = sum(here.startswith("p4q_edge.runtime.") for here, _ in between)
    across = sum(there.startswith("p4q_edge.runtime.") for here, there in between) - inside
    print(
        f"{len(packages)} rooms, {len(between)} arrows: {inside} within the runtime, {across} from the toolkit to it, "
        f"{len(between) - inside - across} within the toolkit; {len(rooms) - len(packages)} modules below all rooms, "
        f"{len(found) - len(between)} arrows to them"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
