"""`p4q-edge teach`: learn a class set from a few photographs, on the device."""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from p4q_edge.runtime.choices import CpuBackend
from p4q_edge.runtime.cli.arguments import name_or_path
from p4q_edge.runtime.cli.command import Command, Output, add_backend, add_placement
from p4q_edge.runtime.cli.commands.head import UndoRequest, sign_hint, undo
from p4q_edge.runtime.errors import ArtifactError, InputError, UsageError
from p4q_edge.runtime.storage import printable, sha256_file
from p4q_edge.runtime.wording import number_of

if TYPE_CHECKING:
    from p4q_edge.runtime.classification import Taught
    from p4q_edge.runtime.cli.documents import TeachDocument

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TeachRequest:
    """What `teach` was asked for; of `undo`, `photographs` is None."""

    engine: Path
    photographs: Path | None
    name: str
    base: str | None = None
    add: tuple[str, ...] = ()
    unknown: Path | None = None
    device: str = "auto"
    threads: int | None = None
    backend: CpuBackend | None = None
    undo: bool = False


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine (.onnx or .plan) with its card beside it")
    parser.add_argument(
        "photographs",
        type=Path,
        nargs="?",
        metavar="PHOTOS",
        help="a folder with a folder of photographs for each class; with --add CLASS also a folder of that class alone",
    )
    parser.add_argument("--name", required=True, help="name of the head; one that has it is kept for --undo")
    parser.add_argument(
        "--base",
        type=name_or_path,
        help="head to start from: built-in (the default), a name, or a file (.safetensors, .p4q)",
    )
    parser.add_argument(
        "--add",
        metavar="CLASS",
        action="append",
        default=[],
        help="keep all classes of the base head and add this one; may be given several times",
    )
    parser.add_argument("--unknown", type=Path, help="folder of images that show none of the classes")
    add_placement(parser)
    add_backend(parser)
    parser.add_argument("--undo", action="store_true", help="put the version before this one back; needs no PHOTOS")


def _request(args: argparse.Namespace) -> TeachRequest:
    if args.undo and (args.photographs or args.base or args.add or args.unknown):
        raise UsageError("--undo puts an earlier version back, and learns nothing. Leave out PHOTOS and other options.")
    if not args.undo and args.photographs is None:
        raise UsageError("teach needs a folder of photographs: p4q-edge teach ENGINE PHOTOS --name NAME")
    if args.add and args.unknown:
        raise UsageError(
            "--unknown decides a threshold, and --add keeps that of the base head. Leave one out, and calibrate "
            "afterwards: p4q-edge head calibrate ENGINE DATA --name NAME --unknown FOLDER"
        )
    return TeachRequest(
        engine=args.engine,
        photographs=args.photographs,
        name=args.name,
        base=args.base,
        add=tuple(args.add),
        unknown=args.unknown,
        device=args.device,
        threads=args.threads,
        backend=args.backend,
        undo=args.undo,
    )


def _run(request: TeachRequest, output: Output) -> int:
    from p4q_edge.runtime.artifacts import BUILT_IN, base_head, earlier_versions, require_name, write_head
    from p4q_edge.runtime.classification import RuntimeOptions, ZeroShotClassifier
    from p4q_edge.runtime.images import require_of_no_class

    if request.photographs is None:
        return undo(UndoRequest(engine=request.engine, name=request.name), output)
    require_name(request.name)
    # Read before the engine is loaded: a wrong folder or base shows at once.
    base = base_head(request.engine, request.base or BUILT_IN)
    photographs = _by_class(request.photographs, request.add, base.class_names)
    if request.unknown is not None and request.unknown.is_dir():
        digests = {sha256_file(Path(path)) for paths in photographs.values() for path in paths}
        require_of_no_class(request.unknown, digests, option="--unknown")
    seen = _seen_before(request.engine, photographs)
    if request.add:
        _refuse_others(photographs, request, base.class_names)
    options = RuntimeOptions(threads=request.threads, backend=request.backend)
    with ZeroShotClassifier(request.engine, device=request.device, options=options) as classifier:
        taught = classifier.lesson(
            photographs,
            base=request.base or BUILT_IN,
            add=bool(request.add),
            unknown=request.unknown,
            name=request.name,
        )
    path = write_head(request.engine, request.name, taught.head)
    earlier = len(earlier_versions(request.engine, request.name))
    document = _document(request, taught, path, earlier, seen)
    output.write(document=document, text=_text(request, taught, path, earlier, seen))
    return 0


