"""`p4q-edge push`: a bundle to the Hugging Face Hub, with a model card."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from p4q_edge.runtime.cli.command import Command, Output


@dataclass(frozen=True, kw_only=True)
class PushRequest:
    """What `push` was asked for: a bundle, where it goes, and how."""

    bundle: Path
    address: str
    private: bool = False
    report: Path | None = None
    force: bool = False


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="bundle (.p4q) to push; the .sig beside it goes along")
    parser.add_argument("address", help="hf:user/name, with @branch and /file.p4q where those matter")
    parser.add_argument("--private", action="store_true", help="make a new repository private; refuse a public one")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="REPORT.json",
        help="of `p4q-edge validate` about an engine of this bundle: its figures go into the model card (default: what "
        "the bundle recorded when it was made)",
    )


def _request(args: argparse.Namespace) -> PushRequest:
    return PushRequest(
        bundle=args.bundle, address=args.address, private=args.private, report=args.report, force=args.force
    )


def _run(request: PushRequest, output: Output) -> int:
    from p4q_edge.runtime.cli.service_documents import PushDocument
    from p4q_edge.runtime.hub import PushOptions, push_bundle

    options = PushOptions(private=request.private, report=request.report, force=request.force)
    pushed = push_bundle(request.bundle, request.address, options=options)
    document = PushDocument(
        bundle=str(request.bundle),
        address=pushed.address,
        url=pushed.url,
        private=pushed.private,
        files=pushed.files,
        card_kept=pushed.card_kept,
    )
    who = "private" if pushed.private else "public"
    text = f"{pushed.address}  {', '.join(pushed.files)}, {who}\n{pushed.url}\n"
    output.write(document=document, text=f"{text}build it: p4q-edge build {pushed.address} --engine out.onnx")
    return 0


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
