"""The figures of `own_photos.py` as Markdown."""

from __future__ import annotations

from typing import Any

import numpy as np

from p4q_edge.runtime.wording import number_of

COMMANDS = ("build", "selftest", "validate", "classify")


def markdown(document: dict[str, Any]) -> str:
    """Return counts by model, how near the graphs came to their limits, and what was refused."""
    rows = document["rows"]
    lines = [
        f"`{document['command']}`, {number_of(document['threads'], 'thread')} of {document['cpu']}",
        "",
        "| model | sets | classes | shots | " + " | ".join(COMMANDS) + " | all | top-1 (n images) | seconds, median |",
        "|" + "---|" * (len(COMMANDS) + 7),
    ]
    for model in (*dict.fromkeys(row["model"] for row in rows), "all"):
        lines.append(_counts(model, [row for row in rows if model in (row["model"], "all")]))
    lines += [
        "",
        f"Largest loss of cosine of a graph as a share of its limit ({document['noise_factor']:g}^2 times the largest "
        "loss between two arithmetics of the module itself):",
        "",
        "| graph | median | 95 % | largest | n |",
        "|---|---|---|---|---|",
    ]
    for graph in ("fp32", "fp32_unoptimized", "fp16"):
        shares = [row["share_of_limit"][graph] for row in rows if graph in row["share_of_limit"]]
        if shares:
            middle, high, most = np.quantile(shares, (0.5, 0.95, 1.0))
            lines.append(f"| {graph} | {middle:.2f} | {high:.2f} | {most:.2f} | {len(shares)} |")
    losses = [row["noise"]["fp16.noise_worst_loss"] for row in rows if "fp16.noise_worst_loss" in row["noise"]]
    if losses:
        above = sum(loss > 1e-3 for loss in losses)
        lines += [
            "",
            f"The noise of the sound models themselves, in FP16: largest loss of cosine {min(losses):.1e} to "
            f"{max(losses):.1e}; {above} of {len(losses)} are above the constant 1e-3 that was the limit before.",
        ]
    refused = [row for row in rows if not row["passed"]]
    lines += [
        "",
        *(
            f"- set {row['number']} ({row['model']}): {row['codes']} {row['error']} {row['unsound'] or ''}".rstrip()
            for row in refused
        ),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _counts(model: str, rows: list[dict[str, Any]]) -> str:
    done = [str(sum(row["codes"].get(name) == 0 for row in rows)) for name in COMMANDS]
    classes, shots = ([row[key] for row in rows] for key in ("classes", "shots"))
    right, answers = (sum(row[key] for row in rows) for key in ("right", "answers"))
    cells = [
        model,
        str(len(rows)),
        f"{min(classes)} to {max(classes)}",
        f"{min(shots)} to {max(shots)}",
        *done,
        f"{sum(row['passed'] for row in rows)} of {len(rows)}",
        f"{100 * right / max(answers, 1):.1f} % ({answers})",
        f"{np.median([row['seconds'] for row in rows]):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"
