"""What `validate` prints: the short form of a report, in columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from p4q_edge.runtime.evaluation.comparison import ChainReport
from p4q_edge.runtime.evaluation.report import formatting as words
from p4q_edge.runtime.evaluation.report.document import Report
from p4q_edge.runtime.statistics import FULL_BITS


def summary(report: Report, paths: Sequence[Path]) -> str:
    """Return a few tables and the paths of what was written."""
    built, precision = report.built, report.built.precision
    lines = [
        f"{'passed' if report.passed else 'FAILED'}: {report.title}",
        f"{built.engine}: {precision.label}, {precision.parts}, {precision.remainder} remainder, "
        f"{words.megabytes(built.size_bytes)}; {report.data}",
    ]
    if report.baselines:
        header = ("method", "top-1", "95 %", "std", "seeds", "n")
        rows = [
            (
                f"{row.name} {row.precision}".strip(),
                words.percent(row.mean),
                f"[{100 * row.low:.2f}, {100 * row.high:.2f}]",
                "-" if row.std is None else f"{100 * row.std:.2f}",
                words.seeds(row),
                str(row.n),
            )
            for row in report.baselines
        ]
        lines += ["", *columns(header, rows)]
    lines += [f"FAILED {words.gate(gate)}" for gate in report.files if not gate.passed]
    for title, chain in (("", report.chain), ("golden samples", report.golden)):
        if chain is not None:
            lines += _chain_lines(chain, title)
    if report.debug is not None:
        lines += ["", f"first layer that diverges from {report.debug.reference}: {report.debug.first or 'none'}"]
        if report.debug.keep_float:
            lines.append(f"keep in FP16: p4q-edge build --force --keep-float {','.join(report.debug.keep_float)} ...")
    lines += ["", *(f"not checked: {line}" for line in report.not_checked)]
    lines += [f"report: {path}" for path in paths]
    return "\n".join(lines)


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned lines; the first column is aligned to the left."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(cells)).rstrip()
        for cells in (list(zip(row, widths, strict=True)) for row in (header, *rows))
    ]


def _chain_lines(chain: ChainReport, title: str) -> list[str]:
    lines = [""]
    if title:
        lines.append(f"{title}, n = {chain.n}")
    else:
        rows = [
            (
                words.stage(stage.name),
                words.percent(stage.top1.value),
                words.interval(stage.top1),
                words.percent(stage.top5.value) if stage.top5 else "-",
                words.percent(stage.mean_per_class.value),
                words.percent(stage.ece.value),
                str(stage.n),
            )
            for stage in chain.stages
        ]
        lines += columns(("stage", "top-1", "95 %", "top-5", "per class", "ECE", "n"), rows)
    steps = [
        (
            f"{words.stage(hop.reference)} -> {words.stage(hop.candidate)}",
            words.percent(hop.agreement.value),
            words.cosine(hop.cosine.min),
            words.cosine(hop.cosine.mean.value),
            words.number(hop.kl.value),
            words.points(hop.top1_difference),
        )
        for hop in chain.hops
    ]
    header = ("hop", "same answer", "cosine min", "mean", "KL", "top-1 change, points")
    failed = [f"FAILED {words.gate(gate)}" for gate in chain.gates if not gate.passed]
    # Those of 8 bits are the usual ones.
    return [*lines, *columns(header, steps), *failed, *([chain.rule] if chain.bits < FULL_BITS else [])]
