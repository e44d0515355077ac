"""Images of concurrent requests in one run of the engine.

While the engine runs, what arrives waits; the next run takes as many of those as fit. An image that comes alone is run
alone and at once: nothing waits for a batch to fill.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from p4q_edge.runtime.errors import P4QEdgeError, QualityGateError
from p4q_edge.runtime.http.metrics import Metrics
from p4q_edge.runtime.wording import number_of

OutputRows = tuple[np.ndarray, ...]
BatchRun = Callable[[str, np.ndarray], OutputRows]
"""From a key and images (n, 3, H, W) uint8 of that key to arrays of n rows."""


@dataclass(kw_only=True, eq=False)
class Waiting:
    """An image that waits for the engine."""

    key: str
    pixels: np.ndarray
    answer: asyncio.Future[OutputRows]


class Batcher:
    """Runs images of one key together, in the order in which the first of them came."""

    def __init__(self, run: BatchRun, *, size: int, metrics: Metrics) -> None:
        """Make a batcher; `start` begins its work.

        Args:
            run: what answers a batch; called in a thread of the batcher's own, one batch at a time.
            size: most images in a batch.
            metrics: where batches are counted.
        """
        self._run_batch, self._size, self._metrics = run, size, metrics
        self._waiting: deque[Waiting] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="p4q-edge-engine")
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Number of images that wait for the engine."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to work, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """End the work; what still waits is given up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for item in self._waiting:
            item.answer.cancel()
        self._waiting.clear()
        self._thread.shutdown()

    async def submit(self, pixels: np.ndarray, *, key: str) -> OutputRows:
        """Return the row of each output for one image (3, H, W) uint8.

        Raises:
            P4QEdgeError: the engine or its head cannot answer for this image.
        """
        item = Waiting(key=key, pixels=pixels, answer=asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        self._arrived.set()
        return await item.answer

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            batch = self._take()
            if not self._waiting:
                self._arrived.clear()
            if batch:
                await self._answer(batch)

    def _take(self) -> list[Waiting]:
        """Return the images of the next run: of the key of the first, without those that nobody waits for."""
        taken: list[Waiting] = []
        left: deque[Waiting] = deque()
        for item in self._waiting:
            if item.answer.done():
                continue
            fits = len(taken) < self._size and (not taken or item.key == taken[0].key)
            (taken if fits else left).append(item)
        self._waiting = left
        return taken

    async def _answer(self, batch: list[Waiting]) -> None:
        try:
            rows = await self._rows(batch)
        except Exception as error:  # noqa: BLE001  # whatever it is, it belongs to those who asked
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            # Which of them is at fault is not known: each is asked for alone, so that it harms no other.
            for item in batch:
                await self._answer([item])
            return
        for index, item in enumerate(batch):
            if not all(np.isfinite(output[index]).all() for output in rows):
                _fail(item, QualityGateError("the engine gives values that are not finite for this image."))
            elif not item.answer.done():
                item.answer.set_result(tuple(output[index] for output in rows))

    async def _rows(self, batch: list[Waiting]) -> OutputRows:
        pixels = np.stack([item.pixels for item in batch])
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        rows = await loop.run_in_executor(self._thread, self._run_batch, batch[0].key, pixels)
        self._metrics.engine_seconds.observe(time.perf_counter() - started)
        self._metrics.batch_size.observe(len(batch))
        if any(len(output) != len(batch) for output in rows):
            raise P4QEdgeError(
                f"the engine answered {[len(output) for output in rows]} rows for {number_of(len(batch), 'image')}."
            )
        return rows


def _fail(item: Waiting, error: Exception) -> None:
    if not item.answer.done():
        item.answer.set_exception(error)
