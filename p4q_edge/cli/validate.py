"""`p4q-edge validate` with PyTorch as the reference."""

import argparse

from p4q_edge.evaluation import ALL_RENDERERS, run_request
from p4q_edge.evaluation.report import require_libraries
from p4q_edge.runtime.cli import Command
from p4q_edge.runtime.cli.commands import validate as device
from p4q_edge.runtime.evaluation import (
    check_report_paths,
    default_report,
    write_reports,
)


def _run(args: argparse.Namespace) -> int:
    paths = tuple(dict.fromkeys((default_report(args.engine), *args.report)))
    check_report_paths(paths, ALL_RENDERERS, force=args.force)
    if any(path.suffix == ".html" for path in paths):
        require_libraries()
    outcome = run_request(device.request_of(args), debug=args.debug)
    write_reports(outcome, paths, ALL_RENDERERS)
    return device.finish(args, outcome.report, paths)


COMMAND = Command(
    name="validate",
    help=device.COMMAND.help,
    add_arguments=device.add_arguments,
    run=_run,
)
