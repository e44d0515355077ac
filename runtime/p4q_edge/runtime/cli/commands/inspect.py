"""`p4q-edge inspect`: what is in a bundle, an engine's card or a head."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p4q_edge.runtime.cli.command import Command, Output, toolkit_function
from p4q_edge.runtime.cli.from_hub import add_bundle, local_bundle
from p4q_edge.runtime.errors import QualityGateError
from p4q_edge.runtime.wording import number_of

if TYPE_CHECKING:
    from p4q_edge.runtime.cli.inspect_documents import BundleDocument, EngineDocument, HeadDocument, LintRow

LINT_FUNCTION = "lint_artifact"
NEEDS_TOOLKIT = "--lint needs the toolkit, which is not installed here. Run, in a checkout: pip install ./runtime ."
_OF_CARD = (
    *("engine_sha256", "engine_size_bytes", "bundle_sha256", "parts", "built_by", "model", "precision", "class_names"),
    *("preprocess", "embedding_dim", "logit_scale", "calibration", "rounding_bits", "noise"),
)
"""What the document of an engine takes from its card as it is."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InspectRequest:
    """What `inspect` was asked for: an artifact, and whether its graphs are checked."""

    artifact: Path
    lint: bool = False


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser, "artifact", about="bundle (.p4q), engine (.onnx, .plan) or head (.safetensors)")
    parser.add_argument("--lint", action="store_true", help="check the graphs of a bundle or .onnx (toolkit only)")


def _request(args: argparse.Namespace) -> InspectRequest:
    return InspectRequest(artifact=args.artifact, lint=args.lint)


def _run(request: InspectRequest, output: Output) -> int:
    if request.lint:
        return _lint(local_bundle(request.artifact), output)
    import msgspec

    from p4q_edge.runtime.cli.artifact_words import every_value, in_words

    path = local_bundle(request.artifact)
    document = describe(path)
    values: dict[str, Any] = msgspec.to_builtins(document)
    address = "" if path == request.artifact else str(request.artifact)
    text = in_words(values, address=address) if not output.verbose else "\n".join(every_value(values))
    output.write(document=document, text=text)
    return 0


def _lint(artifact: Path, output: Output) -> int:
    from p4q_edge.runtime.cli.inspect_documents import LintDocument

    findings: list[LintRow] = toolkit_function(LINT_FUNCTION, missing=NEEDS_TOOLKIT)(artifact)
    lines = [f"{f.graph}  {f.rule}  {f.node or 'model'}: {f.message}" for f in findings]
    document = LintDocument(path=str(artifact), findings=tuple(findings))
    output.write(document=document, text="\n".join(lines) or "no rule is broken")
    if not findings:
        return 0
    logger.error(
        "%s breaks %s. Export it again with this version: p4q-edge build", artifact, number_of(len(findings), "rule")
    )
    return QualityGateError.exit_code


def describe(artifact: Path) -> BundleDocument | EngineDocument | HeadDocument:
    """Return what an artifact says about itself; its digests are verified."""
    suffix = artifact.suffix.lower()
    if suffix == ".p4q":
        return _bundle(artifact)
    if suffix == ".safetensors":
        return _head(artifact)
    return _engine(artifact)


def _bundle(path: Path) -> BundleDocument:
    from p4q_edge.runtime.artifacts import read_bundle
    from p4q_edge.runtime.cli.inspect_documents import BundleDocument

    bundle = read_bundle(path)
    manifest = bundle.manifest
    return BundleDocument(
        path=str(path),
        size_bytes=path.stat().st_size,
        sha256=bundle.sha256(),
        created_by=manifest.created_by,
        model=manifest.model,
        precision=manifest.precision,
        class_names=manifest.class_names,
        image_size=manifest.image_size,
        embedding_dim=manifest.embedding_dim,
        members=manifest.members,
        versions=manifest.versions,
        seed=manifest.seed,
        recipe=manifest.recipe,
        data_index=manifest.data_index,
        parity=manifest.parity.flat(),
        narrowest_bits=manifest.narrowest_bits,
        unsound=manifest.unsound,
        preprocess=bundle.preprocess(),
        golden_samples=len(bundle.golden().image),
    )


def _engine(path: Path) -> EngineDocument:
    from p4q_edge.runtime.artifacts import OnnxRuntimeBuild, OpenVINOBuild, TensorRTBuild, read_card, verify_engine
    from p4q_edge.runtime.cli.inspect_documents import (
        BuiltGolden,
        CpuEngineDocument,
        OpenVINODocument,
        PlanDocument,
        RtxDocument,
    )

    card = read_card(path)
    verify_engine(path, card)
    common = {name: getattr(card, name) for name in _OF_CARD}
    common |= {
        "path": str(path),
        "backend": card.backend,
        "measured": BuiltGolden() if card.measured is None else BuiltGolden(golden=card.measured.golden),
        "golden_samples": len(card.golden_samples().image),
    }
    build = card.build
    if isinstance(build, OnnxRuntimeBuild):
        return CpuEngineDocument(
            **common,
            built_with=build.built_with,
            options=build.options,
            optimized=build.optimized,
            inspection=build.inspection,
        )
    if isinstance(build, OpenVINOBuild):
        return OpenVINODocument(
            **common,
            built_with=build.built_with,
            options=build.options,
            optimized=build.optimized,
            inspection=build.inspection,
        )
    if isinstance(build, TensorRTBuild):
        return PlanDocument(**common, built_with=build.built_with, options=build.options, inspection=build.inspection)
    return RtxDocument(**common, built_with=build.built_with, options=build.options, inspection=build.inspection)


def _head(path: Path) -> HeadDocument:
    from p4q_edge.runtime.artifacts import load_head
    from p4q_edge.runtime.cli.inspect_documents import HeadDocument

    head = load_head(path)
    return HeadDocument(
        path=str(path),
        class_names=head.class_names,
        embedding_dim=head.embedding_dim,
        logit_scale=head.logit_scale,
        adapter=head.adapter is not None,
        calibration=head.calibration,
        weights_sha256=head.weights_sha256,
    )


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
