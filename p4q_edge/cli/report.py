"""`p4q-edge report`: a report that a device wrote as JSON, as a page or as text, anywhere."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from p4q_edge.cli.documents import ReportDocument
from p4q_edge.evaluation.report import render_html
from p4q_edge.runtime.cli import Command, Output
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.evaluation.report import read_report, render_markdown
from p4q_edge.runtime.storage import atomic_write

RENDERERS = {".html": render_html, ".md": render_markdown}


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """What `report` was asked for: a report, and the file to write; None is `.html` beside it."""

    report: Path
    page: Path | None = None


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("report", type=Path, help="report.json that `p4q-edge validate` wrote")
    parser.add_argument("-o", "--output", type=Path, help="file to write, .html or .md (default: REPORT-stem.html)")


def _request(args: argparse.Namespace) -> ReportRequest:
    return ReportRequest(report=args.report, page=args.output)


def _run(request: ReportRequest, output: Output) -> int:
    page = request.page or request.report.with_suffix(".html")
    if page.suffix not in RENDERERS:
        raise UsageError(f"-o {page}: expected a file ending in {' or '.join(RENDERERS)}")
    report = read_report(request.report)
    atomic_write(page, RENDERERS[page.suffix](report).encode(), force=output.force)
    output.write(document=ReportDocument(report=str(page), passed=report.passed), text=str(page))
    return 0


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
