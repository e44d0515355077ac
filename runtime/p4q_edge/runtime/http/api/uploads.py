"""Reading what a request holds: images, names and numbers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.http.service import Question, Service
from p4q_edge.runtime.http.settings import MAX_TOP_K

MULTIPART = "multipart/form-data"
_MAX_PHOTOGRAPHS = 2000


def service_of(request: Request) -> Service:
    """Return the service of the application that a request was sent to."""
    service: Service = request.app.state.service
    return service


@asynccontextmanager
async def form_of(request: Request, *, files: int) -> AsyncIterator[FormData]:
    """Read a multipart body; files are forgotten at the end."""
    async with request.form(max_files=files, max_fields=files) as form:
        yield form


async def images_of(request: Request) -> list[bytes]:
    """Return the image files of a request: all files of a multipart body, or else the whole body as one.

    Raises:
        UsageError: there is none.
    """
    if MULTIPART not in request.headers.get("content-type", ""):
        body = await request.body()
        if not body:
            raise UsageError("the request holds no image. Send its bytes: curl --data-binary @photo.jpg URL/classify")
        return [body]
    limit = service_of(request).options.limits.images
    async with form_of(request, files=limit) as form:
        found = [await value.read() for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not found:
        raise UsageError("the form holds no file. Send some: curl -F image=@photo.jpg URL/classify")
    return found


async def photographs_of(request: Request) -> dict[str, list[bytes]]:
    """Return the files of a multipart body by the name of their field, which is that of the class.

    Raises:
        UsageError: it is no multipart body, or holds no file.
    """
    found: dict[str, list[bytes]] = {}
    if MULTIPART in request.headers.get("content-type", ""):
        async with form_of(request, files=_MAX_PHOTOGRAPHS) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    found.setdefault(name, []).append(await value.read())
    if not found:
        raise UsageError(
            "send photographs as multipart/form-data, the name of the class as the name of the field: "
            "curl -F cup=@1.jpg -F cup=@2.jpg -F plate=@3.jpg -F plate=@4.jpg URL/heads/NAME/teach"
        )
    return found


def require_known(request: Request, known: Sequence[str]) -> None:
    """Refuse query parameters that an address does not take, or takes once and got twice.

    Raises:
        UsageError: there is one.
    """
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in known:
            takes = ", ".join(known) or "none"
            raise UsageError(f"{name[:40]!r} is no parameter of this address, which takes {takes}.")
        if given.count(name) > 1:
            raise UsageError(f"{name} is given {given.count(name)} times; send it once.")


def question_of(request: Request, known: Sequence[str]) -> Question:
    """Return how a request wants its images answered.

    Args:
        request: with query parameters.
        known: the names of those that the address takes.

    Raises:
        UsageError: a parameter is unknown, a number is none, or there is no such head.
    """
    require_known(request, known)
    service = service_of(request)
    head = request.query_params.get("head", service.classifier.active_head)
    service.classifier.head(head)
    threshold = request.query_params.get("threshold")
    top_k = _number(request.query_params.get("top_k", "5"), "top_k")
    if not 1 <= top_k <= MAX_TOP_K or top_k != int(top_k):
        raise UsageError(f"top_k must be a whole number between 1 and {MAX_TOP_K}, got {top_k:g}.")
    least = None if threshold is None else _number(threshold, "threshold")
    if least is not None and not 0 <= least <= 1:
        raise UsageError(f"threshold must be between 0 and 1, got {least:g}. Leave it out for the fitted one.")
    return Question(head=head, top_k=int(top_k), threshold=least)


def flag_of(request: Request, name: str) -> bool:
    """Return a query parameter that is true or false.

    Raises:
        UsageError: it is neither.
    """
    value = request.query_params.get(name, "false").lower()
    if value not in ("true", "false", "1", "0"):
        raise UsageError(f"{name} must be true or false, got {value[:40]!r}.")
    return value in ("true", "1")


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"{name} must be a number, got {text[:40]!r}.") from error
