"""The options of `p4q-edge build` for an engine of classes that nobody has labelled images of."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from p4q_edge.runtime.cli.arguments import name_or_path
from p4q_edge.runtime.errors import UsageError

if TYPE_CHECKING:
    from p4q_edge.runtime.builders import ZeroShotRequest

FILES_OF_NAMES = (".txt", ".json")
_OTHERS = ("calibration_images", "model", "pretrained")


def add_zero_shot(parser: argparse._ArgumentGroup) -> None:
    """Add the options; None where they are not given."""
    parser.add_argument(
        "--class-names",
        type=name_or_path,
        metavar="NAME,...",
        help="classes to tell apart, or a .txt or .json file of them; nothing is learned",
    )
    parser.add_argument(
        "--calibration-images",
        type=name_or_path,
        metavar="PATH",
        help="images without labels, as the engine will see them, which ranges are measured on: a folder, or a "
        "bundle for its golden samples (default: the recipe's images, or else drawn ones)",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="a CLIP of open_clip, as p4q-edge models lists them (default: the recipe's)"
    )
    parser.add_argument("--pretrained", type=name_or_path, metavar="TAG", help="weights of --model: a tag, or a file")


def zero_shot_request(args: argparse.Namespace) -> ZeroShotRequest | None:
    """Return what the options ask for; None without --class-names.

    Raises:
        UsageError: one of the others was given alone, or names are missing.
    """
    from p4q_edge.runtime.builders import ZeroShotRequest

    given = [name for name in _OTHERS if getattr(args, name) is not None]
    if args.class_names is None:
        if given:
            option = "--" + given[0].replace("_", "-")
            raise UsageError(
                f"{option} is for an engine of classes without labelled images. Add --class-names NAME,NAME,... or set "
                "it in a recipe: p4q-edge build --print-config"
            )
        return None
    if args.pretrained is not None and args.model is None:
        raise UsageError("--pretrained names the weights of --model, which is missing. Add it.")
    if args.log_dir is not None:
        raise UsageError("--log-dir has no effect beside --class-names, with which nothing is learned. Leave it out.")
    return ZeroShotRequest(
        class_names=_class_names(args.class_names),
        calibration=args.calibration_images,
        model=args.model,
        pretrained=args.pretrained or "",
    )


def _class_names(text: str) -> tuple[str, ...] | Path:
    if text.lower().endswith(FILES_OF_NAMES):
        return Path(text)
    names = tuple(name.strip() for name in text.split(","))
    if len(names) < 2 or not all(names):
        raise UsageError(
            f'--class-names takes at least 2 names between commas, such as "cup,plate"; got {text!r}. Names with '
            "commas go into a .txt file, one a line."
        )
    return names
