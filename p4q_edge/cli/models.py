"""`p4q-edge models`: the models of open_clip, and what this project can do with each."""

import argparse
import textwrap
from dataclasses import dataclass

from p4q_edge.cli.documents import ModelsDocument
from p4q_edge.models import _BYTES_OF_FLOAT, MAX_COUNTED, list_models
from p4q_edge.runtime.cli import Command, Output
from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.evaluation.report import columns

WIDTH = 100
"""Columns of the list at most."""
_SHORT = {"all linears": "linears", "linears and convolutions": "linears, convs"}


@dataclass(frozen=True, kw_only=True)
class ModelsRequest:
    """What `models` was asked for: a part of a name, and whether the parameters of many models are counted."""

    search: str = ""
    sizes: bool | None = None


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--search", default="", metavar="TEXT", help="only names or tags that contain this")
    parser.add_argument(
        "--sizes",
        action="store_true",
        default=None,
        help=f"count parameters of more than {MAX_COUNTED} models too (takes a minute)",
    )


def _request(args: argparse.Namespace) -> ModelsRequest:
    return ModelsRequest(search=args.search, sizes=args.sizes)


def _run(request: ModelsRequest, output: Output) -> int:
    rows = list_models(request.search, count=request.sizes)
    if not rows:
        raise InputError(f"no open_clip model or tag contains {request.search!r}. Run: p4q-edge models")
    table = [
        (
            row.name,
            row.family,
            str(row.input),
            str(row.dim),
            "-" if row.image_parameters is None else f"{row.image_parameters / 1e6:.1f}",
            "-" if row.image_parameters is None else f"{row.image_parameters * _BYTES_OF_FLOAT / 1e6:.0f}",
            _SHORT.get(row.int8, row.int8),
            "yes" if row.prompts else "no",
        )
        for row in rows
    ]
    header, *lines = columns(("model", "family", "input", "dim", "image M", "FP32 MB", "INT8", "prompts"), table)
    text = [header]
    for line, row in zip(lines, rows, strict=True):
        tags = textwrap.wrap(", ".join(row.tags), WIDTH, initial_indent="    ", subsequent_indent="    ")
        text += [line, *tags]
    text.append("indented: the weights (model.pretrained) of the model above them")
    output.write(document=ModelsDocument(models=rows), text="\n".join(text))
    return 0


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
