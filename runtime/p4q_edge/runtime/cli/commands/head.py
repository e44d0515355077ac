"""`p4q-edge head`: list the class sets of an engine, add one, write one to a file, or calibrate its scores."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p4q_edge.runtime.cli.command import Command, CommandGroup, Output
from p4q_edge.runtime.storage import printable

_ENGINE = "engine (.onnx, .plan)"
_NAME = "name of the head (default: the built-in one)"


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
class ExportRequest:
    """What `head export` was asked for: an engine or a bundle, and the file to write."""

    artifact: Path
    output: Path
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class CalibrateRequest:
    """What `head calibrate` was asked for; what is None follows the defaults of `FitOptions`."""

    engine: Path
    data: Path
    name: str | None = None
    unknown: Path | None = None
    bundle: Path | None = None
    accuracy: float | None = None
    per_class: bool | None = None


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help=_ENGINE)


def _add_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help=_ENGINE)
    parser.add_argument("source", type=Path, help="head (.safetensors), or a bundle with one")
    parser.add_argument("--name", help="name of the head (default: that of the file)")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help=f"{_ENGINE} or bundle (.p4q)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write (.safetensors)")
    parser.add_argument("--name", help=_NAME)


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help=_ENGINE)
    parser.add_argument("data", type=Path, help="a folder of class folders")
    parser.add_argument("--name", help=_NAME)
    parser.add_argument("--unknown", type=Path, help="folder of images that show none of the classes")
    parser.add_argument("--bundle", type=Path, help="bundle of the engine; images it was learned from are left out")
    parser.add_argument("--accuracy", type=float, help="least accuracy of accepted answers (default: 0.95)")
    parser.add_argument("--per-class", action="store_true", default=None, help="fit a threshold for each class")


def _calibrate(request: CalibrateRequest, output: Output) -> int:
    import msgspec

    from p4q_edge.runtime.artifacts import BUILT_IN, read_bundle
    from p4q_edge.runtime.classification import FitOptions, Request, calibrate
    from p4q_edge.runtime.evaluation import found_names, learned_digests

    bundle = None if request.bundle is None else read_bundle(request.bundle)
    wanted = Request(
        engine=request.engine,
        data=request.data,
        head=request.name or BUILT_IN,
        unknown=request.unknown,
        learned=learned_digests(bundle),
        other_names=found_names(bundle) if request.name in (None, BUILT_IN) else (),
    )
    given = {name: value for name in ("accuracy", "per_class") if (value := getattr(request, name)) is not None}
    fitted = calibrate(wanted, FitOptions(**given))
    document = {"engine": str(request.engine), "head": wanted.head, **msgspec.to_builtins(fitted)}
    text = (
        f"temperature {fitted.calibration.temperature:.3f}, ECE {fitted.ece_before:.3f} -> {fitted.ece_after:.3f} "
        f"(cross-fitted, n = {fitted.samples})\nthreshold {fitted.calibration.threshold:.3f}: accepts "
        f"{fitted.accepted:.1%} of the answers, {fitted.accepted_accuracy:.1%} of these are right"
    )
    if fitted.unknown_rejected is not None:
        text += f"; rejects {fitted.unknown_rejected:.1%} of the unknown (n = {fitted.unknown_samples})"
    output.write(document=document, text=text)
    return 0


def _add(request: AddRequest, output: Output) -> int:
    from p4q_edge.runtime.artifacts import add_head, heads_folder

    name = add_head(request.engine, request.source, name=request.name, force=output.force)
    path = heads_folder(request.engine) / f"{name}.safetensors"
    document = {"engine": str(request.engine), "name": name, "path": str(path)}
    output.write(document=document, text=f"{path}\nuse it: p4q-edge classify {request.engine} IMAGE --head {name}")
    return 0


def _list(request: ListRequest, output: Output) -> int:
    from p4q_edge.runtime.artifacts import BUILT_IN, find_head, read_card, stored_heads

    card = read_card(request.engine)
    heads: list[dict[str, Any]] = [{"name": BUILT_IN, "class_names": list(card.class_names)}]
    for name in stored_heads(request.engine):
        head = find_head(request.engine, name)
        heads.append({"name": name, "class_names": list(head.class_names)})
    shown = [(head, printable(", ".join(head["class_names"][:8]))) for head in heads]
    lines = [f"{head['name']}  {len(head['class_names'])} classes: {names}" for head, names in shown]
    output.write(document={"engine": str(request.engine), "heads": heads}, text="\n".join(lines))
    return 0


def _export(request: ExportRequest, output: Output) -> int:
    from p4q_edge.runtime.artifacts import BUILT_IN, SUFFIX, find_head, open_head
    from p4q_edge.runtime.errors import UsageError
    from p4q_edge.runtime.storage import atomic_write

    if request.output.suffix != ".safetensors":
        raise UsageError(f"--output {request.output} must end in .safetensors")
    if request.artifact.suffix == SUFFIX:
        if request.name is not None:
            raise UsageError("a bundle has one head. Leave out --name.")
        head = open_head(request.artifact)
    else:
        head = find_head(request.artifact, request.name or BUILT_IN)
    atomic_write(request.output, head.to_bytes(), force=output.force)
    document = {"output": str(request.output), "class_names": list(head.class_names)}
    output.write(document=document, text=f"{request.output}  {len(head.class_names)} classes")
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
            request=lambda args: ExportRequest(artifact=args.artifact, output=args.output, name=args.name),
            run=_export,
        ),
        "calibrate": Command(
            add_arguments=_add_calibrate,
            request=lambda args: CalibrateRequest(
                engine=args.engine,
                data=args.data,
                name=args.name,
                unknown=args.unknown,
                bundle=args.bundle,
                accuracy=args.accuracy,
                per_class=args.per_class,
            ),
            run=_calibrate,
        ),
    }
)
