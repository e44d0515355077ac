"""`p4q-edge inspect`: what is in a bundle, an engine's card or a head."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p4q_edge.runtime.cli.command import Command, Output, toolkit_function
from p4q_edge.runtime.errors import QualityGateError

LINT_FUNCTION = "lint_artifact"
NEEDS_TOOLKIT = "--lint needs the toolkit, which is not installed here. Run, in a checkout: pip install ./runtime ."

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InspectRequest:
    """What `inspect` was asked for: an artifact, and whether its graphs are checked."""

    artifact: Path
    lint: bool = False


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="bundle (.p4q), engine (.onnx, .plan) or head (.safetensors)")
    parser.add_argument("--lint", action="store_true", help="check the graphs of a bundle or .onnx (toolkit only)")


def _request(args: argparse.Namespace) -> InspectRequest:
    return InspectRequest(artifact=args.artifact, lint=args.lint)


def _run(request: InspectRequest, output: Output) -> int:
    if request.lint:
        return _lint(request.artifact, output)
    from p4q_edge.runtime.cli.artifact_words import every_value, in_words

    document = describe(request.artifact)
    text = in_words(document) if not output.verbose else "\n".join(every_value(document))
    output.write(document=document, text=text)
    return 0


def _lint(artifact: Path, output: Output) -> int:
    findings: list[dict[str, Any]] = toolkit_function(LINT_FUNCTION, missing=NEEDS_TOOLKIT)(artifact)
    lines = [f"{f['graph']}  {f['rule']}  {f['node'] or 'model'}: {f['message']}" for f in findings]
    document = {"kind": "lint", "path": str(artifact), "findings": findings}
    output.write(document=document, text="\n".join(lines) or "no rule is broken")
    if not findings:
        return 0
    logger.error("%s breaks %d rules. Export it again with this version: p4q-edge build", artifact, len(findings))
    return QualityGateError.exit_code


def describe(artifact: Path) -> dict[str, Any]:
    """Return what an artifact says about itself, as JSON values; its digests are verified."""
    suffix = artifact.suffix.lower()
    if suffix == ".p4q":
        return _bundle(artifact)
    if suffix == ".safetensors":
        return _head(artifact)
    return _engine(artifact)


def _bundle(path: Path) -> dict[str, Any]:
    import msgspec

    from p4q_edge.runtime.artifacts import read_bundle

    bundle = read_bundle(path)
    return {
        "kind": "bundle",
        "path": str(path),
        "size_bytes": path.stat().st_size,
        "sha256": bundle.sha256(),
        **_values(msgspec.to_builtins(bundle.manifest)),
        "parity": bundle.manifest.parity.flat(),
        "preprocess": msgspec.to_builtins(bundle.preprocess()),
        "golden_samples": len(bundle.golden().image),
    }


def _engine(path: Path) -> dict[str, Any]:
    import msgspec

    from p4q_edge.runtime.artifacts import read_card, verify_engine

    card = read_card(path)
    verify_engine(path, card)
    described = _values(msgspec.to_builtins(card))
    build = described.pop("build")
    del described["golden"]
    measured = {} if card.measured is None else {"golden": msgspec.to_builtins(card.measured.golden)}
    samples = len(card.golden_samples().image)
    whole = {"optimized": None, **described, **build, "measured": measured, "golden_samples": samples}
    return {"kind": "engine", "path": str(path), **whole}


def _head(path: Path) -> dict[str, Any]:
    import msgspec

    from p4q_edge.runtime.artifacts import load_head

    head = load_head(path)
    return {
        "kind": "head",
        "path": str(path),
        "class_names": list(head.class_names),
        "embedding_dim": head.embedding_dim,
        "logit_scale": head.logit_scale,
        "adapter": head.adapter is not None,
        "calibration": msgspec.to_builtins(head.calibration),
        "weights_sha256": head.weights_sha256,
    }


def _values(document: Any) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != "schema_version"}


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
