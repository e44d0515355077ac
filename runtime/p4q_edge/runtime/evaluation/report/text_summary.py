"""What `validate` prints: the short form of a report, in columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from p4q_edge.runtime.evaluation.comparison import ChainReport
from p4q_edge.runtime.evaluation.report import formatting as words
from p4q_edge.runtime.evaluation.report.document import Baseline, Report
from p4q_edge.runtime.evaluation.report.trial_rows import trial_tables
from p4q_edge.runtime.statistics import FULL_BITS, Estimate
from p4q_edge.runtime.storage import printable
from p4q_edge.runtime.wording import number_of

WORST_CLASSES = 5
CONFUSIONS = 5


def summary(report: Report, paths: Sequence[Path], *, details: bool = False) -> str:
    """Return what one wants to know first: accuracy, the worst classes, confusions, whether the chain holds.

    Args:
        report: what was found.
        paths: what was written.
        details: also a table of all comparisons of stages.
    """
    built, precision = report.built, report.built.precision
    lines = [
        f"{'passed' if report.passed else 'FAILED'}: {printable(report.title)}",
        f"{built.engine}: {precision.label}, {precision.parts}, {precision.remainder} remainder, "
        f"{words.megabytes(built.size_bytes)}; {printable(report.data)}",
    ]
    if report.chain is not None:
        lines += ["", *_stage_lines(report.chain, report.zero_shot), *_mistakes(report.chain)]
    lines += _baseline_lines(report.baselines)
    for table in trial_tables(report, details=details):
        lines += ["", printable(table.title), *columns(table.header, table.lines), table.note]
    lines.append("")
    lines += [f"FAILED {words.gate(gate)}" for gate in report.files if not gate.passed]
    for title, chain in (("chain", report.chain), ("golden samples", report.golden)):
        if chain is not None:
            lines += _chain_lines(chain, title)
    if not details and any(chain is not None and chain.hops for chain in (report.chain, report.golden)):
        lines.append("each step: -v")
    if details:
        for title, chain in (("images", report.chain), ("golden samples", report.golden)):
            lines += [] if chain is None else _hop_lines(chain, title)
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


def _stage_lines(chain: ChainReport, zero_shot: Estimate | None) -> list[str]:
    """Return the accuracy of each stage, after that of hand-written prompts where it is known."""
    rows = []
    if zero_shot is not None:
        few = words.percent(zero_shot.value), words.interval(zero_shot)
        rows.append((words.ZERO_SHOT, *few, "-", "-", "-", str(zero_shot.n)))
    rows += [
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
    return columns(("stage", "top-1", "95 %", "top-5", "per class", "ECE", "n"), rows)


def _mistakes(chain: ChainReport) -> list[str]:
    """Return the worst classes and the most frequent confusions of the last stage, by name."""
    last, names = chain.stages[-1], [printable(name) for name in chain.class_names]
    known = [
        (estimate.value, -estimate.n, name, estimate)
        for name, estimate in zip(names, last.class_accuracy, strict=True)
        if estimate is not None and estimate.value < 1
    ]
    worst = [
        f"{name} {estimate.value:.0%} (n = {estimate.n})" for _, _, name, estimate in sorted(known)[:WORST_CLASSES]
    ]
    pairs = [f"{names[label]} as {names[answer]} {count}" for label, answer, count in last.confused[:CONFUSIONS]]
    if not worst:
        return [f"{words.stage(last.name)} names every image correctly"]
    return [f"worst classes: {', '.join(worst)}", f"most confused: {', '.join(pairs)}"]


def _baseline_lines(rows: Sequence[Baseline]) -> list[str]:
    if not rows:
        return []
    table = [
        (
            f"{row.name} {row.precision}".strip(),
            words.percent(row.mean),
            f"[{100 * row.low:.2f}, {100 * row.high:.2f}]",
            "-" if row.std is None else f"{100 * row.std:.2f}",
            words.seeds(row),
            str(row.n),
        )
        for row in rows
    ]
    return ["", *columns(("method", "top-1", "95 %", "std", "seeds", "n"), table)]


def _chain_lines(chain: ChainReport, title: str) -> list[str]:
    """Return one line about the whole chain, and one for each limit that it breaks."""
    if not chain.hops:
        return []
    ends = {(hop.reference, hop.candidate): hop for hop in chain.hops}
    hop = ends[chain.stages[0].name, chain.stages[-1].name]
    held = f"{sum(gate.passed for gate in chain.gates)} of {number_of(len(chain.gates), 'limit holds', 'limits hold')}"
    line = (
        f"{title}: {' -> '.join(words.stage(stage.name) for stage in chain.stages)}, n = {chain.n}: same answer "
        f"{words.percent(hop.agreement.value)}, least cosine {words.cosine(hop.cosine.min)}, "
        f"{held if chain.gates else 'no limit applies'}"
    )
    failed = [f"FAILED {words.gate(gate)}" for gate in chain.gates if not gate.passed]
    # Those of 8 bits are the usual ones.
    return [line, *failed, *([chain.rule] if chain.bits < FULL_BITS else [])]


def _hop_lines(chain: ChainReport, title: str) -> list[str]:
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
    header = (f"{title}, n = {chain.n}", "same answer", "cosine min", "mean", "KL", "top-1 change, points")
    return ["", *columns(header, steps)]
