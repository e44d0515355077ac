"""What `classify` says of an image: a document, or a line."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from p4q_edge.runtime.storage import printable

if TYPE_CHECKING:
    from p4q_edge.runtime.classification import Failure, Prediction
    from p4q_edge.runtime.cli.documents import PathAnswer


def answer_document(answer: Prediction | Failure) -> PathAnswer:
    """Return an answer, or what is wrong with an image, as a part of a document."""
    from p4q_edge.runtime.classification import Failure
    from p4q_edge.runtime.cli.documents import ClassScore, ImageError, PathAnswer

    if isinstance(answer, Failure):
        error = ImageError(type=type(answer.error).__name__, message=str(answer.error))
        return PathAnswer(source=answer.source, error=error)
    return PathAnswer(
        source=answer.source,
        label=answer.label,
        score=answer.score,
        known=answer.known,
        accepted=answer.accepted,
        topk=tuple(ClassScore(label=label, score=score) for label, score in answer.topk),
    )


def answer_line(prediction: Prediction) -> str:
    """Return an answer as a line."""
    classes = "  ".join(f"{printable(label)} {score:.3f}" for label, score in prediction.topk)
    unknown = "" if prediction.known else "unknown? "
    return f"{printable(prediction.source or '-')}: {unknown}{classes}"


def with_address(image: object, answer: Prediction | Failure) -> Prediction | Failure:
    """Return an answer with the address of an image that was fetched, which the classifier knows as bytes."""
    from p4q_edge.runtime.bulk import FetchedImage
    from p4q_edge.runtime.classification import Failure
    from p4q_edge.runtime.errors import InputError

    if not isinstance(image, FetchedImage):
        return answer
    if isinstance(answer, Failure):
        said = str(answer.error)
        if not said.startswith(image.told):
            said = f"{image.told}: {said}"
        return Failure(error=InputError(said), source=image.address)
    return dataclasses.replace(answer, source=image.address)
