"""`p4q-edge models`: the models of open_clip, and what this project can do with each."""

import argparse
from dataclasses import asdict

from p4q_edge.models import _BYTES_OF_FLOAT, MAX_COUNTED, list_models
from p4q_edge.runtime.cli import Command, write_result
from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.evaluation.report import columns


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--search", default="", metavar="TEXT", help="only names or tags that contain this")
    parser.add_argument(
        "--sizes",
        action="store_true",
        default=None,
        help=f"count parameters of more than {MAX_COUNTED} models too (takes a minute)",
    )


def _run(args: argparse.Namespace) -> int:
    rows = list_models(args.search, count=args.sizes)
    if not rows:
        raise InputError(f"no open_clip model or tag contains {args.search!r}. Run: p4q-edge models")
    table = [
        (
            row.name,
            row.family,
            str(row.input),
            str(row.dim),
            "-" if row.image_parameters is None else f"{row.image_parameters / 1e6:.1f}",
            "-" if row.image_parameters is None else f"{row.image_parameters * _BYTES_OF_FLOAT / 1e6:.0f}",
            row.int8,
            "yes" if row.prompts else "no",
            ", ".join(row.tags) or "-",
        )
        for row in rows
    ]
    header = ("model", "family", "input", "dim", "image M", "FP32 MB", "INT8", "prompts", "weights")
    write_result(args, document={"models": [asdict(row) for row in rows]}, text="\n".join(columns(header, table)))
    return 0


COMMAND = Command(
    name="models", help="list the open_clip models that can be used", add_arguments=_add_arguments, run=_run
)
