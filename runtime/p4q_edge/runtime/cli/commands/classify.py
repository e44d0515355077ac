"""`p4q-edge classify`: names what images show."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from p4q_edge.runtime.choices import Fast
from p4q_edge.runtime.cli.command import Command, write_result

if TYPE_CHECKING:
    from p4q_edge.runtime.classification import Prediction


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine (.onnx or .plan) with its card beside it")
    parser.add_argument("images", nargs="+", help="image files, folders or globs; - reads one image from stdin")
    parser.add_argument("--top-k", type=int, default=5, help="classes in each answer (default: %(default)s)")
    parser.add_argument(
        "--threshold", type=float, help="least score of a known answer (default: as fitted for the head)"
    )
    parser.add_argument("--head", help="head to use instead of the built-in one: a name, or a file (.safetensors)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of a CPU engine (default: one a core)")
    parser.add_argument("--fast", choices=get_args(Fast), help="shrink large images faster, not exactly")
    parser.add_argument(
        "--orient",
        action=argparse.BooleanOptionalAction,
        help="turn images as their EXIF orientation says, or leave them (default: as the card says)",
    )


def _run(args: argparse.Namespace) -> int:
    from p4q_edge.runtime.classification import RuntimeOptions, ZeroShotClassifier

    options = RuntimeOptions(threads=args.threads, fast=args.fast, orient=args.orient)
    images = [sys.stdin.buffer.read() if image == "-" else image for image in args.images]
    with ZeroShotClassifier(
        args.engine, heads=args.head, device=args.device, threshold=args.threshold, options=options
    ) as classifier:
        predictions = list(classifier.iterate(images, top_k=args.top_k))
    document = {"engine": str(args.engine), "predictions": [_document(item) for item in predictions]}
    write_result(args, document=document, text="\n".join(_line(item) for item in predictions))
    return 0


def _document(prediction: Prediction) -> dict[str, object]:
    return {
        "source": prediction.source,
        "label": prediction.label,
        "score": prediction.score,
        "known": prediction.known,
        "accepted": list(prediction.accepted),
        "topk": prediction.to_dict(),
    }


def _line(prediction: Prediction) -> str:
    classes = "  ".join(f"{label} {score:.3f}" for label, score in prediction.topk)
    unknown = "" if prediction.known else "unknown? "
    return f"{prediction.source or '-'}: {unknown}{classes}"


COMMAND = Command(name="classify", help="name what images show", add_arguments=_add_arguments, run=_run)
