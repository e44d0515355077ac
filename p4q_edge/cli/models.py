"""`p4q-edge models`: the models of open_clip, and what this project can do with each."""

import argparse
from dataclasses import asdict, dataclass

from p4q_edge.models import _BYTES_OF_FLOAT, MAX_COUNTED, list_models
from p4q_edge.runtime.cli import Command, Output
from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.evaluation.report import columns


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
            row.int8,
            "yes" if row.prompts else "no",
            ", ".join(row.tags) or "-",
        )
        for row in rows
    ]
    header = ("model", "family", "input", "dim", "image M", "FP32 MB", "INT8", "prompts", "weights")
    output.write(document={"models": [asdict(row) for row in rows]}, text="\n".join(columns(header, table)))
    return 0


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
