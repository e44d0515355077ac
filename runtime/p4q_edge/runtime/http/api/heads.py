"""Heads over HTTP: list, choose, teach and save them."""

from __future__ import annotations

from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from p4q_edge.runtime.artifacts import BUILT_IN
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.http.api.answers import document
from p4q_edge.runtime.http.api.uploads import flag_of, photographs_of, require_known, service_of
from p4q_edge.runtime.http.documents import Choice, HeadInfo, HeadsAnswer, SavedAnswer, TeachAnswer
from p4q_edge.runtime.http.service import Service


async def list_heads(request: Request) -> Response:
    """Return all heads with their classes, and which one is active."""
    require_known(request, ())
    return document(_all(service_of(request)))


async def choose_head(request: Request) -> Response:
    """Let another head answer where a request names none."""
    service = _writable(request)
    require_known(request, ())
    try:
        choice = msgspec.json.decode(await request.body(), type=Choice)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f'send {{"name": "HEAD"}}: {error}') from error
    service.classifier.use_head(choice.name)
    return document(_all(service))


async def teach_from_request(request: Request) -> Response:
    """Learn a head from photographs; it answers at once under its name, and is saved by another request."""
    service, name = _writable(request), request.path_params["name"]
    require_known(request, ("base", "add", "unknown"))
    base, add = request.query_params.get("base", BUILT_IN), flag_of(request, "add")
    unknown_name = request.query_params.get("unknown", "")
    photographs = await photographs_of(request)
    if unknown_name and unknown_name not in photographs:
        raise UsageError(
            f"unknown={unknown_name[:40]} names no field of the form, which has {', '.join(photographs)[:200]}. Send "
            f"photographs that show none of the classes: curl -F {unknown_name[:40]}=@photo.jpg"
        )
    unknown = photographs.pop(unknown_name, [])
    taught = await service.teach(name, photographs, base=base, add=add, unknown=unknown)
    report = taught.report
    answer = TeachAnswer(
        head=_info(service, name),
        photographs=report.photographs,
        held_out=report.held_out,
        held_out_accuracy=report.held_out_accuracy,
        repeated=report.repeated,
    )
    return document(answer, HTTPStatus.CREATED)


async def save_head(request: Request) -> Response:
    """Store a head with the engine, so that it is there after a restart."""
    service, name = _writable(request), request.path_params["name"]
    require_known(request, ())
    path, earlier = await service.save(name)
    return document(SavedAnswer(name=name, file=path.name, earlier_versions=earlier))


def _writable(request: Request) -> Service:
    service = service_of(request)
    if service.options.read_only:
        raise HTTPException(HTTPStatus.FORBIDDEN, "this server is read-only: heads are neither taught nor chosen here.")
    return service


def _all(service: Service) -> HeadsAnswer:
    return HeadsAnswer(
        active=service.classifier.active_head,
        read_only=service.options.read_only,
        heads=tuple(_info(service, name) for name in service.classifier.heads),
    )


def _info(service: Service, name: str) -> HeadInfo:
    head = service.classifier.head(name)
    return HeadInfo(
        name=name,
        class_names=head.class_names,
        threshold=head.calibration.threshold,
        class_thresholds=head.calibration.class_thresholds,
        saved=service.is_saved(name),
    )
