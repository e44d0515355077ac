"""Tables of the comparison of parts.

python tools/bench/parts_table.py build/parts/document.json tools/bench/results   # writes both files again
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from parts_rows import DEFAULT, MOVED, ROWS
from parts_scene import CORRUPTIONS, PAPER

from p4q_edge.runtime.statistics import Estimate, metrics
from p4q_edge.runtime.storage import atomic_write
from p4q_edge.runtime.wording import number_of

HEADINGS = {"digits": "digits", "cifar100": "CIFAR-100", "caltech101": "Caltech-101"}
WIDTHS = ("FP32", "W8A8", "W4A8", "W4A4", *PAPER)
ASKED_OF = {"cross-validated": "labelled", "held-out": "held out"}
"""Which images a kind of figures is about, where it is not those that are tested on."""
SEEDS = 3
"""Of a cell that was measured whole."""
PARTS: tuple[tuple[str, str, str], ...] = (
    ("prompts", DEFAULT, "adapter and residual"),
    ("adapter", DEFAULT, "prompts and residual"),
    ("class residual", DEFAULT, "P4Q strict (prompts and adapter)"),
    ("zero-shot teacher", "P4Q, zero-shot teacher", DEFAULT),
    ("learned teacher", "P4Q, learned teacher", DEFAULT),
    ("learned teacher, unlabelled images", "P4Q, learned teacher, unlabelled images", DEFAULT),
    ("prompts alone first, strict", "strict, prompts alone first", "P4Q strict (prompts and adapter)"),
    ("anchor, strict", "strict, anchored", "P4Q strict (prompts and adapter)"),
    ("anchor", "P4Q, anchored", DEFAULT),
    ("prompts alone first", "P4Q, prompts alone first", DEFAULT),
)
"""What brings how much: its name, the row with it and the row without."""


@dataclass(frozen=True)
class Answers:
    """Which images are named rightly, by data set, row and width, over seeds."""

    figures: Mapping[str, Mapping[str, Any]]

    def sets(self) -> list[str]:
        """Data sets with figures."""
        return [name for name in HEADINGS if any(f"names|FP32|{name}|" in figure for figure in self.figures)]

    def widths(self) -> list[str]:
        """Widths with figures, and those that every table has."""
        known = {figure.split("|")[2] for figure in self.figures if not figure.startswith("names|")}
        return [width for width in WIDTHS if width in known or width not in PAPER]

    def seeds(self, kind: str, row: str, width: str, name: str) -> list[str]:
        """Seeds that a cell was measured under."""
        start = f"{kind}|{row}|{width}|{name}|"
        return sorted(figure.removeprefix(start) for figure in self.figures if figure.startswith(start))

    def right(self, kind: str, part: str, row: str, width: str, name: str, seed: str) -> np.ndarray:
        """0 or 1 for each image."""
        text = self.figures[f"{kind}|{row}|{width}|{name}|{seed}"]["right"][part]
        return np.frombuffer(text.encode(), np.uint8) - ord("0")

    def share(self, kind: str, part: str, row: str, width: str, name: str) -> float | None:
        """Of right answers in percent, the mean over seeds; None where none was measured."""
        found = [
            self.right(kind, part, row, width, name, seed)
            for seed in self.seeds(kind, row, width, name)
            if part in self.figures[f"{kind}|{row}|{width}|{name}|{seed}"]["right"]
        ]
        return float(100 * np.mean([values.mean() for values in found])) if found else None

    def other(self, kind: str, part: str, row: str, width: str, name: str) -> float | None:
        """A figure that is no share of images, the mean over seeds; None where none was measured."""
        every = [self.figures[f"{kind}|{row}|{width}|{name}|{seed}"] for seed in self.seeds(kind, row, width, name)]
        found = [figure["others"][part] for figure in every if part in figure.get("others", {})]
        return float(np.mean(found)) if found else None

    def summary(self) -> list[dict[str, Any]]:
        """Shares of right answers of every cell by seed, and the gain over the default on the same images."""
        found: dict[tuple[str, str, str, str, str], dict[str, float]] = {}
        for figure, value in self.figures.items():
            kind, row, width, *place = figure.split("|")
            for part, text in value.get("right", {}).items():
                share = round(100 * text.count("1") / max(len(text), 1), 3)
                found.setdefault((kind, part, row, width, place[0]), {})[place[1]] = share
        rows = []
        for (kind, part, row, width, name), seeds in sorted(found.items()):
            entry: dict[str, Any] = {"kind": kind, "part": part, "row": row, "width": width, "data": name}
            entry["top1"] = seeds
            if part in ("clean", "cross-validated", "held out") and row != DEFAULT:
                gain = self.gain(kind, part, (row, DEFAULT), (width, width), name)
                if gain is not None:
                    entry["over_default"] = [round(value, 3) for value in (gain[0].value, gain[0].low, gain[0].high)]
                    entry["n"] = gain[0].n
            rows.append(entry)
        return rows

    def gain(
        self, kind: str, part: str, rows: tuple[str, str], widths: tuple[str, str], name: str
    ) -> tuple[Estimate, int] | None:
        """Points by which the first row is above the second on the same images, and of how many seeds.

        An image that several seeds ask about counts once, with its mean difference.
        """
        every = [set(self.seeds(kind, row, width, name)) for row, width in zip(rows, widths, strict=True)]
        seeds = sorted(every[0] & every[1])
        if not seeds:
            return None
        differences: dict[str, list[float]] = {}
        group = ASKED_OF.get(kind, "tested")
        for seed in seeds:
            first, second = (
                self.right(kind, part, row, width, name, seed).astype(float)
                for row, width in zip(rows, widths, strict=True)
            )
            names = self.figures[f"names|FP32|{name}|{seed}"][group]
            for image, difference in zip(names, first - second, strict=False):
                differences.setdefault(image, []).append(100 * difference)
        means = np.array([np.mean(values) for values in differences.values()])
        return metrics.paired_difference(np.zeros_like(means), means, generator=np.random.default_rng(0)), len(seeds)


def points(found: tuple[Estimate, int] | None) -> str:
    """A gain with its interval; in bold where that excludes nought."""
    if found is None:
        return "-"
    gain, _ = found
    text = f"{gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
    return f"**{text}**" if gain.low > 0 or gain.high < 0 else text


def told(cell: float | None, gain: tuple[Estimate, int] | None, seeds: int) -> str:
    """A share with its gain over the default, and of how many seeds where they are fewer than usual."""
    if cell is None:
        return "-"
    of_seeds = "" if seeds >= SEEDS else f", {seeds} seed{'s' if seeds > 1 else ''}"
    inner = "" if gain is None else points(gain)
    detail = (inner + of_seeds).removeprefix(", ")
    return f"{cell:.2f} ({detail})" if detail else f"{cell:.2f}"


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    """A table of Markdown."""
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " --: |" * (len(head) - 1)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def shares(answers: Answers, kind: str, part: str, name: str) -> list[str]:
    """All rows of a data set: mean top-1, and the gain over the default at the same width."""
    widths = answers.widths()

    def rows() -> Iterator[Sequence[str]]:
        for row in ROWS:
            cells = [answers.share(kind, part, row.name, width, name) for width in widths]
            gains = [answers.gain(kind, part, (row.name, DEFAULT), (width, width), name) for width in widths]
            if any(cell is not None for cell in cells):
                yield (
                    row.name,
                    *(
                        told(
                            cell, gain if row.name != DEFAULT else None, len(answers.seeds(kind, row.name, width, name))
                        )
                        for cell, gain, width in zip(cells, gains, widths, strict=True)
                    ),
                )

    return table(["top-1, %", *widths], rows())


def brought(answers: Answers, kind: str, part: str) -> list[str]:
    """What each part brings on every data set and width."""
    columns = [(name, width) for name in answers.sets() for width in answers.widths()]

    def rows() -> Iterator[Sequence[str]]:
        for label, with_it, without in PARTS:
            found = [answers.gain(kind, part, (with_it, without), (width, width), name) for name, width in columns]
            if any(found):
                yield label, *map(points, found)

    return table(["points"] + [f"{HEADINGS[name]} {width}" for name, width in columns], rows())


def recovered(answers: Answers, name: str) -> list[str]:
    """What the head of full precision loses at a width, and what learning at that width gains back."""

    def rows() -> Iterator[Sequence[str]]:
        for width in WIDTHS[1:]:
            loss = answers.gain("tested", "clean", (MOVED, DEFAULT), (width, WIDTHS[0]), name)
            back = answers.gain("tested", "clean", (DEFAULT, MOVED), (width, width), name)
            if loss is None or back is None:
                continue
            clear = loss[0].high < 0
            share = f"{-100 * back[0].value / loss[0].value:.0f} %" if clear else "no loss that the images show"
            yield width, points(loss), points(back), share

    return table(
        ["width", "the head of FP32 at this width, against FP32", "learned at this width", "recovered"], rows()
    )


def new_classes(answers: Answers, name: str) -> list[str]:
    """Half of the classes learned: among themselves, and among all."""
    parts = ("base", "new", "base among all", "new among all")

    def rows() -> Iterator[Sequence[str]]:
        for row in ROWS:
            for width in WIDTHS:
                found = [answers.share("base-to-new", part, row.name, width, name) for part in parts]
                if found[0] is not None and found[1] is not None:
                    mean = 2 * found[0] * found[1] / max(found[0] + found[1], 1e-9)
                    yield row.name, width, *(f"{value:.2f}" for value in (*found[:2], mean, *found[2:]))

    return table(["row", "width", "base", "new", "harmonic mean", *parts[2:]], rows())


def unknown_classes(answers: Answers, name: str) -> list[str]:
    """Half of the classes learned and asked about: whether images of the others are told by their scores."""

    def rows() -> Iterator[Sequence[str]]:
        for row in ROWS:
            found = [answers.other("base-to-new", "AUROC", row.name, width, name) for width in answers.widths()]
            if any(value is not None for value in found):
                yield row.name, *("-" if value is None else f"{value:.3f}" for value in found)

    return table(["AUROC", *answers.widths()], rows())


def corruptions(answers: Answers, name: str) -> list[str]:
    """The first tested images as a worse camera takes them."""
    chosen = ("zero-shot", "prompts (CoOp)", DEFAULT, "P4Q, learned teacher, unlabelled images")

    def rows() -> Iterator[Sequence[str]]:
        for row in chosen:
            for width in WIDTHS:
                found = [answers.share("tested", part, row, width, name) for part in CORRUPTIONS]
                if all(value is not None for value in found):
                    yield row, width, *(f"{value:.2f}" for value in found)

    return table(["row", "width", *CORRUPTIONS], rows())


def markdown(document: Mapping[str, Any]) -> str:
    """The whole comparison."""
    answers = Answers(document["figures"])
    lines = [
        "# What each part of P4Q brings",
        "",
        "Means over seeds, in percent. In brackets the points above P4Q's default at the same width, and in tables of "
        "gains the points of a row with a part above that without, both on the same images with a paired bootstrap "
        "interval of 95 % over images; bold where it excludes 0. Defaults are chosen by the cross-validated figures: "
        "4 folds of the labelled images, on an encoder calibrated on all of them without their labels; where these are "
        "too few, by images that are held out. What was "
        "not measured is '-'; cells of fewer than 3 seeds say so.",
        "",
        f"{document['created'][:10]}, commit {document['commit']}: `{shlex.join(document['command'])}`. "
        f"{document.get('note', '')}".rstrip(),
        "",
    ]
    for kind, part in (("cross-validated", "cross-validated"), ("held-out", "held out"), ("tested", "clean")):
        found = brought(answers, kind, part)
        lines += [f"## What each part brings, {kind}", "", *found] if len(found) > 3 else []
    each: tuple[tuple[str, Callable[[str], list[str]]], ...] = (
        ("cross-validated", lambda name: shares(answers, "cross-validated", "cross-validated", name)),
        ("held out", lambda name: shares(answers, "held-out", "held out", name)),
        ("tested", lambda name: shares(answers, "tested", "clean", name)),
        ("loss by quantization and what is recovered, tested", lambda name: recovered(answers, name)),
        ("half of the classes learned", lambda name: new_classes(answers, name)),
        (
            "half of the classes learned, images of the others told by their scores",
            lambda name: unknown_classes(answers, name),
        ),
        ("corrupted images", lambda name: corruptions(answers, name)),
    )
    for name in answers.sets():
        lines += [f"## {HEADINGS[name]}", "", counts(answers, name), ""]
        for label, make in each:
            rows = make(name)
            lines += [f"### {HEADINGS[name]}: {label}", "", *rows] if len(rows) > 3 else []
    return "\n".join(lines).rstrip() + "\n"


def counts(answers: Answers, name: str) -> str:
    """How many images a data set's figures are about."""
    every = [answers.figures[key] for key in answers.figures if key.startswith(f"names|FP32|{name}|")]
    tested, labelled, held_out = (
        [len(figure.get(part, ())) for figure in every] for part in ("tested", "labelled", "held out")
    )
    kept = f"{min(held_out)} held out of both, " if any(held_out) else ""
    return (
        f"{every[0]['classes']} classes, {number_of(len(every), 'seed')}, {min(labelled)} labelled images (n of "
        f"cross-validation), {kept}"
        f"n = {min(tested)} tested images for each seed."
    )


def write(document: Mapping[str, Any], folder: Path) -> Path:
    """Write the tables of a run, and beside them its shares and gains without the single answers; return the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"parts-{document.get('name', '')}{document['created'][:10]}.md"
    figures = document["figures"]
    short = {name: value for name, value in document.items() if name != "figures"}
    short["images"] = {
        name: {part: len(value[part]) for part in ("labelled", "tested")}
        for name, value in figures.items()
        if name.startswith("names|FP32|")
    }
    short["cells"] = Answers(figures).summary()
    atomic_write(target.with_suffix(".json"), json.dumps(short, indent=1).encode() + b"\n", force=True)
    atomic_write(target, markdown(document).encode(), force=True)
    return target


def main() -> int:
    """Write the tables of a run's document again."""
    document, folder = Path(sys.argv[1]), Path(sys.argv[2])
    write(json.loads(document.read_text(encoding="utf-8")), folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
