"""`p4q-edge search`: the images nearest to a text or to a picture, among those that `embed` wrote."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from p4q_edge.runtime.choices import CpuBackend
from p4q_edge.runtime.cli.arguments import name_or_path
from p4q_edge.runtime.cli.command import Command, Output, add_backend, has_toolkit, toolkit_function
from p4q_edge.runtime.errors import ArtifactError, UsageError
from p4q_edge.runtime.storage import printable

if TYPE_CHECKING:
    import numpy as np

    from p4q_edge.runtime.artifacts import Card
    from p4q_edge.runtime.bulk import Embeddings


logger = logging.getLogger(__name__)

SHOWN_CLASSES = 20


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What `search` was asked for: of `text` and `like` one is given."""

    file: Path
    engine: Path
    text: str | None = None
    like: Path | None = None
    head: str | None = None
    top_k: int = 10
    recipe: Path | None = None
    backend: CpuBackend | None = None


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="EMBEDDINGS", help="file of p4q-edge embed: .npz or .parquet")
    parser.add_argument(
        "text",
        nargs="?",
        metavar="TEXT",
        help="what the images should show: a class of the head, or with the toolkit any words",
    )
    parser.add_argument("--engine", type=Path, required=True, help="engine that the images were embedded with")
    parser.add_argument("--like", type=Path, metavar="IMAGE", help="look for images like this one instead of a text")
    parser.add_argument(
        "--head", type=name_or_path, help="head whose classes are known (default: the one that embedded the images)"
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        help="with the toolkit: recipe of the engine, whose text tower reads other words (default: of ENGINE's .run)",
    )
    parser.add_argument("--top-k", type=int, default=10, help="number of images to list (default: %(default)s)")
    add_backend(parser)


def _request(args: argparse.Namespace) -> SearchRequest:
    if args.text is not None and not args.text.strip():
        raise UsageError("expected words for what the images should show, got an empty text")
    if (args.text is None) == (args.like is None):
        raise UsageError("search needs either words or --like IMAGE: p4q-edge search EMBEDDINGS TEXT --engine ENGINE")
    if args.backend is not None and args.like is None:
        raise UsageError("--backend says where the engine runs, and only --like IMAGE runs it. Leave --backend out.")
    if args.top_k < 1:
        raise UsageError(f"--top-k must be at least 1, got {args.top_k}.")
    return SearchRequest(
        file=args.file,
        engine=args.engine,
        text=args.text,
        like=args.like,
        head=args.head,
        top_k=args.top_k,
        recipe=args.recipe,
        backend=args.backend,
    )


def _run(request: SearchRequest, output: Output) -> int:
    from p4q_edge.runtime.artifacts import read_card
    from p4q_edge.runtime.bulk import read_embeddings
    from p4q_edge.runtime.cli.bulk_documents import FoundImage, SearchDocument

    embeddings, card = read_embeddings(request.file), read_card(request.engine)
    if embeddings.weights_sha256 not in ("", card.model.weights_sha256):
        raise ArtifactError(
            f"{request.file} was made with another model than that of {request.engine}. Name its engine, or embed the "
            "images again."
        )
    _refuse_another_adapter(request, embeddings)
    query, by = _query(request, embeddings, card)
    found = embeddings.nearest(query, request.top_k)
    lines = [f"{one.cosine:.3f}  {printable(one.path)}" for one in found]
    document = SearchDocument(
        query=request.text if request.text is not None else str(request.like),
        by=by,
        images=len(embeddings.paths),
        found=tuple(FoundImage(path=one.path, cosine=one.cosine) for one in found),
    )
    output.write(document=document, text="\n".join(lines))
    return 0


def _query(request: SearchRequest, embeddings: Embeddings, card: Card) -> tuple[np.ndarray, str]:
    """Return the embedding of what is looked for, and what made it."""
    from p4q_edge.runtime.bulk import PLAIN

    name = request.head or _recorded_head(request, embeddings)
    if request.like is not None:
        return _of_picture(request, request.like, name), f"the engine, head {name}"
    text = str(request.text)
    classes = _classes(request.engine, name)
    found = classes.get(_form(text))
    if found is not None:
        label, row = found
        return row, f"class {label} of head {name}"
    recipe = request.recipe or request.engine.with_suffix(".run") / "recipe.toml"
    if not has_toolkit() or (request.recipe is None and not recipe.is_file()):
        known = ", ".join(label for label, _ in list(classes.values())[:SHOWN_CLASSES])
        raise UsageError(
            f"{text!r} is not a class of head {name}, which has {known or 'none'}. Other words need the toolkit and "
            "the "
            "recipe that the engine was built from: --recipe FILE; or look for images like one: --like IMAGE"
        )
    if name != PLAIN:
        logger.warning(
            "the images went through the adapter of head %s, which was learned for its classes; for other words "
            "embed them with --plain",
            name,
        )
    read = toolkit_function("text_embedding", missing="reading words needs the toolkit.")
    embedding: np.ndarray = read(recipe, text, weights_sha256=card.model.weights_sha256)
    return embedding, "the text tower"


def _refuse_another_adapter(request: SearchRequest, embeddings: Embeddings) -> None:
    """Raise `ArtifactError` where images and query would go through different adapters, as those of two engines."""
    from p4q_edge.runtime.bulk import adapter_of

    name = request.head or _recorded_head(request, embeddings)
    own = adapter_of(request.engine, name)
    if own and embeddings.adapter_sha256 not in ("", own):
        raise ArtifactError(
            f"the images in {request.file} went through another adapter than that of head {name} of {request.engine}: "
            "cosines of the two mean nothing. Name the engine and head that embedded them, or embed them again"
        )


def _recorded_head(request: SearchRequest, embeddings: Embeddings) -> str:
    """Return the head that a file of embeddings names, which may be one of the engine's alone: never a path.

    Raises:
        UsageError: the engine has none of this name.
    """
    from p4q_edge.runtime.artifacts import BUILT_IN, stored_heads
    from p4q_edge.runtime.bulk import PLAIN

    stored = stored_heads(request.engine)
    if embeddings.head not in (BUILT_IN, PLAIN, *stored):
        raise UsageError(
            f"the images in {request.file} were embedded with head {embeddings.head!r}, which {request.engine} lacks; "
            f"it has {', '.join((BUILT_IN, *stored))}. Name its file: --head FILE"
        )
    return embeddings.head


def _form(text: str) -> str:
    from p4q_edge.runtime.images import same_form

    return same_form(text).strip().casefold()


def _classes(engine: Path, name: str) -> dict[str, tuple[str, np.ndarray]]:
    """Return the classes of a head with their embeddings; of plain embeddings none."""
    from p4q_edge.runtime.artifacts import base_head
    from p4q_edge.runtime.bulk import PLAIN

    if name == PLAIN:
        return {}
    head = base_head(engine, name)
    pairs = zip(head.class_names, head.text_embedding, strict=True)
    return {_form(label): (label, row) for label, row in pairs}


def _of_picture(request: SearchRequest, picture: Path, name: str) -> np.ndarray:
    from p4q_edge.runtime.artifacts import BUILT_IN
    from p4q_edge.runtime.bulk import PLAIN, use_plain
    from p4q_edge.runtime.classification import RuntimeOptions, ZeroShotClassifier

    head, options = None if name in (BUILT_IN, PLAIN) else name, RuntimeOptions(backend=request.backend)
    with ZeroShotClassifier(request.engine, heads=head, options=options) as classifier:
        if name == PLAIN:
            use_plain(classifier)
        rows: np.ndarray = classifier.embed(picture)
    row: np.ndarray = rows[0]
    return row


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
