"""`POST /classify` and `POST /embed`: each image of a request is answered for itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.http.api.uploads import images_of, question_of, service_of
from p4q_edge.runtime.http.documents import (
    ClassifyAnswer,
    EmbedAnswer,
    ImageAnswer,
    ImageEmbedding,
    LabelScore,
    Problem,
)
from p4q_edge.runtime.http.service import Answered, Question, Service

JSON = "application/json"
_Item = TypeVar("_Item", ImageAnswer, ImageEmbedding)


def document(content: msgspec.Struct, status: int = 200, **headers: str) -> Response:
    """Return a structure as a response."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(msgspec.json.encode(content), status, named, JSON)


async def classify(request: Request) -> Response:
    """Name what the images of a request show."""
    question, images = question_of(request, ("head", "top_k", "threshold")), await images_of(request)

    def named(answered: Answered) -> ImageAnswer:
        prediction, ranking = answered.prediction(question), answered.ranking(question)
        topk = tuple(
            LabelScore(label=label, score=score, threshold=ranking.threshold_of(label))
            for label, score in prediction.topk
        )
        return ImageAnswer(label=prediction.label, score=prediction.score, known=prediction.known, topk=topk)

    started = time.perf_counter()
    answers = await _each(service_of(request), question, images, named, lambda error: ImageAnswer(error=error))
    timing = f"answer;dur={1000 * (time.perf_counter() - started):.2f}"
    content = ClassifyAnswer(head=question.head, predictions=tuple(answers))
    return document(content, _status(answers), server_timing=timing)


async def embed(request: Request) -> Response:
    """Return the embeddings of the images of a request."""
    question, images = question_of(request, ("head",)), await images_of(request)
    service = service_of(request)

    def embedded(answered: Answered) -> ImageEmbedding:
        return ImageEmbedding(embedding=tuple(answered.embedding.tolist()))

    answers = await _each(service, question, images, embedded, lambda error: ImageEmbedding(error=error))
    dim = service.classifier.card.embedding_dim
    return document(EmbedAnswer(head=question.head, dim=dim, embeddings=tuple(answers)), _status(answers))


async def _each(
    service: Service,
    question: Question,
    images: Sequence[bytes],
    good: Callable[[Answered], _Item],
    bad: Callable[[Problem], _Item],
) -> list[_Item]:
    """Return what each image gives; one that cannot be used harms no other."""

    async def one(answer: Awaitable[Answered]) -> _Item:
        try:
            found = good(await answer)
        except InputError as error:
            service.metrics.images.add("refused")
            return bad(Problem(type=type(error).__name__, message=str(error)))
        service.metrics.images.add("answered")
        return found

    return await asyncio.gather(*(one(service.answer(image, head=question.head)) for image in images))


def _status(answers: Sequence[ImageAnswer] | Sequence[ImageEmbedding]) -> int:
    """Return 200 where at least one image could be used, else 422."""
    return 200 if any(answer.error is msgspec.UNSET for answer in answers) else 422
