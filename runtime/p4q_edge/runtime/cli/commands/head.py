"""`p4q-edge head`: list the class sets of an engine, add one, write one to a file, or calibrate its scores."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from p4q_edge.runtime.cli.command import Command, write_result

_USAGE = (
    "expected `head add ENGINE HEAD`, `head list ENGINE`, `head export ENGINE|BUNDLE -o FILE` or "
    "`head calibrate ENGINE FOLDER`"
)
# The options that have an effect on each action, beside the common ones.
_OPTIONS = {
    "add": {"source", "name"},
    "list": set(),
    "export": {"name", "output"},
    "calibrate": {"source", "name", "unknown", "bundle", "accuracy", "per_class"},
}
_NEEDED = {"add": {"source"}, "list": set(), "export": {"output"}, "calibrate": {"source"}}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=tuple(_OPTIONS), help="what to do with the heads of an engine")
    parser.add_argument("artifact", type=Path, help="engine (.onnx, .plan), or for export a bundle (.p4q)")
    parser.add_argument(
        "source",
        nargs="?",
        type=Path,
        help="for add: head (.safetensors), or a bundle with one; for calibrate: a folder of class folders",
    )
    parser.add_argument("--name", help="name of the head (default for add: that of the file; else the built-in one)")
    parser.add_argument("-o", "--output", type=Path, help="for export: file to write (.safetensors)")
    calibrate = parser.add_argument_group("calibrate: fit probabilities and thresholds on the built engine")
    calibrate.add_argument("--unknown", type=Path, help="folder of images that show none of the classes")
    calibrate.add_argument("--bundle", type=Path, help="bundle of the engine; images it was learned from are left out")
    calibrate.add_argument("--accuracy", type=float, help="least accuracy of accepted answers (default: 0.95)")
    calibrate.add_argument("--per-class", action="store_true", default=None, help="fit a threshold for each class")


def _run(args: argparse.Namespace) -> int:
    from p4q_edge.runtime.errors import UsageError

    given = {name for name in set().union(*_OPTIONS.values()) if getattr(args, name) is not None}
    without_effect = sorted(given - _OPTIONS[args.action])
    missing = sorted(_NEEDED[args.action] - given)
    if without_effect or missing:
        what = f"{missing[0]} is missing" if missing else f"{without_effect[0]} has no effect on {args.action}"
        raise UsageError(f"{what.replace('_', '-')}; {_USAGE}.")
    return {"add": _add, "list": _list, "export": _export, "calibrate": _calibrate}[args.action](args)


def _calibrate(args: argparse.Namespace) -> int:
    import msgspec

    from p4q_edge.runtime.artifacts import BUILT_IN, read_bundle
    from p4q_edge.runtime.classification import FitOptions, Request, calibrate
    from p4q_edge.runtime.evaluation import found_names, learned_digests

    bundle = None if args.bundle is None else read_bundle(args.bundle)
    request = Request(
        engine=args.artifact,
        data=args.source,
        head=args.name or BUILT_IN,
        unknown=args.unknown,
        learned=learned_digests(bundle),
        other_names=found_names(bundle) if args.name in (None, BUILT_IN) else (),
    )
    given = {name: value for name in ("accuracy", "per_class") if (value := getattr(args, name)) is not None}
    fitted = calibrate(request, FitOptions(**given))
    document = {"engine": str(args.artifact), "head": request.head, **msgspec.to_builtins(fitted)}
    text = (
        f"temperature {fitted.calibration.temperature:.3f}, ECE {fitted.ece_before:.3f} -> {fitted.ece_after:.3f} "
        f"(cross-fitted, n = {fitted.samples})\nthreshold {fitted.calibration.threshold:.3f}: accepts "
        f"{fitted.accepted:.1%} of the answers, {fitted.accepted_accuracy:.1%} of these are right"
    )
    if fitted.unknown_rejected is not None:
        text += f"; rejects {fitted.unknown_rejected:.1%} of the unknown (n = {fitted.unknown_samples})"
    write_result(args, document=document, text=text)
    return 0


def _add(args: argparse.Namespace) -> int:
    from p4q_edge.runtime.artifacts import add_head, heads_folder

    name = add_head(args.artifact, args.source, name=args.name, force=args.force)
    path = heads_folder(args.artifact) / f"{name}.safetensors"
    document = {"engine": str(args.artifact), "name": name, "path": str(path)}
    write_result(args, document=document, text=f"{path}\nuse it: p4q-edge classify {args.artifact} IMAGE --head {name}")
    return 0


def _list(args: argparse.Namespace) -> int:
    from p4q_edge.runtime.artifacts import BUILT_IN, find_head, read_card, stored_heads

    card = read_card(args.artifact)
    heads: list[dict[str, Any]] = [{"name": BUILT_IN, "class_names": list(card.class_names)}]
    for name in stored_heads(args.artifact):
        head = find_head(args.artifact, name)
        heads.append({"name": name, "class_names": list(head.class_names)})
    lines = [
        f"{head['name']}  {len(head['class_names'])} classes: {', '.join(head['class_names'][:8])}" for head in heads
    ]
    write_result(args, document={"engine": str(args.artifact), "heads": heads}, text="\n".join(lines))
    return 0


def _export(args: argparse.Namespace) -> int:
    from p4q_edge.runtime.artifacts import BUILT_IN, SUFFIX, find_head, open_head
    from p4q_edge.runtime.errors import UsageError
    from p4q_edge.runtime.storage import atomic_write

    if args.output.suffix != ".safetensors":
        raise UsageError(f"--output {args.output} must end in .safetensors")
    if args.artifact.suffix == SUFFIX:
        if args.name is not None:
            raise UsageError("a bundle has one head. Leave out --name.")
        head = open_head(args.artifact)
    else:
        head = find_head(args.artifact, args.name or BUILT_IN)
    atomic_write(args.output, head.to_bytes(), force=args.force)
    document = {"output": str(args.output), "class_names": list(head.class_names)}
    write_result(args, document=document, text=f"{args.output}  {len(head.class_names)} classes")
    return 0


COMMAND = Command(
    name="head",
    help="list, add, export or calibrate the class sets of an engine",
    add_arguments=_add_arguments,
    run=_run,
)
