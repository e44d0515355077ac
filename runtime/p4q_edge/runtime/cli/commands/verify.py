"""`p4q-edge verify`: check that a trusted key signed an artifact, and that it is what was signed."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from p4q_edge.runtime.cli.command import Command, Output
from p4q_edge.runtime.cli.from_hub import add_bundle, local_bundle
from p4q_edge.runtime.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class VerifyRequest:
    """What `verify` was asked for: an artifact, and files of trusted public keys; none takes the environment's."""

    artifact: Path
    keys: tuple[Path, ...] = ()


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser, "artifact", about="bundle (.p4q), engine (.onnx, .plan) or head (.safetensors)")
    parser.add_argument(
        "--key",
        type=Path,
        action="append",
        default=[],
        help="trusted public key, PEM; may be repeated (default: those of P4Q_EDGE_TRUSTED_KEYS)",
    )


def _request(args: argparse.Namespace) -> VerifyRequest:
    return VerifyRequest(artifact=args.artifact, keys=tuple(args.key))


def _run(request: VerifyRequest, output: Output) -> int:
    from p4q_edge.runtime.artifacts import deciding_bytes, require_signed, signature_path, trusted_key_files
    from p4q_edge.runtime.cli.documents import SignatureDocument

    keys = trusted_key_files(request.keys or None)
    if not keys:
        raise UsageError("no key is trusted here. Add --key key.pub.pem, or set P4Q_EDGE_TRUSTED_KEYS.")
    artifact = local_bundle(request.artifact)
    kind, data = deciding_bytes(artifact)
    signature = require_signed(artifact, kind, data, trusted=keys)
    assert signature is not None  # keys were given
    document = SignatureDocument(
        path=str(request.artifact),
        kind=kind,
        signature=str(signature_path(artifact)),
        sha256=signature.sha256,
        public_key=signature.public_key,
    )
    output.write(document=document, text=f"{request.artifact}  {kind} signed by the key {signature.public_key}")
    return 0


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
