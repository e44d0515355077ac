"""The report as Markdown tables, for an issue or a terminal."""

import html
from collections.abc import Iterable, Sequence

from p4q_edge.runtime.benchmark import SpeedRow
from p4q_edge.runtime.evaluation.comparison import ChainReport
from p4q_edge.runtime.evaluation.gates import GateResult
from p4q_edge.runtime.evaluation.report import formatting as words
from p4q_edge.runtime.evaluation.report.document import KIND, Baseline, Report
from p4q_edge.runtime.evaluation.report.trial_rows import trial_tables
from p4q_edge.runtime.statistics import Estimate
from p4q_edge.runtime.storage import printable


def render_markdown(report: Report) -> str:
    """Return the page as text."""
    built, precision = report.built, report.built.precision
    parts = [
        f"<!-- {KIND} -->",
        f"# {_plain(report.title)}",
        f"**{'passed' if report.passed else 'failed'}**. {_plain(report.data)}. {report.provenance.created}",
        f"{_plain(built.engine)}: {precision.label}, {precision.parts}, {precision.remainder} remainder, "
        f"{words.megabytes(built.size_bytes)}, {built.backend}.",
    ]
    if report.baselines:
        parts += ["## Methods compared", baseline_table(report.baselines)]
    if report.files:
        parts += ["## Files", "\n".join(gate_lines(report.files))]
    if report.chain is not None:
        parts += ["## Accuracy along the chain", stage_table(report.chain, report.zero_shot), hop_table(report.chain)]
        parts += [gate_list(report.chain)]
    for table in trial_tables(report):
        parts += [f"## {_plain(table.title)}", _table(table.header, table.lines), _plain(table.note)]
    if report.golden is not None:
        parts += [f"## Golden samples (n = {report.golden.n})", hop_table(report.golden), gate_list(report.golden)]
    if report.debug is not None:
        parts += ["## Layers", f"First difference: {report.debug.first or 'none'}."]
    if report.speed:
        parts += ["## Speed", speed_table(report.speed)]
    if report.prompts:
        parts += ["## Prompts", _table(("class", "prompt"), report.prompts.items())]
    if report.not_checked:
        parts += ["## Not checked", "\n".join(f"- {line}" for line in report.not_checked)]
    parts += ["## How to repeat it", "```\np4q-edge " + printable(" ".join(report.provenance.command)) + "\n```"]
    digests = [(name, f"`{digest}`") for name, digest in report.provenance.digests.items()]
    parts += [_table(("digest of", "SHA-256"), digests)]
    return "\n\n".join(part for part in parts if part) + "\n"


def stage_table(chain: ChainReport, zero_shot: Estimate | None = None) -> str:
    """Return one row a stage, after that of hand-written prompts where it is known."""
    rows = [] if zero_shot is None else [words.zero_shot_row(zero_shot)]
    rows += [
        (
            words.stage(stage.name),
            f"{words.percent(stage.top1.value)} {words.interval(stage.top1)}",
            f"{words.percent(stage.top5.value)} {words.interval(stage.top5)}" if stage.top5 else "-",
            f"{words.percent(stage.mean_per_class.value)} {words.interval(stage.mean_per_class)}",
            f"{words.percent(stage.ece.value)} {words.interval(stage.ece)}",
            str(stage.n),
        )
        for stage in chain.stages
    ]
    return _table(("stage", "top-1, 95 %", "top-5", "mean per class", "ECE", "n"), rows)


def hop_table(chain: ChainReport) -> str:
    """Return one row a pair of stages."""
    rows = [
        (
            f"{words.stage(hop.reference)} to {words.stage(hop.candidate)}",
            f"{words.percent(hop.agreement.value)} {words.interval(hop.agreement)}",
            words.points(hop.top1_difference),
            words.p_value(hop.mcnemar.p_value),
            words.cosine(hop.cosine.min),
            words.cosine_interval(hop.cosine.p1),
            words.cosine_interval(hop.cosine.median),
            words.cosine_interval(hop.cosine.mean),
            words.number_interval(hop.kl),
        )
        for hop in chain.hops
    ]
    cosine = ("cosine min", "p1", "median", "mean")
    return _table(("hop", "same answer", "top-1 difference, points", "McNemar", *cosine, "KL, nats"), rows)


def gate_list(chain: ChainReport) -> str:
    """Return one line a gate, and the rule of their limits."""
    return "\n".join([*gate_lines(chain.gates), f"- {chain.rule}"]) if chain.gates else ""


def gate_lines(gates: Sequence[GateResult]) -> list[str]:
    """Return one line a gate."""
    return [f"- {'holds' if gate.passed else '**fails**'}: {words.gate(gate)}" for gate in gates]


def baseline_table(rows: Sequence[Baseline]) -> str:
    """Return one row a method."""
    return _table(
        ("method", "top-1, mean", "95 %", "std", "seeds, %", "n"),
        [
            (
                f"{row.name} ({row.precision})" if row.precision else row.name,
                words.percent(row.mean),
                f"[{100 * row.low:.2f}, {100 * row.high:.2f}]",
                "-" if row.std is None else f"{100 * row.std:.2f}",
                words.seeds(row),
                str(row.n),
            )
            for row in rows
        ],
    )


def speed_table(rows: Sequence[SpeedRow]) -> str:
    """Return one row a measurement; an invalid one says so."""
    return _table(
        ("engine", "library", "scope", "batch", "runs", "p50", "p90", "p99", "first row is faster by", "valid"),
        [
            (
                row.name,
                row.library or "-",
                row.scope,
                str(row.batch),
                str(row.latency.n),
                *(words.milliseconds(value) for value in (row.latency.p50_ms, row.latency.p90_ms, row.latency.p99_ms)),
                words.ratio(row.advantage) if row.advantage else "-",
                "; ".join(row.invalid) if row.invalid else "yes",
            )
            for row in rows
        ],
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    shown = html.escape(" ".join(printable(text, keep="\n\t").split()), quote=False)
    return shown.replace("|", "\\|")
