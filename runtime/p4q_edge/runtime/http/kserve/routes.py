"""The addresses below `/v2`: the models are those of `p4q-edge export-triton`, by the same names and tensors.

`NAME` answers with the built-in head and `NAME-HEAD` with another: image files (`encoded`) in, labels and scores out.
`NAME_engine` is the engine itself: prepared images (`image`) in, logits, embeddings and features out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.http.kserve.tensors import LENGTH_HEADER, Inference, read_inference, write_inference
from p4q_edge.runtime.http.service import Question, Service
from p4q_edge.runtime.serving import ENCODED, IMAGE, TOP_K, engine_model, head_model
from p4q_edge.runtime.stage import OUTPUT_NAMES

ANSWERS = ("label", "score", "index", "known")

Values = Mapping[str, np.ndarray | Sequence[Sequence[str]]]


async def server_metadata(request: Request) -> Response:
    """Say what server this is."""
    service = _service(request)
    return JSONResponse({"name": "p4q-edge", "version": service.version, "extensions": ["binary_tensor_data"]})


async def server_live(request: Request) -> Response:
    """Say that the server answers."""
    return JSONResponse({"live": True})


async def server_ready(request: Request) -> Response:
    """Say that its models can be asked: the engine is loaded before the server listens."""
    return JSONResponse({"ready": True})


async def repository_index(request: Request) -> Response:
    """List the models."""
    names = models(_service(request))
    return JSONResponse([{"name": name, "version": "1", "state": "READY"} for name in names])


async def model_ready(request: Request) -> Response:
    """Say that a model can be asked."""
    _model(request)
    return JSONResponse({"ready": True})


async def model_metadata(request: Request) -> Response:
    """Describe a model and its tensors."""
    service, (name, head) = _service(request), _model(request)
    inputs, outputs = _tensors(service, head)
    return JSONResponse({"name": name, "versions": ["1"], "platform": "p4q-edge", "inputs": inputs, "outputs": outputs})


async def model_config(request: Request) -> Response:
    """Describe a model as Triton's clients ask, before they decide on batches."""
    service, (name, head) = _service(request), _model(request)
    inputs, outputs = _tensors(service, head)
    most = service.options.limits.images
    return JSONResponse(
        {
            "name": name,
            "platform": "p4q-edge",
            "max_batch_size": most,
            "input": [_as_config(tensor) for tensor in inputs],
            "output": [_as_config(tensor) for tensor in outputs],
        }
    )


async def infer(request: Request) -> Response:
    """Answer an inference request; an image in it that cannot be used fails it, and no other."""
    service, (name, head) = _service(request), _model(request)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "compressed requests are not read. Send it as it is.")
    inference = read_inference(await request.body(), request.headers.get(LENGTH_HEADER))
    outputs = await (_of_engine(service, inference) if head is None else _of_head(service, inference, head))
    body, headers = write_inference(inference, outputs, model=name)
    return Response(body, headers=headers)


def models(service: Service) -> dict[str, str | None]:
    """Return the head of each model by the model's name; None of the engine itself."""
    heads: dict[str, str | None] = {head_model(service.name, head): head for head in service.classifier.heads}
    return {**heads, engine_model(service.name): None}


async def _of_engine(service: Service, inference: Inference) -> Values:
    pixels = _only(inference, IMAGE)
    height, width = service.classifier.card.preprocess.size
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3, height, width):
        raise InputError(f"expected {IMAGE} as UINT8 of shape [n, 3, {height}, {width}], prepared as the card says.")
    _require_count(service, len(pixels))
    return await service.outputs(pixels)


async def _of_head(service: Service, inference: Inference, head: str) -> Values:
    images = _only(inference, ENCODED)
    if not isinstance(images, list):
        raise InputError(f"expected {ENCODED} as BYTES of shape [n, 1]: the bytes of image files.")
    _require_count(service, len(images))
    question = Question(head=head, top_k=TOP_K)
    answers = await asyncio.gather(*(service.answer(image, head=head) for image in images), return_exceptions=True)
    predictions = []
    for number, answer in enumerate(answers):
        outcome = "refused" if isinstance(answer, BaseException) else "answered"
        service.metrics.images.add(outcome)
        if isinstance(answer, InputError):
            raise InputError(f"image {number}: {answer}") from answer
        if isinstance(answer, BaseException):
            raise answer
        predictions.append((answer.prediction(question), answer.head.class_names))
    return {
        "label": [[label for label, _ in prediction.topk] for prediction, _ in predictions],
        "score": np.asarray([[score for _, score in prediction.topk] for prediction, _ in predictions], np.float32),
        "index": np.asarray(
            [[names.index(label) for label, _ in prediction.topk] for prediction, names in predictions], np.int32
        ),
        "known": np.asarray([[prediction.known] for prediction, _ in predictions], np.bool_),
    }


def _require_count(service: Service, count: int) -> None:
    most = service.options.limits.images
    if not 1 <= count <= most:
        raise InputError(f"a request holds an image or more, at most {most}; got {count}.")


def _only(inference: Inference, name: str) -> np.ndarray | list[bytes]:
    if set(inference.tensors) != {name} or len(inference.request.inputs) != 1:
        raise InputError(f"expected one input, {name}; got {', '.join(inference.tensors)[:100] or 'none'}.")
    return inference.tensors[name]


def _tensors(service: Service, head: str | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    card = service.classifier.card
    if head is None:
        sizes = (len(card.class_names), card.embedding_dim, card.embedding_dim)
        outputs = [_tensor(name, "FP32", -1, size) for name, size in zip(OUTPUT_NAMES, sizes, strict=True)]
        return [_tensor(IMAGE, "UINT8", -1, 3, *card.preprocess.size)], outputs
    best = min(TOP_K, len(service.classifier.head(head).class_names))
    kinds = ("BYTES", "FP32", "INT32", "BOOL")
    shapes = (best, best, best, 1)
    answers = [_tensor(name, kind, -1, size) for name, kind, size in zip(ANSWERS, kinds, shapes, strict=True)]
    return [_tensor(ENCODED, "BYTES", -1, 1)], answers


def _tensor(name: str, datatype: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape)}


def _as_config(tensor: Mapping[str, Any]) -> dict[str, Any]:
    kind = {"BYTES": "STRING"}.get(tensor["datatype"], tensor["datatype"])
    return {"name": tensor["name"], "data_type": f"TYPE_{kind}", "dims": tensor["shape"][1:]}


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _model(request: Request) -> tuple[str, str | None]:
    name, found = request.path_params["model"], models(_service(request))
    version = request.path_params.get("version", "1")
    if name not in found or version != "1":
        raise HTTPException(
            404, f"there is no model {name[:100]!r} of version {version[:20]}; there are {', '.join(found)}."
        )
    return name, found[name]


def kserve_routes() -> list[Route]:
    """Return the routes; those of a model also with its version, which is always 1."""
    of_model = {"": model_metadata, "/ready": model_ready, "/config": model_config, "/infer": infer}
    routes = [
        Route("/v2", server_metadata, methods=["GET"]),
        Route("/v2/health/live", server_live, methods=["GET"]),
        Route("/v2/health/ready", server_ready, methods=["GET"]),
        Route("/v2/repository/index", repository_index, methods=["POST"]),
    ]
    for path, endpoint in of_model.items():
        method = "POST" if endpoint is infer else "GET"
        for version in ("", "/versions/{version}"):
            routes.append(Route("/v2/models/{model}" + version + path, endpoint, methods=[method]))
    return routes
