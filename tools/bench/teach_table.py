"""The table of ``teach.py``."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from p4q_edge.runtime.wording import number_of

METHODS = ("zero-shot", "nearest mean", "taught", "taught, names unknown", "P4Q")
AIM = 2.0
"""Points that a taught head may stay below P4Q, from 4 shots on."""


def markdown(document: Mapping[str, Any]) -> str:
    """Return the document as Markdown."""
    lines = ["# Taught on the device", ""]
    rows: list[Mapping[str, Any]] = document["rows"]
    for data in dict.fromkeys(row["data"] for row in rows):
        lines += _accuracy([row for row in rows if row["data"] == data], data)
    lines += _cost(document["cost"])
    return "\n".join(lines) + "\n"


def _accuracy(rows: Sequence[Mapping[str, Any]], data: str) -> list[str]:
    methods = [method for method in METHODS if any(method in row["top1"] for row in rows)]
    seeds = sorted({row["seed"] for row in rows})
    sizes = ", ".join(str(size) for size in sorted({row["n"] for row in rows}))
    lines = [
        f"## {data}: {rows[0]['classes']} classes, n = {sizes} test images, seeds {', '.join(map(str, seeds))}, W8A8",
        "",
        "Means over seeds with their standard deviation, top-1 in percent; the last column in points.",
        "",
        f"| shots | {' | '.join(methods)} | taught - P4Q |",
        "| --- |" + " --- |" * (len(methods) + 1),
    ]
    for shots in sorted({row["shots"] for row in rows}):
        own = [row["top1"] for row in rows if row["shots"] == shots]
        cells = [_cell([top1[method] for top1 in own if method in top1]) for method in methods]
        leads = [100 * (top1["taught"] - top1["P4Q"]) for top1 in own if "P4Q" in top1]
        lead = statistics.mean(leads) if leads else None
        note = "-" if lead is None else f"{lead:+.1f}"
        note += " (below the aim)" if lead is not None and shots >= 4 and lead < -AIM else ""
        lines.append(f"| {shots} | {' | '.join(cells)} | {note} |")
    added = [row for row in rows if "added" in row]
    if added:
        keys = list(added[0]["added"])
        lines += ["", "One class added to a head taught of the others, from its own photographs alone:", ""]
        lines += [f"| shots | {' | '.join(keys)} |", "| --- |" + " --- |" * len(keys)]
        for shots in sorted({row["shots"] for row in added}):
            own = [row["added"] for row in added if row["shots"] == shots]
            cells = [_cell([row[key] for row in own]) for key in keys[:-1]]
            lines.append(f"| {shots} | {' | '.join(cells)} | {max(row[keys[-1]] for row in own):.1e} |")
    return [*lines, ""]


def _cost(cost: Mapping[str, Any]) -> list[str]:
    middle = statistics.median(cost["cpu_seconds"])
    return [
        f"Beyond encoding, {cost['classes']} classes x {number_of(cost['shots'], 'photograph')} of {cost['dim']} "
        "numbers: "
        f"{middle:.2f} s of CPU time (median of {cost['runs']}, one thread), "
        f"{statistics.median(cost['wall_seconds']):.2f} s on the clock, {cost['peak_mib']:.1f} MiB of memory at most.",
    ]


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {100 * statistics.pstdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"
