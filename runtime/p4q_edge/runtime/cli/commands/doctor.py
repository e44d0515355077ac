"""`p4q-edge doctor`: what this machine can run, and for each finding the command that fixes it."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from p4q_edge.runtime.cli.command import Command, Output
from p4q_edge.runtime.cli.from_hub import add_bundle, local_bundle
from p4q_edge.runtime.errors import EnvironmentNotAbleError, InputError
from p4q_edge.runtime.machine import (
    BACKENDS,
    TYPICAL_BUNDLE_BYTES,
    Finding,
    able_backends,
    examine,
    read_environment,
)
from p4q_edge.runtime.wording import number_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    """What `doctor` was asked for.

    Attributes:
        backend: the one that must run; None: any.
        bundle: whose size is foreseen, and what a board report builds beside the demo.
        board_report: folder for the archive of a board report; None makes none.
        licences: list licences instead, of the bundle's weights too.
    """

    backend: str | None = None
    bundle: Path | None = None
    board_report: Path | None = None
    licences: bool = False


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend", choices=BACKENDS, help="the backend that must be able to run (default: at least one)"
    )
    about = "predict the memory of a build from this bundle's size; a board report builds it"
    add_bundle(parser, "--bundle", about=about, metavar="BUNDLE")
    parser.add_argument(
        "--board-report",
        type=Path,
        metavar="DIR",
        help="also build, prove and time the demo and BUNDLE, and write it all into one archive in DIR, without paths "
        "or names of persons; takes minutes to hours",
    )
    parser.add_argument(
        "--licenses",
        action="store_true",
        help="list the licences of the packages that are installed here and, with --bundle, of its weights, instead",
    )


def _request(args: argparse.Namespace) -> DoctorRequest:
    return DoctorRequest(
        backend=args.backend, bundle=args.bundle, board_report=args.board_report, licences=args.licenses
    )


def _run(request: DoctorRequest, output: Output) -> int:
    if request.bundle is not None:
        request = replace(request, bundle=local_bundle(request.bundle))
    bundle_bytes = TYPICAL_BUNDLE_BYTES
    if request.bundle is not None:
        if not request.bundle.is_file():
            raise InputError(f"{request.bundle} is not a file. Name a bundle (model.p4q), or leave --bundle out.")
        bundle_bytes = request.bundle.stat().st_size
    if request.licences:
        return _licences(request.bundle, output)
    findings = examine(read_environment(), bundle_bytes=bundle_bytes)
    able = able_backends(findings)
    if request.board_report is not None:
        return _report(request, able, output, folder=request.board_report)
    from p4q_edge.runtime.cli.documents import DoctorDocument

    document = DoctorDocument(findings=tuple(findings), backends=able)
    output.write(document=document, text=_text(findings, able))
    wanted = [request.backend] if request.backend else list(BACKENDS)
    if any(able[backend] for backend in wanted):
        return 0
    # Not raised: the findings are the result, and with --json there is only one document.
    logger.error("%s cannot run here; fix what is missing above, then run this again.", " and ".join(wanted))
    return EnvironmentNotAbleError.exit_code


def _licences(path: Path | None, output: Output) -> int:
    from p4q_edge.runtime.artifacts import read_bundle
    from p4q_edge.runtime.cli.documents import LicencesDocument
    from p4q_edge.runtime.machine import package_licences

    manifest = None if path is None else read_bundle(path).manifest
    packages = package_licences()
    lines = [f"{package.name} {package.version}  {package.licence}" for package in packages]
    images = None if manifest is None else len(manifest.data_index.learned)
    if manifest is not None and images is not None:
        made_with = ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()))
        lines = [
            f"weights of {manifest.model.name}  {manifest.model.license}",
            f"learned from {number_of(images, 'image')} that the manifest names; licence: that of the owner",
            f"exported with {made_with or 'packages that were not recorded'}",
            "",
            *lines,
        ]
    document = LicencesDocument(
        model=None if manifest is None else manifest.model.name,
        weights_licence=None if manifest is None else manifest.model.license,
        weights_sha256=None if manifest is None else manifest.model.weights_sha256,
        learned_from=images,
        exported_with={} if manifest is None else dict(manifest.versions),
        packages=tuple(packages),
    )
    output.write(document=document, text="\n".join(lines))
    return 0


def _report(request: DoctorRequest, able: Mapping[str, bool], output: Output, *, folder: Path) -> int:
    # Imported here: only this needs processes and archives.
    from p4q_edge.runtime.cli.board_report import write_board_report
    from p4q_edge.runtime.cli.documents import BoardReportDocument

    archive, steps = write_board_report(folder, bundle=request.bundle, backends=able)
    lines = [f"{step.name:24} {_outcome(step.exit_code, step.note)}" for step in steps]
    lines += [f"{archive}  read it, then send it: docs/boards.md says where to"]
    written = BoardReportDocument(archive=str(archive), steps=tuple(steps))
    output.write(document=written, text="\n".join(lines))
    return 0


def _outcome(exit_code: int | None, note: str) -> str:
    if exit_code is None:
        return f"not run: {note}"
    return "done" if exit_code == 0 else f"exit code {exit_code}"


def _text(findings: list[Finding], able: Mapping[str, bool]) -> str:
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<8} {finding.subject}: {finding.message}")
        if finding.fix:
            lines.append(f"{'':<8} run: {finding.fix}")
    lines += [_ability(backend, findings, works=works) for backend, works in able.items()]
    return "\n".join(lines)


def _ability(backend: str, findings: list[Finding], *, works: bool) -> str:
    """Return whether engines of a backend run here, or are only built here, and what is lacking."""
    if works:
        return f"able     {backend}: engines are built and run here"
    asked = [finding for finding in findings if backend in finding.needed_by]
    lacking = " and ".join(finding.subject for finding in asked if finding.status in ("missing", "absent"))
    own = (finding for finding in asked if finding.needed_by == (backend,))
    if backend == "tensorrt-rtx" and all(finding.status == "ok" for finding in own):  # it compiles without a GPU
        return f"builds   {backend}: engines for other machines alone; none runs here without {lacking}"
    return f"not able {backend}: lacks {lacking}"


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
