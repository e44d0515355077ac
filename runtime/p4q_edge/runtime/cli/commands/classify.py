"""`p4q-edge classify`: names what images show."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from p4q_edge.runtime.choices import Fast
from p4q_edge.runtime.cli.command import Command, Output, as_json, write_line
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.storage import printable

if TYPE_CHECKING:
    from p4q_edge.runtime.classification import Failure, Prediction
    from p4q_edge.runtime.cli.documents import ImageAnswer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClassifyRequest:
    """What `classify` was asked for; of `images`, `-` is one image on stdin."""

    engine: Path
    images: tuple[str, ...]
    top_k: int = 5
    threshold: float | None = None
    head: str | None = None
    device: str = "auto"
    threads: int | None = None
    fast: Fast | None = None
    orient: bool | None = None
    skip_errors: bool = False
    stream: bool = False
    trusted_keys: tuple[Path, ...] = ()


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
    parser.add_argument("--skip-errors", action="store_true", help="exit with 0 although some images could not be used")
    parser.add_argument(
        "--trusted-key",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="load only what this public key signed; may be repeated (default: keys of P4Q_EDGE_TRUSTED_KEYS, if set)",
    )
    parser.add_argument("--stream", action="store_true", help="with --json: one line of JSON for each image, at once")


def _request(args: argparse.Namespace) -> ClassifyRequest:
    if args.stream and not args.json:
        raise UsageError(
            "--stream writes JSON lines and needs --json; without it answers come as they are found anyway."
        )
    return ClassifyRequest(
        engine=args.engine,
        images=tuple(args.images),
        top_k=args.top_k,
        threshold=args.threshold,
        head=args.head,
        device=args.device,
        threads=args.threads,
        fast=args.fast,
        orient=args.orient,
        skip_errors=args.skip_errors,
        stream=args.stream,
        trusted_keys=tuple(args.trusted_key),
    )


def _run(request: ClassifyRequest, output: Output) -> int:
    from p4q_edge.runtime.classification import Failure, RuntimeOptions, ZeroShotClassifier
    from p4q_edge.runtime.images import expand

    options = RuntimeOptions(threads=request.threads, fast=request.fast, orient=request.orient)
    given = [_opened(image) for image in request.images]
    # Listed before the engine is loaded: an empty folder or a wrong pattern shows at once.
    images = list(expand(given))
    answers: list[Prediction | Failure] = []
    with ZeroShotClassifier(
        request.engine,
        heads=request.head,
        device=request.device,
        threshold=request.threshold,
        options=options,
        trusted_keys=request.trusted_keys or None,
    ) as classifier:
        for answer in classifier.iterate(images, top_k=request.top_k, on_error="yield"):
            if isinstance(answer, Failure) and len(images) == 1:
                raise answer.error
            answers.append(answer)
            _show(request, output, answer)
    if output.json and not request.stream:
        from p4q_edge.runtime.cli.documents import ClassifyDocument

        predictions = tuple(map(_document, answers))
        output.write(document=ClassifyDocument(engine=str(request.engine), predictions=predictions), text="")
    failed = sum(isinstance(answer, Failure) for answer in answers)
    if failed:
        logger.error(
            "%d of %d images could not be used. Repair or remove them, or add --skip-errors", failed, len(images)
        )
    return 1 if failed and not request.skip_errors else 0


def _opened(image: str) -> str | bytes:
    if image.startswith(("http://", "https://")):
        raise UsageError(
            f"{image} is an address, and nothing is fetched from networks. Fetch it first: curl -O {image}"
        )
    return sys.stdin.buffer.read() if image == "-" else image


def _show(request: ClassifyRequest, output: Output, answer: Prediction | Failure) -> None:
    """Write an answer as soon as it is there, unless all belong into one document."""
    from p4q_edge.runtime.classification import Failure

    if isinstance(answer, Failure):
        logger.error("%s", answer.error)
    if request.stream:
        write_line(as_json(_document(answer)))
    elif not output.json and not isinstance(answer, Failure):
        write_line(_line(answer))
    sys.stdout.flush()


def _document(answer: Prediction | Failure) -> ImageAnswer:
    from p4q_edge.runtime.classification import Failure
    from p4q_edge.runtime.cli.documents import ImageAnswer, ImageError, LabelScore

    if isinstance(answer, Failure):
        error = ImageError(type=type(answer.error).__name__, message=str(answer.error))
        return ImageAnswer(source=answer.source, error=error)
    return ImageAnswer(
        source=answer.source,
        label=answer.label,
        score=answer.score,
        known=answer.known,
        accepted=answer.accepted,
        topk=tuple(LabelScore(label=label, score=score) for label, score in answer.topk),
    )


def _line(prediction: Prediction) -> str:
    classes = "  ".join(f"{printable(label)} {score:.3f}" for label, score in prediction.topk)
    unknown = "" if prediction.known else "unknown? "
    return f"{printable(prediction.source or '-')}: {unknown}{classes}"


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
