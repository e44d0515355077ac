"""`p4q-edge embed`: write the embeddings of many images to a file, to search in them later."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from p4q_edge.runtime.choices import CpuBackend
from p4q_edge.runtime.cli.arguments import name_or_path
from p4q_edge.runtime.cli.command import Command, Output, add_backend, add_placement, failure_level, log_failures
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.wording import number_of, one_or_many

if TYPE_CHECKING:
    from p4q_edge.runtime.bulk import Embeddings
    from p4q_edge.runtime.images import ImageLike

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """What `embed` was asked for."""

    engine: Path
    images: tuple[str, ...]
    file: Path
    head: str | None = None
    plain: bool = False
    device: str = "auto"
    threads: int | None = None
    backend: CpuBackend | None = None
    skip_errors: bool = False


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, help="engine (.onnx or .plan) with its card beside it")
    parser.add_argument("images", nargs="+", type=name_or_path, help="image files, folders or globs")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="file to write: .npz or .parquet"
    )
    parser.add_argument(
        "--head", type=name_or_path, help="head whose adapter is used: a name, or a file (default: the built-in one)"
    )
    parser.add_argument(
        "--plain", action="store_true", help="use no adapter, for searches by words that are not classes of a head"
    )
    add_placement(parser)
    add_backend(parser)
    parser.add_argument("--skip-errors", action="store_true", help="exit with 0 even if some images could not be used")


def _request(args: argparse.Namespace) -> EmbedRequest:
    if args.plain and args.head:
        raise UsageError("--plain uses no adapter, and --head names whose. Leave one out.")
    return EmbedRequest(
        engine=args.engine,
        images=tuple(args.images),
        file=args.output,
        head=args.head,
        plain=args.plain,
        device=args.device,
        threads=args.threads,
        backend=args.backend,
        skip_errors=args.skip_errors,
    )


def _run(request: EmbedRequest, output: Output) -> int:
    from p4q_edge.runtime.bulk import require_embeddings_file, write_embeddings
    from p4q_edge.runtime.cli.bulk_documents import EmbedDocument
    from p4q_edge.runtime.images import expand

    images = list(expand(request.images))
    require_embeddings_file(request.file, force=output.force)
    embeddings = _embeddings_of(request, images)
    write_embeddings(request.file, embeddings, force=output.force)
    failed = len(images) - len(embeddings.paths)
    document = EmbedDocument(
        output=str(request.file),
        head=embeddings.head,
        images=len(embeddings.paths),
        dim=embeddings.rows.shape[1],
        failed=failed,
    )
    text = (
        f"{request.file}  {number_of(document.images, 'embedding')} of {number_of(document.dim, 'number')}, head "
        f"{embeddings.head}"
    )
    output.write(document=document, text=text)
    if failed:
        log_failures(logger, failed, len(images), skipped=request.skip_errors)
    return 1 if failed and not request.skip_errors else 0


def _embeddings_of(request: EmbedRequest, images: list[ImageLike]) -> Embeddings:
    """Return the embeddings of the images that can be used; the others are told of.

    Raises:
        InputError: none of them can be used.
    """
    import numpy as np

    from p4q_edge.runtime.artifacts import BUILT_IN
    from p4q_edge.runtime.bulk import PLAIN, Embeddings, adapter_of, use_plain
    from p4q_edge.runtime.classification import Failure, RuntimeOptions, ZeroShotClassifier
    from p4q_edge.runtime.progress import tracked

    paths: list[str] = []
    rows: list[np.ndarray] = []
    options = RuntimeOptions(threads=request.threads, backend=request.backend)
    with ZeroShotClassifier(request.engine, heads=request.head, device=request.device, options=options) as classifier:
        if request.plain:
            use_plain(classifier)
        answers = classifier.answers(images, top_k=1, on_error="yield")
        for answer, embedding in tracked(answers, "embed", total=len(images)):
            if isinstance(answer, Failure) or embedding is None:
                problem = answer.error if isinstance(answer, Failure) else answer
                logger.log(failure_level(skipped=request.skip_errors), "%s", problem)
                continue
            paths.append(answer.source or "")
            rows.append(embedding)
        if not rows:
            count = len(images)
            none = one_or_many(count, "the one image could not", f"none of the {number_of(count, 'image')} could")
            raise InputError(f"{none} be used. Repair {one_or_many(count, 'it', 'them')}, or name others.")
        return Embeddings(
            paths=tuple(paths),
            rows=np.stack(rows).astype(np.float32),
            head=classifier.active_head,
            weights_sha256=classifier.card.model.weights_sha256,
            adapter_sha256=adapter_of(request.engine, PLAIN if request.plain else request.head or BUILT_IN),
        )


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
