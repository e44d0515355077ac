"""`p4q-edge reproduce`: repeat a validation from its report and compare every figure."""

import argparse
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from p4q_edge.cli.documents import ComparedFigure, ReproduceDocument
from p4q_edge.runtime.cli import LOADING, Command, Output, parse
from p4q_edge.runtime.errors import CorruptArtifactError, QualityGateError
from p4q_edge.runtime.evaluation import ValidateRequest
from p4q_edge.runtime.evaluation.report import Report, columns, read_report
from p4q_edge.runtime.progress import task
from p4q_edge.runtime.wording import number_of, one_or_many

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReproduceRequest:
    """What `reproduce` was asked for: a report to repeat."""

    report: Path


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("report", type=Path, help="report.json that `p4q-edge validate` wrote")


def _request(args: argparse.Namespace) -> ReproduceRequest:
    return ReproduceRequest(report=args.report)


def request_of(report: Report, *, source: str) -> ValidateRequest:
    """Return what a report was asked for, without what changes no figure.

    Reports of older versions hold the typed words alone.

    Raises:
        CorruptArtifactError: the report names no request of `validate`.
    """
    request, words = report.provenance.request, report.provenance.command
    if request is None and words and words[0] == "validate":
        request = parse(words)[1]
    if request is None:
        raise CorruptArtifactError(f"{source} names no `validate` command to repeat. Write it again: p4q-edge validate")
    return replace(request, debug=False, bench=None, reports=())


def _run(request: ReproduceRequest, output: Output) -> int:
    before, source = read_report(request.report), str(request.report)
    asked = request_of(before, source=source)
    with task(LOADING, total=1):
        from p4q_edge.evaluation import compare_reports, repeat  # needs torch

    figures = compare_reports(before, repeat(before, asked, source=source))
    different = [figure for figure in figures if not figure.same]
    rows = [(f.name, f"{f.before:.6f}", f"{f.now:.6f}", "same" if f.same else "DIFFERS") for f in figures]
    compared = tuple(ComparedFigure(**msgspec.to_builtins(figure), same=figure.same) for figure in figures)
    document = ReproduceDocument(report=str(request.report), same=not different, figures=compared)
    output.write(document=document, text="\n".join(columns(("figure", "then", "now", ""), rows)))
    if not different:
        return 0
    # Not raised: the document was written, and an error would add a second one.
    logger.error(
        "%d of %s of %s %s. Compare versions and machine in the report.",
        len(different),
        number_of(len(figures), "figure"),
        request.report,
        one_or_many(len(different), "differs", "differ"),
    )
    return QualityGateError.exit_code


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