def _seen_before(engine: Path, photographs: dict[str, list[str]]) -> int:
    """Return how many of the photographs the engine itself was learned from, where its bundle is there to tell."""
    from p4q_edge.runtime.artifacts import read_card
    from p4q_edge.runtime.evaluation import find_bundle, learned_digests

    card = read_card(engine)
    try:
        learned = learned_digests(find_bundle(engine, card))
    except ArtifactError as error:  # of another engine, or damaged; what is taught does not need it
        logger.warning("whether the engine was learned from these photographs is not known: %s", error)
        return 0
    return sum(sha256_file(Path(path)) in learned for paths in photographs.values() for path in paths)


def _by_class(folder: Path, add: tuple[str, ...], base: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the photographs by class: of class folders, or of the one class that is added.

    Args:
        folder: holds them.
        add: classes to add; these and those of the base head are classes whatever they sound like, as `train`.
        base: classes of the base head.

    Raises:
        UsageError: no such folder.
        InputError: the folder does not hold what is to be added, or holds other classes than meant.
    """
    from p4q_edge.runtime.images import image_files, labelled_files

    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; expected one with a folder of photographs for each class.")
    has_folders = any(child.is_dir() and not child.name.startswith(".") for child in folder.iterdir())
    if len(add) == 1 and not has_folders:
        return {add[0]: [str(path) for path in image_files(folder)]}
    found = {path.name: [str(file) for file in files] for path, files in labelled_files(folder, known=(*add, *base))}
    missing = [name for name in add if name not in found]
    if missing:
        raise InputError(
            f"{folder} has no folder of the class {missing[0]!r} to add; it has {', '.join(found)}. "
            "Name the class as its folder, or give a folder of its photographs alone."
        )
    return found


def _refuse_others(photographs: Iterable[str], request: TeachRequest, base: tuple[str, ...]) -> None:
    """Raise `InputError` where class folders are neither to be added nor classes of the base head."""
    from p4q_edge.runtime.images import same_form

    known = {same_form(name) for name in (*base, *request.add)}
    others = [name for name in photographs if same_form(name) not in known]
    if others:
        raise InputError(
            f"{request.photographs} names other classes that head {request.base or 'built-in'} lacks: "
            f"{', '.join(others)}. Add them too, each with --add, or remove their folders."
        )


def _document(request: TeachRequest, taught: Taught, path: Path, earlier: int, seen: int) -> TeachDocument:
    import msgspec

    from p4q_edge.runtime.cli.documents import TeachDocument

    return TeachDocument(
        engine=str(request.engine),
        name=request.name,
        path=str(path),
        class_names=taught.head.class_names,
        earlier_versions=earlier,
        seen_before=seen,
        **msgspec.structs.asdict(taught.report),
    )


def _text(request: TeachRequest, taught: Taught, path: Path, earlier: int, seen: int) -> str:
    report = taught.report
    total = sum(report.photographs.values())
    lines = [
        f"{path}  {number_of(len(taught.head.class_names), 'class')}, learned from {number_of(total, 'photograph')}"
    ]
    if report.repeated:
        lines.append(f"{number_of(report.repeated, 'photograph was', 'photographs were')} there twice, and taken once")
    if report.held_out_accuracy is None:
        lines.append("one photograph a class: nothing could be held out, so nothing is known of its accuracy yet")
    else:
        before = "" if report.base_accuracy is None else f"; before it was taught {report.base_accuracy:.1%}"
        lines.append(
            f"right on photographs that were held out: {report.held_out_accuracy:.1%}, n = {report.held_out}{before}"
        )
    if seen:
        lines.append(
            f"the engine itself was learned from {seen} of the {number_of(total, 'photograph')}: these shares and "
            "the calibration "
            "are better than those on new ones; measure it with others: p4q-edge head calibrate "
            f"{shlex.quote(str(request.engine))} OTHERS --name {request.name}"
        )
    if report.added:
        lines.append(f"added {printable(', '.join(report.added))}; the logits of the other classes are unchanged")
    elif report.calibration is not None:
        fitted = report.calibration.calibration
        lines.append(f"temperature {fitted.temperature:.3g}, threshold {fitted.threshold:.3f}")
    engine, name = shlex.quote(str(request.engine)), request.name
    lines.append(f"use it: p4q-edge classify {engine} IMAGE --head {name}")
    if earlier:
        lines.append(f"undo it: p4q-edge head undo {engine} {name}")
    return "\n".join(lines) + sign_hint(path)


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
