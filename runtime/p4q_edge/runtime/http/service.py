"""What the server does, apart from HTTP: images to answers, several requests in one run, and heads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from p4q_edge.runtime.artifacts import (
    BUILT_IN,
    EngineHead,
    Head,
    earlier_versions,
    require_name,
    stored_heads,
    trusted_key_files,
    write_head,
)
from p4q_edge.runtime.classification import Prediction, Ranking, Taught, ZeroShotClassifier, probabilities
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.http.batching import Batcher
from p4q_edge.runtime.http.metrics import Gauge, Metrics
from p4q_edge.runtime.http.settings import ServeOptions
from p4q_edge.runtime.stage import OUTPUT_NAMES

BATCH = 8
"""Images in one run at most: beyond it throughput hardly grows, and everybody in the batch waits for all of it."""
DECODERS = 2
MAX_HEADS = 256
"""Heads that a server holds: a client may teach under ever new names."""
_ENGINE, _HEAD = "engine", "head:"


@dataclass(frozen=True, kw_only=True)
class Question:
    """How an image is to be answered.

    Attributes:
        head: name of the head.
        top_k: classes in the answer.
        threshold: least score of a known answer; None takes the fitted ones.
    """

    head: str
    top_k: int = 5
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """What the engine said of one image: its rows, and the head that they are of."""

    head: EngineHead
    logits: np.ndarray
    embedding: np.ndarray

    def ranking(self, question: Question) -> Ranking:
        """Return how its probabilities become a prediction."""
        return Ranking(
            class_names=self.head.class_names,
            calibration=self.head.calibration,
            threshold=question.threshold,
            top_k=question.top_k,
        )

    def prediction(self, question: Question) -> Prediction:
        """Return what `ZeroShotClassifier.classify` returns for the image."""
        scores = probabilities(self.logits[np.newaxis], self.head.calibration)[0]
        return self.ranking(question).predict(scores, source=None)


class Service:
    """An engine that answers many callers at once; made and used in one event loop."""

    def __init__(
        self, classifier: ZeroShotClassifier, *, engine: Path, options: ServeOptions, metrics: Metrics
    ) -> None:
        """Serve a classifier, which stays its maker's to close.

        Args:
            classifier: the engine, opened.
            engine: its file, with which heads are saved.
            options: how it is reached, and how much it takes in.
            metrics: where it counts.
        """
        self.classifier, self.engine, self.options = classifier, engine, options
        self.name, self.version = engine.stem, metadata.version("p4q-edge-runtime")
        self.metrics = metrics
        self.batcher = Batcher(self._run, size=BATCH, metrics=self.metrics)
        self._decoders = ThreadPoolExecutor(max_workers=DECODERS, thread_name_prefix="p4q-edge-decode")
        self._lessons = asyncio.Lock()
        self._unsaved: set[str] = set()
        self._count()

    def _count(self) -> None:
        started = time.time()
        self.metrics.gauges += [
            Gauge(
                name="p4q_edge_waiting_images",
                about="Images that wait for the engine.",
                read=lambda: self.batcher.waiting,
            ),
            Gauge(name="p4q_edge_heads", about="Heads that can be asked.", read=lambda: len(self.classifier.heads)),
            Gauge(name="p4q_edge_start_time_seconds", about="When the server began (Unix time).", read=lambda: started),
            Gauge(
                name="p4q_edge_info",
                about="The engine that is served.",
                read=lambda: 1.0,
                labels=("version", "engine", "backend"),
                values=(self.version, self.name, self.classifier.card.backend),
            ),
        ]

    def start(self) -> None:
        """Begin to answer."""
        self.batcher.start()

    async def stop(self) -> None:
        """End it."""
        await self.batcher.stop()
        self._decoders.shutdown()

    def _run(self, key: str, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        if key == _ENGINE:
            outputs = self.classifier.run(batch)
            return tuple(outputs[name] for name in OUTPUT_NAMES)
        return self.classifier.answer(batch, head=key.removeprefix(_HEAD))

    async def answer(self, image: bytes, *, head: str) -> Answered:
        """Return what the engine says of an image file.

        Raises:
            InputError: the image cannot be used.
            UsageError: there is no such head.
        """
        self.classifier.head(head)
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._decoders, self.classifier.prepare, image)
        while True:
            known = self.classifier.head(head)
            logits, embedding = await self.batcher.submit(pixels, key=_HEAD + head)
            # It may have been taught again meanwhile; rows of one head are never read with the names of another.
            if self.classifier.head(head) is known:
                return Answered(head=known, logits=logits, embedding=embedding)

    async def outputs(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the engine's own outputs for prepared images (n, 3, H, W) uint8, arrays of n rows."""
        found = await asyncio.gather(*(self.batcher.submit(row, key=_ENGINE) for row in pixels))
        return {name: np.stack([rows[index] for rows in found]) for index, name in enumerate(OUTPUT_NAMES)}

    def is_saved(self, name: str) -> bool:
        """Return whether a head is stored with the engine as it is now."""
        return name == BUILT_IN or (name not in self._unsaved and name in stored_heads(self.engine))

    async def teach(
        self, name: str, photographs: Mapping[str, Sequence[bytes]], *, base: str, add: bool, unknown: Sequence[bytes]
    ) -> Taught:
        """Learn a head from photographs by class, and let it answer under a name; it is not saved yet.

        Raises:
            UsageError: the name cannot be used, there is no such base, or there are too many heads.
            InputError: photographs that cannot be used, or too few.
        """
        require_name(name)
        self.classifier.head(base)
        if name not in self.classifier.heads and len(self.classifier.heads) >= MAX_HEADS:
            raise UsageError(
                f"the server holds {MAX_HEADS} heads, and takes no more. Teach one of these again, or restart the "
                "server."
            )
        if self._lessons.locked():
            raise UsageError("a head is being learned already. Ask again when it is done.")
        async with self._lessons:
            taught = await asyncio.to_thread(
                self.classifier.lesson, photographs, base=base, add=add, unknown=list(unknown) or None
            )
            self.classifier.keep_head(name, taught.head)
            self._unsaved.add(name)
        return taught

    async def save(self, name: str) -> tuple[Path, int]:
        """Store a head with the engine; return its file and the number of earlier versions.

        Raises:
            UsageError: there is no such head, it is the built-in one, or heads must be signed here.
        """
        head = self.classifier.head(name)
        if not isinstance(head, Head):
            raise UsageError(f"the head {name} is part of the engine, and does not need to be saved.")
        if trusted_key_files(None):
            raise UsageError(
                "this device loads only what a trusted key signed, so a head that is saved here would be refused at "
                f"the next start. Save it with `p4q-edge teach`, and sign it: p4q-edge sign {name}.safetensors"
            )
        path = await asyncio.to_thread(write_head, self.engine, name, head)
        self._unsaved.discard(name)
        return path, len(earlier_versions(self.engine, name))
