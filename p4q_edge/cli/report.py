"""`p4q-edge report`: a report that a device wrote as JSON, as a page or as text, anywhere."""

import argparse
from pathlib import Path

from p4q_edge.evaluation.report import render_html
from p4q_edge.runtime.cli import Command, write_result
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.evaluation.report import read_report, render_markdown
from p4q_edge.runtime.storage import atomic_write

RENDERERS = {".html": render_html, ".md": render_markdown}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("report", type=Path, help="report.json that `p4q-edge validate` wrote")
    parser.add_argument("-o", "--output", type=Path, help="file to write, .html or .md (default: REPORT-stem.html)")


def _run(args: argparse.Namespace) -> int:
    output: Path = args.output or args.report.with_suffix(".html")
    if output.suffix not in RENDERERS:
        raise UsageError(f"-o {output}: expected a file ending in {' or '.join(RENDERERS)}")
    report = read_report(args.report)
    atomic_write(output, RENDERERS[output.suffix](report).encode(), force=args.force)
    write_result(args, document={"report": str(output), "passed": report.passed}, text=str(output))
    return 0


COMMAND = Command(name="report", help="write a report as HTML or Markdown", add_arguments=_add_arguments, run=_run)
