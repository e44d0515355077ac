"""`p4q-edge sign`: sign a bundle, an engine with its card, or a head."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path

from p4q_edge.runtime.cli.command import Command, Output


@dataclass(frozen=True, kw_only=True)
class SignRequest:
    """What `sign` was asked for: an artifact, the file of a private key, and whether a signature is replaced."""

    artifact: Path
    key: Path
    force: bool = False


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="bundle (.p4q), engine (.onnx, .plan) or head (.safetensors)")
    parser.add_argument(
        "--key",
        type=Path,
        required=True,
        help="private Ed25519 key, PEM without a password: openssl genpkey -algorithm ed25519 -out key.pem",
    )


def _request(args: argparse.Namespace) -> SignRequest:
    return SignRequest(artifact=args.artifact, key=args.key, force=args.force)


def _run(request: SignRequest, output: Output) -> int:
    from p4q_edge.runtime.artifacts import deciding_bytes, signature_path, write_signature
    from p4q_edge.runtime.cli.documents import SignatureDocument

    kind, data = deciding_bytes(request.artifact)
    signature = write_signature(request.artifact, kind, data, key=request.key, force=request.force)
    path = signature_path(request.artifact)
    document = SignatureDocument(
        path=str(request.artifact),
        kind=kind,
        signature=str(path),
        sha256=signature.sha256,
        public_key=signature.public_key,
    )
    text = f"{path}  signs this {kind} with the key {signature.public_key}"
    check = f"p4q-edge verify {shlex.quote(str(request.artifact))} --key key.pub.pem"
    output.write(document=document, text=f"{text}\nCheck: {check}")
    return 0


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
