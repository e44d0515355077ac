"""`p4q-edge head`: list the class sets of an engine, add, remove or export one, or calibrate its scores."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from p4q_edge.runtime.choices import CpuBackend
from p4q_edge.runtime.cli.artifact_words import calibration_table, first_classes, head_line
from p4q_edge.runtime.cli.command import Command, CommandGroup, Output, add_backend, write_line
from p4q_edge.runtime.cli.from_hub import add_bundle, local_bundle
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.storage import printable
from p4q_edge.runtime.wording import number_of

_ENGINE = "engine (.onnx, .plan)"
_NAME = "name of the head (default: the built-in one)"
_NEEDED_NAME = "name of the head, see `head list`"


@dataclass(frozen=True, kw_only=True)
class ListRequest:
    """What `head list` was asked for."""

    engine: Path


@dataclass(frozen=True, kw_only=True)
class AddRequest:
    """What `head add` was asked for: the engine, and a head or a bundle with one."""

    engine: Path
    source: Path
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class HeadExportRequest:
    """What `head export` was asked for: an engine or a bundle, and the file to write."""

    artifact: Path
    output: Path
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class HeadCalibrateRequest:
    """What `head calibrate` was asked for; what is None follows the defaults of `FitOptions`."""

    engine: Path
    data: Path
    name: str | None = None
    unknown: Path | None = None
    bundle: Path | None = None
    accuracy: float | None = None
    per_class: bool | None = None
    max_unknown: float | None = None
    backend: CpuBackend | None = None
    apply: bool = False

    def command(self) -> str:
        """Return the command line of this request."""
        words: list[object] = ["p4q-edge head calibrate", shlex.quote(str(self.engine)), shlex.quote(str(self.data))]
        for option, value in (("--name", self.name), ("--unknown", self.unknown), ("--bundle", self.bundle)):
            words += [] if value is None else [option, shlex.quote(str(value))]
        for option, number in (("--accuracy", self.accuracy), ("--max-unknown", self.max_unknown)):
            words += [] if number is None else [option, number]
        words += [] if self.backend is None else ["--backend", self.backend]
        return " ".join(map(str, [*words, *["--per-class"] * bool(self.per_class), *["--apply"] * self.apply]))


@dataclass(frozen=True, kw_only=True)
class RemoveRequest:
    """What `head remove` was asked for."""

    engine: Path
    name: str


@dataclass(frozen=True, kw_only=True)
class UndoRequest:
    """What `head undo` was asked for."""

    engine: Path
    name: str


@dataclass(frozen=True, kw_only=True)
class ResetRequest:
    """What `head reset` was asked for."""

    engine: Path
    name: str | None = None


def _add_name(parser: argparse.ArgumentParser, about: str) -> None:
    """Add the name of a head, which every action takes as `--name`; those of an engine alone take it without, too."""
    parser.add_argument("name", nargs="?", help=about)
    parser.add_argument("--name", dest="named", metavar="NAME", help="name of the head, as other actions take it")


def _add_remove(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help=_ENGINE)
    _add_name(parser, _NEEDED_NAME)


def _add_reset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help=_ENGINE)
    _add_name(parser, _NAME)


def _name(args: argparse.Namespace) -> str | None:
    """Return the name of the head, however it was given.

    Raises:
        UsageError: two were given.
    """
    given: set[str] = {name for name in (args.name, args.named) if name is not None}
    if len(given) > 1:
        raise UsageError(
            f"expected the name of one head, got {args.name!r} and --name {args.named!r}. Leave one out. "
            f"Run: {args.parser.prog} --help"
        )
    return given.pop() if given else None


def _needed_name(args: argparse.Namespace) -> str:
    name = _name(args)
    if name is None:
        raise UsageError(f"the following arguments are required: name. Run: {args.parser.prog} --help")
    return name


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help=_ENGINE)


def _add_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help=_ENGINE)
    add_bundle(parser, "source", about="head (.safetensors), or a bundle with one")
    parser.add_argument("--name", help="name of the head (default: that of the file)")


def _add_export(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser, "artifact", about=f"{_ENGINE} or bundle (.p4q)")
    _add_name(parser, _NAME)
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write (.safetensors)")


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help=_ENGINE)
    parser.add_argument("data", type=Path, help="a folder of class folders")
    parser.add_argument("--name", help=_NAME)
    parser.add_argument("--unknown", type=Path, help="folder of images that show none of the classes")
    about = "bundle of the engine, whose images that were learned from are left out (default: the one beside it)"
    add_bundle(parser, "--bundle", about=about)
    parser.add_argument("--accuracy", type=float, help="lowest accuracy of accepted answers (default: 0.95)")
    parser.add_argument("--per-class", action="store_true", default=None, help="fit a threshold for each class")
    parser.add_argument(
        "--max-unknown",
        type=float,
        help="largest share of the labelled images that thresholds may leave unknown (default: 0.5)",
    )
    add_backend(parser)
    parser.add_argument("--apply", action="store_true", help="write what is better; a terminal is asked first")


def _calibrate(request: HeadCalibrateRequest, output: Output) -> int:
    import msgspec

    from p4q_edge.runtime.artifacts import BUILT_IN, engine_head, read_card
    from p4q_edge.runtime.classification import FitOptions, Request, calibrate_head, write_calibration
    from p4q_edge.runtime.cli.documents import HeadCalibrateDocument
    from p4q_edge.runtime.evaluation import find_bundle, found_names, learned_digests

    # Images that were learned from would make scores look better than they are.
    named = None if request.bundle is None else local_bundle(request.bundle)
    bundle = find_bundle(request.engine, read_card(request.engine), named=named)
    wanted = Request(
        engine=request.engine,
        data=request.data,
        head=request.name or BUILT_IN,
        unknown=request.unknown,
        backend=request.backend,
        learned=learned_digests(bundle),
        other_names=found_names(bundle) if request.name in (None, BUILT_IN) else (),
    )
    names = ("accuracy", "per_class", "max_unknown")
    given = {name: value for name in names if (value := getattr(request, name)) is not None}
    fitted = calibrate_head(wanted, FitOptions(**given))
    old = engine_head(request.engine, wanted.head).calibration
    better, text = fitted.calibration != old, calibration_table(fitted)
    asked = better and request.apply and not (output.force or output.json) and _is_terminal()
    if asked:
        write_line(text)
        text = ""
    applied = better and request.apply and (not asked or _agreed(wanted.head))
    if applied:
        write_calibration(request.engine, wanted.head, fitted.calibration)
    document = HeadCalibrateDocument(
        **msgspec.structs.asdict(fitted), engine=str(request.engine), head=wanted.head, applied=applied
    )
    output.write(document=document, text=f"{text}\n{_ending(request, better=better, applied=applied)}".lstrip("\n"))
    return 0


def _is_terminal() -> bool:
    """Return whether somebody can be asked; where nobody can, `--apply` is the answer."""
    return sys.stdin is not None and sys.stdin.isatty()


def _agreed(head: str) -> bool:
    sys.stderr.write(f"Write this calibration to the head {head}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def sign_hint(artifact: Path) -> str:
    """Return a line on how to sign a head or an engine that was changed, where only signed files are loaded."""
    from p4q_edge.runtime.artifacts import deciding_bytes, require_signed, trusted_key_files
    from p4q_edge.runtime.errors import ArtifactError

    if not trusted_key_files():
        return ""
    try:
        require_signed(artifact, *deciding_bytes(artifact), trusted=None)
    except ArtifactError:
        sign = f"p4q-edge sign {shlex.quote(str(artifact))} --key key.pem --force"
        return f"\nonly signed files are loaded here, and {artifact} no longer is one. Sign it: {sign}"
    return ""


def _ending(request: HeadCalibrateRequest, *, better: bool, applied: bool) -> str:
    from p4q_edge.runtime.artifacts import BUILT_IN, stored_head

    if not better:
        return "nothing better was found; the head stays as it is"
    if applied:
        named = "" if request.name is None else f" {request.name}"
        head = request.name or BUILT_IN
        artifact = request.engine if head == BUILT_IN else stored_head(request.engine, head)
        undo = f"p4q-edge head reset {shlex.quote(str(request.engine))}{named}"
        return f"written. Undo it: {undo}{sign_hint(artifact)}"
    if request.apply:
        return "nothing was written"
    return f"nothing was written. Write it: {replace(request, apply=True).command()}"


def _remove(request: RemoveRequest, output: Output) -> int:
    from p4q_edge.runtime.artifacts import remove_head
    from p4q_edge.runtime.cli.documents import HeadFileDocument

    path = remove_head(request.engine, request.name)
    document = HeadFileDocument(engine=str(request.engine), name=request.name, path=str(path))
    output.write(document=document, text=f"removed {path}")
    return 0


def undo(request: UndoRequest, output: Output) -> int:
    """Put the earlier version of a head back, and say so."""
    from p4q_edge.runtime.artifacts import earlier_versions, undo_head
    from p4q_edge.runtime.cli.documents import HeadUndoDocument

    names = undo_head(request.engine, request.name).class_names
    left = len(earlier_versions(request.engine, request.name))
    document = HeadUndoDocument(engine=str(request.engine), name=request.name, class_names=names, earlier_versions=left)
    shown = f"{number_of(len(names), 'class')}: {printable(first_classes(names))}"
    text = f"{request.name} is what it was before: {shown} ({number_of(left, 'earlier version')} left)"
    output.write(document=document, text=text)
    return 0


def _reset(request: ResetRequest, output: Output) -> int:
    from p4q_edge.runtime.artifacts import BUILT_IN
    from p4q_edge.runtime.classification import reset_calibration
    from p4q_edge.runtime.cli.documents import HeadResetDocument

    name = request.name or BUILT_IN
    before, after = reset_calibration(request.engine, name)
    document = HeadResetDocument(engine=str(request.engine), head=name, before=before, calibration=after)
    text = (
        f"{name}: temperature {before.temperature:.3g} -> {after.temperature:.3g}, "
        f"threshold {before.threshold:.3f} -> {after.threshold:.3f}"
    )
    output.write(document=document, text=text)
    return 0


def _add(request: AddRequest, output: Output) -> int:
    from p4q_edge.runtime.artifacts import add_head, heads_folder
    from p4q_edge.runtime.cli.documents import HeadFileDocument

    name = add_head(request.engine, local_bundle(request.source), name=request.name, force=output.force)
    path = heads_folder(request.engine) / f"{name}.safetensors"
    document = HeadFileDocument(engine=str(request.engine), name=name, path=str(path))
    output.write(
        document=document,
        text=f"{path}\nuse it: p4q-edge classify {shlex.quote(str(request.engine))} IMAGE --head {name}",
    )
    return 0


def _list(request: ListRequest, output: Output) -> int:
    from p4q_edge.runtime.artifacts import BUILT_IN, earlier_versions, engine_head, stored_heads
    from p4q_edge.runtime.cli.documents import HeadListDocument, NamedClasses

    names = (BUILT_IN, *stored_heads(request.engine))
    heads = [
        NamedClasses(
            name=name,
            class_names=engine_head(request.engine, name).class_names,
            earlier_versions=len(earlier_versions(request.engine, name)),
        )
        for name in names
    ]
    lines = [printable(head_line(request.engine, head)) for head in heads]
    output.write(document=HeadListDocument(engine=str(request.engine), heads=tuple(heads)), text="\n".join(lines))
    return 0


def _export(request: HeadExportRequest, output: Output) -> int:
    from p4q_edge.runtime.artifacts import (
        BUILT_IN,
        SUFFIX,
        HeadFile,
        open_head,
        read_head_file,
        stored_head,
        write_head_file,
    )
    from p4q_edge.runtime.cli.documents import HeadExportDocument

    if request.output.suffix != ".safetensors":
        raise UsageError(f"--output {request.output} must end in .safetensors")
    artifact = local_bundle(request.artifact)
    if artifact.suffix == SUFFIX:
        if request.name is not None:
            raise UsageError("a bundle has one head. Leave out --name.")
        file = HeadFile(data=open_head(artifact).to_bytes())
    else:
        file = read_head_file(stored_head(artifact, request.name or BUILT_IN))
    write_head_file(request.output, file, force=output.force)
    head = file.head(source=str(request.output))
    document = HeadExportDocument(output=str(request.output), class_names=head.class_names)
    output.write(document=document, text=f"{request.output}  {number_of(len(head.class_names), 'class')}")
    return 0


COMMAND = CommandGroup(
    commands={
        "list": Command(add_arguments=_add_list, request=lambda args: ListRequest(engine=args.engine), run=_list),
        "add": Command(
            add_arguments=_add_add,
            request=lambda args: AddRequest(engine=args.engine, source=args.source, name=args.name),
            run=_add,
        ),
        "export": Command(
            add_arguments=_add_export,
            request=lambda args: HeadExportRequest(artifact=args.artifact, output=args.output, name=_name(args)),
            run=_export,
        ),
        "calibrate": Command(
            add_arguments=_add_calibrate,
            request=lambda args: HeadCalibrateRequest(
                engine=args.engine,
                data=args.data,
                name=args.name,
                unknown=args.unknown,
                bundle=args.bundle,
                accuracy=args.accuracy,
                per_class=args.per_class,
                max_unknown=args.max_unknown,
                backend=args.backend,
                apply=args.apply,
            ),
            run=_calibrate,
        ),
        "remove": Command(
            add_arguments=_add_remove,
            request=lambda args: RemoveRequest(engine=args.engine, name=_needed_name(args)),
            run=_remove,
        ),
        "undo": Command(
            add_arguments=_add_remove,
            request=lambda args: UndoRequest(engine=args.engine, name=_needed_name(args)),
            run=undo,
        ),
        "reset": Command(
            add_arguments=_add_reset,
            request=lambda args: ResetRequest(engine=args.engine, name=_name(args)),
            run=_reset,
        ),
    }
)
