"""Tables of the accuracy comparison, and what they show; writes the README's from the newest results.

python tools/bench/accuracy_table.py            # write the README's table
python tools/bench/accuracy_table.py --check    # exit 1 when the README shows other figures than the results
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.statistics import wilson_interval
from p4q_edge.runtime.storage import atomic_write
from p4q_edge.runtime.wording import number_of

if TYPE_CHECKING:
    from accuracy_rows import Row

REPOSITORY = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results")
BEGIN = "<!-- accuracy: written by tools/bench/accuracy_table.py -->\n"
END = "<!-- end of accuracy -->\n"
HEADLINE = "<!-- real weights: written by tools/bench/accuracy_table.py -->\n"
END_HEADLINE = "<!-- end of real weights -->\n"
MARGIN = 2.24
"""Points that the paper's W8A8 model is above full precision with learned prompts."""

OURS, ZERO_SHOT = "P4Q", "zero-shot"
PROMPTS, PROMPTS_OUR_SCHEDULE = "learned prompts (CoOp)", "learned prompts, the recipe's schedule"
STRICT = "P4Q, prompts and adapter only"
"""The publication's budget, without the class residuals of the default."""
PUBLISHED = "as-released"
FIGURES = ("top1", "top5", "agreement")
COLUMNS = ("FP32", "W8A8", "W6A6", "W4A8", "W4A4")
HEADINGS = {"cifar100": "CIFAR-100", "digits": "digits", "caltech101": "Caltech-101"}
README_SETS = ("cifar100", "digits")
"""Data sets of the README's table; others stand in their own files."""
REAL_SET = "caltech101"
"""That of the README's short table, whose model has real weights."""

IN_README = {
    ZERO_SHOT: "zero-shot",
    PROMPTS: "learned prompts (CoOp)",
    "ONNX Runtime (min-max)": "PTQ, ONNX Runtime (min-max)",
    "ONNX Runtime (percentile)": "PTQ, ONNX Runtime (percentile)",
    "NNCF": "PTQ, NNCF",
    "Model Optimizer (max)": "PTQ, Model Optimizer",
    "Model Optimizer (SmoothQuant)": "PTQ, Model Optimizer (SmoothQuant)",
    "as-released (image tower)": "P4Q as released, text in float",
    "as-released (both towers)": "P4Q as released",
    "PTQ": "PTQ, P4Q Edge",
    STRICT: "P4Q, P4Q Edge (prompts and adapter only)",
    OURS: "**P4Q, P4Q Edge**",
}
"""Rows of the README's table and what they are called there; the others stand in the results alone."""


IN_HEADLINE = {
    ZERO_SHOT: "zero-shot",
    PROMPTS: "learned prompts (CoOp)",
    PROMPTS_OUR_SCHEDULE: "learned prompts, as many steps as P4Q",
    "PTQ": "PTQ",
    OURS: "**P4Q**",
}
"""Rows of the README's table of the model of real weights."""


