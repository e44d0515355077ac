"""`p4q-edge classify`: names what images show."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from p4q_edge.runtime.choices import LEAST_FPS, CpuBackend, Fast
from p4q_edge.runtime.cli.answers import answer_document, answer_line, with_address
from p4q_edge.runtime.cli.arguments import name_or_path
from p4q_edge.runtime.cli.command import (
    Command,
    Output,
    add_backend,
    add_placement,
    as_json,
    failure_level,
    log_failures,
    write_line,
)
from p4q_edge.runtime.errors import InputError, P4QEdgeError, UsageError
from p4q_edge.runtime.storage import not_fetched
from p4q_edge.runtime.wording import number_of

if TYPE_CHECKING:
    import numpy as np

    from p4q_edge.runtime.bulk import FetchedImage, Silent, SortMode
    from p4q_edge.runtime.classification import Failure, Prediction, ZeroShotClassifier

    Answer = tuple[Prediction | Failure, np.ndarray | None]

logger = logging.getLogger(__name__)

DEFAULT_FPS = 10.0
"""Of an annotated film whose source does not say how many frames a second it has."""
MOST_WITHOUT_BAR = 50
"""Fewer images are done before a bar would tell anything."""


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
    backend: CpuBackend | None = None
    fast: Fast | None = None
    orient: bool | None = None
    skip_errors: bool = False
    stream: bool = False
    trusted_keys: tuple[Path, ...] = ()
    table: Path | None = None
    embeddings: bool = False
    sort_into: Path | None = None
    sort_mode: SortMode = "copy"
    annotate: Path | None = None
    max_fps: float | None = None
    allow_url: bool = False

    @property
    def into_files(self) -> bool:
        """Whether the answers go into files instead of onto the screen."""
        return self.table is not None or self.sort_into is not None


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine (.onnx or .plan) with its card beside it")
    parser.add_argument(
        "images",
        nargs="+",
        type=name_or_path,
        help="image files, folders or globs; - reads one image from stdin; or one "
        "film, stream (rtsp://) or camera (cam:0), with OpenCV",
    )
    parser.add_argument(
        "--allow-url", action="store_true", help="also fetch images at addresses (http://, https://) that are named"
    )
    parser.add_argument("--top-k", type=int, default=5, help="classes in each answer (default: %(default)s)")
    parser.add_argument(
        "--threshold", type=float, help="lowest score of a known answer (default: as fitted for the head)"
    )
    parser.add_argument(
        "--head", type=name_or_path, help="head to use instead of the built-in one: a name, or a file (.safetensors)"
    )
    add_placement(parser)
    add_backend(parser)
    parser.add_argument("--fast", choices=get_args(Fast), help="shrink large images faster and less exactly")
    parser.add_argument(
        "--orient",
        action=argparse.BooleanOptionalAction,
        help="turn images as their EXIF orientation says, or leave them (default: as the card says)",
    )
    parser.add_argument("--skip-errors", action="store_true", help="exit with 0 even if images could not be used")
    parser.add_argument(
        "--trusted-key",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="load only what this public key signed; may be repeated (default: keys of P4Q_EDGE_TRUSTED_KEYS, if set)",
    )
    _add_places(parser)


def _add_places(parser: argparse.ArgumentParser) -> None:
    """Add where answers go, and how films are looked at."""
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the answers to a table: .csv, .jsonl or .parquet"
    )
    parser.add_argument("--embeddings", action="store_true", help="with --output: add a column of embeddings")
    parser.add_argument(
        "--sort-into",
        type=Path,
        metavar="DIR",
        help="put images into DIR/CLASS or DIR/unknown; overwrites nothing",
    )
    parser.add_argument("--link", action="store_true", help="with --sort-into: make symbolic links instead of copies")
    parser.add_argument(
        "--annotate", type=Path, metavar="FILM", help="of a film or camera: write it with the answers drawn into it"
    )
    parser.add_argument("--max-fps", type=float, help="of a film or camera: at most this many frames per second")
    parser.add_argument("--stream", action="store_true", help="with --json: one line of JSON for each image, at once")


def _request(args: argparse.Namespace) -> ClassifyRequest:
    if args.stream and not args.json:
        raise UsageError(
            "--stream writes JSON lines and needs --json; without it answers come as they are found anyway."
        )
    _refuse_contradictions(args)
    return ClassifyRequest(
        engine=args.engine,
        images=tuple(args.images),
        top_k=args.top_k,
        threshold=args.threshold,
        head=args.head,
        device=args.device,
        threads=args.threads,
        backend=args.backend,
        fast=args.fast,
        orient=args.orient,
        skip_errors=args.skip_errors,
        stream=args.stream,
        trusted_keys=tuple(args.trusted_key),
        table=args.output,
        embeddings=args.embeddings,
        sort_into=args.sort_into,
        sort_mode="link" if args.link else "copy",
        annotate=args.annotate,
        max_fps=args.max_fps,
        allow_url=args.allow_url,
    )


def _refuse_contradictions(args: argparse.Namespace) -> None:
    if args.max_fps is not None and args.max_fps < LEAST_FPS:
        raise UsageError(f"--max-fps must be at least {LEAST_FPS:g}, about one image a day, got {args.max_fps:g}")
    if args.stream and (args.output or args.sort_into):
        raise UsageError("--stream writes answers to stdout, --output and --sort-into to files. Leave one out.")
    if args.embeddings and not args.output:
        raise UsageError("--embeddings adds a column to a table: add --output FILE.parquet, or use p4q-edge embed.")
    if args.link and not args.sort_into:
        raise UsageError("--link says how --sort-into puts images into its folder. Add --sort-into DIR.")
    if args.sort_into and "-" in args.images:
        raise UsageError("an image on stdin has no name to be sorted by. Name files or folders with --sort-into.")
    for images in args.images if args.sort_into else ():
        # Of a pattern what `**` stands below; nothing else reaches into folders that are made.
        base = Path(images) if Path(images).is_dir() else Path(images.partition("**")[0])
        if base.is_dir() and args.sort_into.resolve().is_relative_to(base.resolve()):
            raise UsageError(
                f"--sort-into {args.sort_into} lies in {images}, whose images are named: copies there would be images "
                "of the next run. Name a folder outside of it."
            )


def _run(request: ClassifyRequest, output: Output) -> int:
    from p4q_edge.runtime.classification import Failure
    from p4q_edge.runtime.images import expand
    from p4q_edge.runtime.progress import tracked

    source = _film(request)
    if source is not None:
        return _run_film(request, output, source)
    silent: Silent = {}
    given = [_opened(image, request, silent) for image in request.images]
    # Before the engine is loaded: an empty folder, a wrong pattern, or a table that is in the way shows at once.
    images = list(expand(given))
    _require_writable(request, output)
    failed = 0

    def met(answers: Iterable[Answer]) -> Iterator[Answer]:
        nonlocal failed
        if _has_bar(request, images):
            answers = tracked(answers, "classify", total=len(images))
        for image, (found, embedding) in zip(images, answers, strict=True):
            answer = with_address(image, found)
            if isinstance(answer, Failure):
                failed += 1
                logger.log(failure_level(skipped=request.skip_errors), "%s", answer.error)
            yield answer, embedding

    with _opened_classifier(request) as classifier:
        answers = met(classifier.answers(images, top_k=request.top_k, on_error="yield"))
        if request.into_files:
            _into_files(request, output, answers, classifier.class_names)
        else:
            _onto_screen(request, output, answers)
    if not failed:
        return 0
    log_failures(logger, failed, len(images), skipped=request.skip_errors)
    if request.skip_errors:
        return 0
    return InputError.exit_code if failed == len(images) else P4QEdgeError.exit_code


def _opened_classifier(request: ClassifyRequest) -> ZeroShotClassifier:
    from p4q_edge.runtime.classification import RuntimeOptions, ZeroShotClassifier

    return ZeroShotClassifier(
        request.engine,
        heads=request.head,
        device=request.device,
        threshold=request.threshold,
        options=RuntimeOptions(
            threads=request.threads, backend=request.backend, fast=request.fast, orient=request.orient
        ),
        trusted_keys=request.trusted_keys or None,
    )


def _film(request: ClassifyRequest) -> int | str | None:
    """Return the film, stream or camera that is to be looked at; None where images are.

    Raises:
        UsageError: there are others beside it, or options that only the other kind has.
    """
    from p4q_edge.runtime.images import video

    found = [source for source in map(video.named_source, request.images) if source is not None]
    if not found:
        if request.annotate is not None or request.max_fps is not None:
            raise UsageError(
                "--annotate and --max-fps are for a film or a camera, and these are images. Leave them out."
            )
        return None
    if not video.is_live(found[0]) and (said := not_fetched(str(found[0]))):
        raise UsageError(said)  # images are fetched at most
    if len(request.images) > 1:
        raise UsageError("one film, stream or camera at a time; classify the others separately.")
    if request.sort_into or request.embeddings:
        raise UsageError("--sort-into and --embeddings are for images, and this is a film. Leave them out.")
    return found[0]


def _run_film(request: ClassifyRequest, output: Output, source: int | str) -> int:
    from p4q_edge.runtime.bulk import Annotator, require_film
    from p4q_edge.runtime.images import video

    if video.is_live(source) and (request.table is not None or (output.json and not request.stream)):
        raise UsageError(
            "a camera or stream has no end at which a table or document could be written. For one line of JSON a "
            "frame: --json --stream"
        )
    _require_writable(request, output)
    if request.annotate is not None:
        require_film(request.annotate, source=source, force=output.force)
    fps = video.film_fps(source) or DEFAULT_FPS
    with (
        _opened_classifier(request) as classifier,
        Annotator(request.annotate, fps=min(fps, request.max_fps or fps))
        if request.annotate
        else nullcontext() as film,
    ):

        def answers() -> Iterator[Answer]:
            frames = classifier.stream(source, top_k=request.top_k, max_fps=request.max_fps)
            for number, (frame, prediction) in enumerate(frames):
                if film is not None:
                    film.write(frame, prediction)  # type: ignore[arg-type]
                yield dataclasses.replace(prediction, source=f"{request.images[0]}#{number}"), None

        if request.into_files:
            _into_files(request, output, answers(), classifier.class_names)
        else:
            _onto_screen(request, output, answers())
    return 0


def _has_bar(request: ClassifyRequest, images: Sequence[object]) -> bool:
    """Return whether there are enough images for a bar, and no answers on the screen for it to stand between."""
    return len(images) > MOST_WITHOUT_BAR and (request.into_files or not sys.stdout.isatty())


def _require_writable(request: ClassifyRequest, output: Output) -> None:
    if request.table is not None:
        from p4q_edge.runtime.bulk import require_table

        require_table(request.table, embeddings=request.embeddings, force=output.force)


def _onto_screen(request: ClassifyRequest, output: Output, answers: Iterable[Answer]) -> None:
    together = output.json and not request.stream
    found = []
    for answer, _ in answers:
        if together:  # else a camera would fill the memory
            found.append(answer)
        _show(request, output, answer)
    if together:
        from p4q_edge.runtime.cli.documents import ClassifyDocument

        predictions = tuple(map(answer_document, found))
        output.write(document=ClassifyDocument(engine=str(request.engine), predictions=predictions), text="")


def _into_files(
    request: ClassifyRequest, output: Output, answers: Iterable[Answer], class_names: tuple[str, ...]
) -> None:
    from p4q_edge.runtime.bulk import Row, Sorter, write_table
    from p4q_edge.runtime.classification import Failure
    from p4q_edge.runtime.cli.bulk_documents import ClassifiedDocument

    sorter = None if request.sort_into is None else Sorter(request.sort_into, class_names, mode=request.sort_mode)
    counts: Counter[str] = Counter()

    def rows() -> Iterator[Row]:
        for answer, embedding in answers:
            path = answer.source or ""
            if isinstance(answer, Failure):
                counts["failed"] += 1
                yield Row(path=path, error=str(answer.error))
                continue
            counts["known" if answer.known else "unknown"] += 1
            if sorter is not None and answer.source is not None:
                sorter.put(Path(answer.source), answer.label if answer.known else None)
            yield Row(path=path, label=answer.label, score=answer.score, known=answer.known, embedding=embedding)

    if request.table is None:
        for _ in rows():
            pass
    else:
        write_table(request.table, rows(), embeddings=request.embeddings, force=output.force)
    document = ClassifiedDocument(
        engine=str(request.engine),
        table=None if request.table is None else str(request.table),
        sorted_into=None if request.sort_into is None else str(request.sort_into),
        known=counts["known"],
        unknown=counts["unknown"],
        failed=counts["failed"],
    )
    places = " and ".join(str(place) for place in (request.table, request.sort_into) if place is not None)
    text = (
        f"{places}  {number_of(counts['known'], 'image')} known, {counts['unknown']} unknown, {counts['failed']} "
        "not usable"
    )
    output.write(document=document, text=text)


def _opened(image: str, request: ClassifyRequest, silent: Silent) -> str | bytes | FetchedImage:
    from p4q_edge.runtime.bulk import FetchedImage, image_at

    found = image_at(image, allow_url=request.allow_url, silent=silent)
    if isinstance(found, FetchedImage) and request.sort_into is not None:
        raise UsageError(f"{image} is no file to put into a folder. Fetch it first, or leave out --sort-into.")
    return sys.stdin.buffer.read() if image == "-" else found


def _show(request: ClassifyRequest, output: Output, answer: Prediction | Failure) -> None:
    """Write an answer as soon as it is there, unless all belong into one document."""
    from p4q_edge.runtime.classification import Failure

    if request.stream:
        write_line(as_json(answer_document(answer)))
    elif not output.json and not isinstance(answer, Failure):
        write_line(answer_line(answer))
    sys.stdout.flush()


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
