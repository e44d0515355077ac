"""`p4q-edge head`: list the class sets of an engine, add one, or write one to a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from p4q_edge.runtime.commands import Command, write_result


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("add", "list", "export"),
        help="add ENGINE HEAD: copy a head to those of an engine; list ENGINE; export ENGINE|BUNDLE -o FILE",
    )
    parser.add_argument("artifact", type=Path, help="engine (.onnx, .plan), or for export a bundle (.p4q)")
    parser.add_argument("head", nargs="?", type=Path, help="for add: head (.safetensors), or a bundle with one")
    parser.add_argument("--name", help="name of the head (default for add: that of the file)")
    parser.add_argument("-o", "--output", type=Path, help="for export: file to write (.safetensors)")


def _run(args: argparse.Namespace) -> int:
    from p4q_edge.runtime.errors import UsageError

    if (args.head is not None) != (args.action == "add"):
        raise UsageError("expected `head add ENGINE HEAD`, `head list ENGINE` or `head export ENGINE|BUNDLE -o FILE`.")
    if (args.output is not None) != (args.action == "export"):
        raise UsageError("--output belongs to `p4q-edge head export ENGINE|BUNDLE -o FILE`.")
    if args.action == "list" and args.name is not None:
        raise UsageError("--name has no effect on `p4q-edge head list`. Leave it out.")
    return {"add": _add, "list": _list, "export": _export}[args.action](args)


def _add(args: argparse.Namespace) -> int:
    from p4q_edge.runtime.head_store import add_head, heads_folder

    name = add_head(args.artifact, args.head, name=args.name, force=args.force)
    path = heads_folder(args.artifact) / f"{name}.safetensors"
    document = {"engine": str(args.artifact), "name": name, "path": str(path)}
    write_result(args, document=document, text=f"{path}\nuse it: p4q-edge classify {args.artifact} IMAGE --head {name}")
    return 0


def _list(args: argparse.Namespace) -> int:
    from p4q_edge.runtime.card import read_card
    from p4q_edge.runtime.head_store import BUILT_IN, find_head, stored_heads

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
    from p4q_edge.runtime.bundle import SUFFIX
    from p4q_edge.runtime.errors import UsageError
    from p4q_edge.runtime.files import atomic_write
    from p4q_edge.runtime.head_store import BUILT_IN, find_head, open_head

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
    help="list, add or export the class sets of an engine",
    add_arguments=_add_arguments,
    run=_run,
)