def summarize(row: Row, width: str, figures: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """One row of the document from the figures of each seed, or the reason why there are none."""
    found = [figures[f"{row.name}|{width}|{seed}"] for seed in seeds]
    entry: dict[str, Any] = {
        "method": row.name,
        "group": row.group,
        "width": width,
        "execution": row.execution[width],
    }
    if reasons := {figure["missing"] for figure in found if "missing" in figure}:
        return entry | {"missing": "; ".join(sorted(reasons))}
    for name in FIGURES:
        values = [figure[name] for figure in found]
        spread = statistics.stdev(values) if len(values) > 1 else None
        entry[name] = {"seeds": values, "mean": statistics.fmean(values), "std": spread}
    n = found[0]["n"]
    entry["interval"] = wilson_interval(round(entry["top1"]["mean"] * n), n)
    return entry | {"n": n, "agrees_with": found[0]["agrees_with"]}


def top1(document: Mapping[str, Any], method: str, width: str) -> float | None:
    """Mean top-1 of a row in percent, or None where it was not measured."""
    for row in document["rows"]:
        if (row["method"], row["width"]) == (method, width) and "top1" in row:
            return float(100 * row["top1"]["mean"])
    return None


def claims(document: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """What the comparison is to show: the claim, the points by which P4Q leads, and the points that it must exceed."""
    found: list[tuple[str, float, float]] = []

    def lead(over: str, width: str, others: Sequence[tuple[str, str]], needed: float) -> None:
        best = [value for other in others if (value := top1(document, *other)) is not None]
        for method in (OURS, STRICT):
            mine = top1(document, method, width)
            if mine is not None and best:
                found.append((f"{method}, {width}, over {over}", mine - max(best), needed))

    baselines = [(r["method"], r["width"]) for r in document["rows"] if r["group"] != "P4Q Edge"]
    lead("full-precision learned prompts", "W8A8", [(PROMPTS, "FP32"), (PROMPTS_OUR_SCHEDULE, "FP32")], MARGIN)
    lead("the best baseline row", "W8A8", baselines, 0.0)
    lead("full-precision zero-shot", "W4A8", [(ZERO_SHOT, "FP32")], 0.0)
    for width in COLUMNS[1:]:
        same = [key for key in baselines if key[0].startswith(PUBLISHED) and key[1].startswith(width)]
        lead("the published code", width, same, 0.0)
    return found


def markdown(document: Mapping[str, Any]) -> str:
    """The whole comparison of one data set."""
    seeds = ", ".join(map(str, document["seeds"]))
    heading = HEADINGS[document["data"]]
    lines = [
        f"# {heading}: {document['classes']} classes, {number_of(document['shots'], 'shot')}, n = {document['n']}, "
        f"seeds {seeds}",
        "",
        f"Model {document['model']['name']}. Means over seeds with their standard deviation, in percent. Agreement is "
        "with the same classifier with nothing quantized: full-precision zero-shot for PTQ, the same learned head on "
        "the full-precision encoder where something is learned. Executed: on 8-bit kernels; carried: narrower grids on "
        "8-bit kernels; simulated: in floating point.",
        "",
        "| method | width | | top-1 | 95 % | top-5 | agreement |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in document["rows"]:
        start = f"| {row['method']} | {row['width']} | {row['execution']} |"
        if "missing" in row:
            lines.append(f"{start} - | {row['missing']} | - | - |")
            continue
        low, high = (100 * bound for bound in row["interval"])
        top, five, agreement = (_spread(row[name]) for name in FIGURES)
        lines.append(f"{start} {top} | [{low:.2f}, {high:.2f}] | {five} | {agreement} |")
    lines += ["", "| claim | lead, points | needed | |", "| --- | --- | --- | --- |"]
    for claim, margin, needed in claims(document):
        lines.append(f"| {claim} | {margin:+.2f} | {needed:.2f} | {'holds' if margin > needed else '**missed**'} |")
    return "\n".join(lines) + "\n"


def _spread(figure: Mapping[str, Any]) -> str:
    text = f"{100 * figure['mean']:.2f}"
    return text if figure["std"] is None else f"{text} ± {100 * figure['std']:.2f}"


def readme_table(documents: Mapping[str, Mapping[str, Any]]) -> str:
    """The README's part: mean top-1 of the chosen rows on each data set, and where the rest stands."""
    names = [name for name in HEADINGS if name in documents]
    first = documents[names[0]]
    counts = ", ".join(f"{HEADINGS[name]} n = {documents[name]['n']:,}" for name in names)
    links = " and ".join(f"[{HEADINGS[name]}](tools/bench/results/{stem(documents[name])}.md)" for name in names)
    head = ["top-1, %"] + [f"{HEADINGS[name]} {width}" for name in names for width in COLUMNS]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " --: |" * (len(head) - 1)]
    for method, label in IN_README.items():
        values = [top1(documents[name], method, width) for name in names for width in COLUMNS]
        if any(value is not None for value in values):
            lines.append(f"| {label} | " + " | ".join("" if v is None else f"{v:.1f}" for v in values) + " |")
    lines += [
        "",
        f"Mean of {number_of(len(first['seeds']), 'seed')}, {number_of(first['shots'], 'labelled image')} a class; "
        f"{counts}. W8A8 of P4Q Edge is",
        "executed on 8-bit kernels, its narrower widths are carried on them. Deviations, intervals, top-5, agreement",
        f"and every part: {links}.",
    ]
    return "\n".join(lines) + "\n"


def headline(document: Mapping[str, Any]) -> str:
    """The README's short table of the model of real weights; rows and widths that were measured."""
    widths = [width for width in COLUMNS if any(top1(document, method, width) is not None for method in IN_HEADLINE)]
    lines = ["| top-1, % | " + " | ".join(widths) + " |", "| --- |" + " --: |" * len(widths)]
    for method, label in IN_HEADLINE.items():
        values = [top1(document, method, width) for width in widths]
        if any(value is not None for value in values):
            lines.append(f"| {label} | " + " | ".join("" if v is None else f"{v:.1f}" for v in values) + " |")
    seeds = len(document["seeds"])
    lines += [
        "",
        f"{HEADINGS[document['data']]}: {document['classes']} classes, at most "
        f"{number_of(document['shots'], 'photograph')} of each "
        f"to learn from, n = {document['n']:,} others, "
        f"{seeds} seed{'s' if seeds > 1 else ''}, {document['created'][:10]}; intervals and commit: "
        f"[results](tools/bench/results/{stem(document)}.md). "
        f"`{shlex.join(document['command'])}`",
    ]
    return "\n".join(lines) + "\n"


def stem(document: Mapping[str, Any]) -> str:
    """Name of the files of a document, without suffix."""
    return f"accuracy-{document['data']}-{document['created'][:10]}"


def newest(folder: Path, sets: Sequence[str] = README_SETS) -> dict[str, dict[str, Any]]:
    """The newest results of each data set.

    Raises:
        InputError: there are none.
    """
    found = {}
    for name in sets:
        files = sorted(folder.glob(f"accuracy-{name}-*.json"))
        if files:
            found[name] = json.loads(files[-1].read_text(encoding="utf-8"))
    if not found:
        raise InputError(f"{folder} has no accuracy-*.json; python tools/bench/accuracy.py --data DIR writes them")
    return found


def with_table(text: str, table: str, marks: tuple[str, str] = (BEGIN, END)) -> str:
    """The README with its part between two marks replaced.

    Raises:
        InputError: it has no marks.
    """
    first, last = marks
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise InputError(
            f"README.md lacks the marks {first.strip()!r} and {last.strip()!r}; put them where the table goes"
        )
    return before + first + table + last + after


def main(argv: Sequence[str] | None = None) -> int:
    """Write the README's table and the tables beside the results, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    args = parser.parse_args(argv)
    documents, real = newest(RESULTS), newest(RESULTS, (REAL_SET,))[REAL_SET]
    readme = REPOSITORY / "README.md"
    files = {RESULTS / f"{stem(document)}.md": markdown(document) for document in (*documents.values(), real)}
    text = with_table(readme.read_text(encoding="utf-8"), readme_table(documents))
    files[readme] = with_table(text, headline(real), (HEADLINE, END_HEADLINE))
    if args.check:
        return int(any(not path.is_file() or path.read_text("utf-8") != text for path, text in files.items()))
    for path, text in files.items():
        atomic_write(path, text.encode(), force=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
