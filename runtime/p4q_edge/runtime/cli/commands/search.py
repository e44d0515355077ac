"""`p4q-edge search`: the images nearest to a text or to a picture, among those that `embed` wrote."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from p4q_edge.runtime.cli.command import Command, Output
from p4q_edge.runtime.errors import ArtifactError, UsageError
from p4q_edge.runtime.storage import printable

if TYPE_CHECKING:
    import numpy as np

    from p4q_edge.runtime.artifacts import Card
    from p4q_edge.runtime.bulk import Embeddings


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What `search` was asked for: of `text` and `like` one is given."""

    file: Path
    engine: Path
    text: str | None = None
    like: Path | None = None
    head: str | None = None
    top_k: int = 10


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="EMBEDDINGS", help="file of p4q-edge embed: .npz or .parquet")
    parser.add_argument(
        "text",
        nargs="?",
        metavar="TEXT",
        help="what the images shall show: a class of the head",
    )
    parser.add_argument("--engine", type=Path, required=True, help="engine that the images were embedded with")
    parser.add_argument("--like", type=Path, metavar="IMAGE", help="look for images like this one instead of a text")
    parser.add_argument("--head", help="head whose classes are known (default: the one that embedded the images)")
    parser.add_argument("--top-k", type=int, default=10, help="images to name (default: %(default)s)")


def _request(args: argparse.Namespace) -> SearchRequest:
    if (args.text is None) == (args.like is None):
        raise UsageError("search needs either words or --like IMAGE: p4q-edge search EMBEDDINGS TEXT --engine ENGINE")
    if args.top_k < 1:
        raise UsageError(f"--top-k must be at least 1, got {args.top_k}.")
    return SearchRequest(
        file=args.file, engine=args.engine, text=args.text, like=args.like, head=args.head, top_k=args.top_k
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
    """Return the embedding of what is looked for, and what made it.

    Raises:
        UsageError: the text is no class of the head.
    """
    from p4q_edge.runtime.artifacts import base_head
    from p4q_edge.runtime.images import same_form

    name = request.head or embeddings.head
    if request.like is not None:
        from p4q_edge.runtime.classification import ZeroShotClassifier

        with ZeroShotClassifier(request.engine, heads=None if name == "built-in" else name) as classifier:
            return classifier.embed(request.like)[0], f"the engine, head {name}"
    text = str(request.text)
    head = base_head(request.engine, name)
    classes = {same_form(label).strip().casefold(): row for row, label in enumerate(head.class_names)}
    row = classes.get(same_form(text).strip().casefold())
    if row is not None:
        return head.text_embedding[row], f"class {head.class_names[row]} of head {name}"
    raise UsageError(
        f"{text!r} is no class of head {name}, which has {', '.join(head.class_names[:20])}. Other words need a head "
        "that knows them (p4q-edge head add, or teach); or look for images like one: --like IMAGE"
    )


COMMAND = Command(add_arguments=_add_arguments, request=_request, run=_run)
