"""What Triton's Python backend runs: decoding, the engine where the server has no backend for it, and heads.

Each is the `TritonPythonModel` of a `model.py`; the server's module `triton_python_backend_utils` exists only there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from p4q_edge.runtime.artifacts import Card, EngineHead, decode_card, load_head, read_card
from p4q_edge.runtime.classification import Ranking, probabilities
from p4q_edge.runtime.engines import load_engine
from p4q_edge.runtime.errors import InputError, P4QEdgeError, QualityGateError
from p4q_edge.runtime.images import load_image, preprocess
from p4q_edge.runtime.serving.model_configs import ENCODED, IMAGE, TOP_K
from p4q_edge.runtime.stage import OUTPUT_NAMES
from p4q_edge.runtime.storage import MAX_JSON_BYTES, read_bounded
from p4q_edge.runtime.verification import ensure_golden

CARD_FILE, HEAD_FILE = "card.json", "head.safetensors"
"""Files of a version's folder: the engine's card, and a head that is not the built-in one."""


def _folder(arguments: Mapping[str, str]) -> Path:
    return Path(arguments["model_repository"]) / arguments["model_version"]


def _card(folder: Path) -> Card:
    path = folder / CARD_FILE
    return decode_card(read_bounded(path, limit_bytes=MAX_JSON_BYTES, kind="card"), source=str(path))


class Model:
    """A model of the Python backend; each request is answered by itself, with its own error."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open what lies in the folder of the model's version."""
        # Only the server's own process has it.
        import triton_python_backend_utils as pb_utils

        self._utils = pb_utils
        self._open(_folder(args))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response for each request."""
        return [self._respond(request) for request in requests]

    def _open(self, folder: Path) -> None:
        raise NotImplementedError

    def _compute(self, inputs: Callable[[str], np.ndarray]) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def _respond(self, request: Any) -> Any:
        def read(name: str) -> np.ndarray:
            return np.asarray(self._utils.get_input_tensor_by_name(request, name).as_numpy())

        try:
            outputs = self._compute(read)
        except P4QEdgeError as error:
            return self._refuse(error)
        return self._answer(outputs)

    def _answer(self, outputs: Mapping[str, np.ndarray]) -> Any:
        tensors = [self._utils.Tensor(name, values) for name, values in outputs.items()]
        return self._utils.InferenceResponse(output_tensors=tensors)

    def _refuse(self, error: P4QEdgeError) -> Any:
        return self._utils.InferenceResponse(output_tensors=[], error=self._utils.TritonError(str(error)))


class DecodeModel(Model):
    """Encoded images (n, 1) to images (n, 3, H, W) uint8, prepared as the engine's card says."""

    def _open(self, folder: Path) -> None:
        self._spec = _card(folder).preprocess

    def _compute(self, inputs: Callable[[str], np.ndarray]) -> dict[str, np.ndarray]:
        encoded = inputs(ENCODED).reshape(-1)
        rows = []
        for index, data in enumerate(encoded):
            try:
                rows.append(preprocess(load_image(bytes(data)), self._spec))
            except InputError as error:
                raise InputError(f"image {index + 1} of {len(encoded)}: {error}") from error
        return {IMAGE: np.stack(rows)}


class EngineModel(Model):
    """The engine by this runtime, with the checks of its card; for servers without a backend for it."""

    def _open(self, folder: Path) -> None:
        (engine,) = (path.with_suffix("") for path in folder.glob("model.*.json"))
        card = read_card(engine)
        self._engine = load_engine(engine, card)
        ensure_golden(self._engine, card, name=str(engine))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the images of all requests, which the server brought together, as one batch."""
        images = [self._utils.get_input_tensor_by_name(request, IMAGE).as_numpy() for request in requests]
        try:
            outputs = self._engine.run(np.concatenate(images), OUTPUT_NAMES)
        except P4QEdgeError as error:
            return [self._refuse(error) for _ in requests]
        ends = np.cumsum([len(image) for image in images])[:-1]
        parts = {name: np.split(values, ends) for name, values in outputs.items()}
        return [
            self._answer({name: np.ascontiguousarray(values[index]) for name, values in parts.items()})
            for index in range(len(requests))
        ]

    def finalize(self) -> None:
        """Release the engine."""
        self._engine.close()


class _Given:
    """An engine that has run already."""

    def __init__(self, outputs: Mapping[str, np.ndarray]) -> None:
        self._outputs = outputs

    def run(self, image: np.ndarray, outputs: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
        """Return what was given."""
        return {name: self._outputs[name] for name in outputs or OUTPUT_NAMES}


class HeadModel(Model):
    """What the engine gives to labels and scores: adapter, temperature and thresholds of one head."""

    def _open(self, folder: Path) -> None:
        head: EngineHead = load_head(folder / HEAD_FILE) if (folder / HEAD_FILE).is_file() else _card(folder).head
        self._head = head
        self._ranking = Ranking(
            class_names=head.class_names,
            calibration=head.calibration,
            threshold=None,
            top_k=min(TOP_K, len(head.class_names)),
        )

    def _compute(self, inputs: Callable[[str], np.ndarray]) -> dict[str, np.ndarray]:
        given = _Given({name: inputs(name) for name in OUTPUT_NAMES})
        logits, _ = self._head.classify(given, np.empty(0, np.uint8))
        if not np.isfinite(logits).all():
            raise QualityGateError("the engine gives values that are not finite. Check it: p4q-edge selftest ENGINE")
        scores = probabilities(logits, self._head.calibration)
        answers = [self._ranking.predict(row, source=None) for row in scores]
        names = list(self._head.class_names)
        return {
            "label": np.array([[label.encode() for label, _ in answer.topk] for answer in answers], dtype=object),
            "score": np.array([[score for _, score in answer.topk] for answer in answers], np.float32),
            "index": np.array([[names.index(label) for label, _ in answer.topk] for answer in answers], np.int32),
            "known": np.array([[answer.known] for answer in answers], bool),
        }
