"""`p4q-edge export-triton`: an engine as a model repository of Triton Inference Server."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from p4q_edge.runtime.cli.command import Command, Output

if TYPE_CHECKING:
    from p4q_edge.runtime.serving import ServedBy


@dataclass(frozen=True, kw_only=True)
class ExportTritonRequest:
    """What `export-triton` was asked for."""

    engine: Path
    repository: Path
    name: str
    served_by: ServedBy = "native"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine (.plan or .onnx) with its card beside it")
    parser.add_argument("repository", type=Path, help="folder of the model repository")
    parser.add_argument("--name", default="p4q", help="name of the model that clients ask (default: %(default)s)")
    parser.add_argument(
        "--served-by",
        choices=("native", "python"),
        default="native",
        help="native: Triton's backend for TensorRT or ONNX Runtime; python: this runtime in Triton's Python backend, "
        "with the checks of the card (default: %(default)s)",
    )


def _request(args: argparse.Namespace) -> ExportTritonRequest:
    return ExportTritonRequest(engine=args.engine, repository=args.repository, name=args.name, served_by=args.served_by)


def _run(request: ExportTritonRequest, output: Output) -> int:
    from p4q_edge.runtime.cli.documents import TritonDocument
    from p4q_edge.runtime.serving import write_repository

    models = write_repository(
        request.engine, request.repository, name=request.name, served_by=request.served_by, force=output.force
    )
    text = f"{request.repository}  a model repository; clients ask {', '.join(models)}"
    output.write(document=TritonDocument(repository=str(request.repository), models=tuple(models)), text=text)
    return 0


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
