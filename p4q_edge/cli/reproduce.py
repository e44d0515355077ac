"""`p4q-edge reproduce`: repeat a validation from its report and compare every figure."""

import argparse
import logging
from pathlib import Path

import msgspec

from p4q_edge.evaluation import compare, repeat
from p4q_edge.runtime.cli import Command, write_result
from p4q_edge.runtime.errors import QualityGateError
from p4q_edge.runtime.evaluation.report import columns, read_report

logger = logging.getLogger(__name__)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("report", type=Path, help="report.json that `p4q-edge validate` wrote")


def _run(args: argparse.Namespace) -> int:
    before = read_report(args.report)
    figures = compare(before, repeat(before, source=str(args.report)))
    different = [figure for figure in figures if not figure.same]
    rows = [(f.name, f"{f.before:.6f}", f"{f.now:.6f}", "same" if f.same else "DIFFERS") for f in figures]
    document = {
        "report": str(args.report),
        "same": not different,
        "figures": [{**msgspec.to_builtins(figure), "same": figure.same} for figure in figures],
    }
    write_result(args, document=document, text="\n".join(columns(("figure", "then", "now", ""), rows)))
    if not different:
        return 0
    # Not raised: the document was written, and an error would add a second one.
    logger.error(
        "%d of %d figures of %s differ. Compare versions and machine in the report.",
        len(different),
        len(figures),
        args.report,
    )
    return QualityGateError.exit_code


COMMAND = Command(
    name="reproduce",
    help="repeat a validation from its report and compare",
    add_arguments=_add_arguments,
    run=_run,
)
