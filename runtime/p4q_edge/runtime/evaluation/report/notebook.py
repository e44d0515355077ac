"""A report as a notebook shows it: accuracy of each stage, the chain in a line, and what else was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from p4q_edge.runtime.evaluation.report import formatting as words
from p4q_edge.runtime.evaluation.report.document import Report
from p4q_edge.runtime.evaluation.report.trial_rows import trial_tables
from p4q_edge.runtime.storage import printable


def shown_report(report: Report) -> str:
    """Return HTML in which every text of the report is escaped."""
    parts = [f"<p><b>{'passed' if report.passed else 'FAILED'}</b> {_text(report.title)}; {_text(report.data)}</p>"]
    if report.chain is not None:
        rows = [] if report.zero_shot is None else [words.zero_shot_row(report.zero_shot)[:3]]
        rows += [
            (words.stage(stage.name), words.share(stage.top1), words.percent(stage.ece.value))
            for stage in report.chain.stages
        ]
        parts.append(_table(("stage", "top-1, 95 %", "ECE"), rows))
    for gates in [report.files, *(chain.gates for chain in (report.chain, report.golden) if chain is not None)]:
        parts += [f"<p><b>FAILED</b> {_text(words.gate(gate))}</p>" for gate in gates if not gate.passed]
    for table in trial_tables(report):
        parts += [f"<p>{_text(table.title)}</p>", _table(table.header, table.lines), f"<p>{_text(table.note)}</p>"]
    parts += [f"<p>not checked: {_text(line)}</p>" for line in report.not_checked]
    return "".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(text: str) -> str:
    return escape(printable(text))
