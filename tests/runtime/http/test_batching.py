"""Images of concurrent requests in one run of the engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.errors import QualityGateError, UsageError
from p4q_edge.runtime.http.batching import Batcher
from p4q_edge.runtime.http.metrics import Metrics


class Engine:
    """Answers the first number of each image, and waits until it may."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.began = threading.Event()

    def run(self, key: str, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        numbers = batch[:, 0, 0, 0].astype(np.float32)
        self.batches.append((key, [int(number) for number in numbers]))
        self.began.set()
        self.may_run.wait(30)
        if key == "broken" and 7 in numbers:
            raise RuntimeError("seven")
        numbers[numbers == 13] = np.nan
        return numbers[:, np.newaxis], 2 * numbers[:, np.newaxis]


def image(number: int) -> np.ndarray:
    return np.full((3, 2, 2), number, np.uint8)


def run(
    scenario: Callable[[Batcher, Engine, Metrics], Awaitable[Any]], *, size: int = 4
) -> tuple[Any, Engine, Metrics]:
    engine, metrics = Engine(), Metrics()

    async def whole() -> Any:
        batcher = Batcher(engine.run, size=size, metrics=metrics)
        batcher.start()
        try:
            return await scenario(batcher, engine, metrics)
        finally:
            engine.may_run.set()
            await batcher.stop()

    return asyncio.run(whole()), engine, metrics


async def gathered(batcher: Batcher, engine: Engine, wanted: list[tuple[str, int]]) -> list[Any]:
    """Ask for all of these while the engine is held at the first, and return all answers or errors."""
    engine.may_run.clear()
    tasks = [asyncio.create_task(batcher.submit(image(number), key=key)) for key, number in wanted[:1]]
    await asyncio.to_thread(engine.began.wait, 30)
    tasks += [asyncio.create_task(batcher.submit(image(number), key=key)) for key, number in wanted[1:]]
    await asyncio.sleep(0)
    engine.may_run.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_one_image_is_run_alone_and_at_once() -> None:
    async def scenario(batcher: Batcher, engine: Engine, metrics: Metrics) -> Any:
        return await batcher.submit(image(5), key="a")

    rows, engine, metrics = run(scenario)
    assert [row.tolist() for row in rows] == [[5.0], [10.0]]
    assert engine.batches == [("a", [5])]
    assert metrics.batch_size.count() == metrics.engine_seconds.count() == 1


def test_what_arrives_while_the_engine_runs_is_run_together_up_to_the_size() -> None:
    async def scenario(batcher: Batcher, engine: Engine, metrics: Metrics) -> Any:
        return await gathered(batcher, engine, [("a", number) for number in range(1, 8)])

    rows, engine, _ = run(scenario)
    assert [int(row[0][0]) for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert engine.batches == [("a", [1]), ("a", [2, 3, 4, 5]), ("a", [6, 7])]


def test_images_of_different_heads_are_never_run_together() -> None:
    async def scenario(batcher: Batcher, engine: Engine, metrics: Metrics) -> Any:
        return await gathered(batcher, engine, [("a", 1), ("a", 2), ("b", 3), ("a", 4), ("b", 5)])

    rows, engine, _ = run(scenario)
    assert [int(row[0][0]) for row in rows] == [1, 2, 3, 4, 5]
    assert engine.batches == [("a", [1]), ("a", [2, 4]), ("b", [3, 5])]


def test_the_one_at_fault_harms_no_other() -> None:
    async def scenario(batcher: Batcher, engine: Engine, metrics: Metrics) -> Any:
        return await gathered(batcher, engine, [("broken", number) for number in (1, 6, 7, 8)])

    rows, _, _ = run(scenario)
    assert [int(row[0][0]) for row in (rows[0], rows[1], rows[3])] == [1, 6, 8]
    assert isinstance(rows[2], RuntimeError)


def test_values_that_are_not_finite_are_an_error_of_that_image() -> None:
    async def scenario(batcher: Batcher, engine: Engine, metrics: Metrics) -> Any:
        return await gathered(batcher, engine, [("a", 1), ("a", 13), ("a", 3)])

    rows, _, _ = run(scenario)
    assert isinstance(rows[1], QualityGateError)
    assert "not finite for this image" in str(rows[1])
    assert [int(rows[index][0][0]) for index in (0, 2)] == [1, 3]


def test_nobody_waits_for_an_image_that_was_given_up() -> None:
    async def scenario(batcher: Batcher, engine: Engine, metrics: Metrics) -> Any:
        engine.may_run.clear()
        first = asyncio.create_task(batcher.submit(image(1), key="a"))
        await asyncio.to_thread(engine.began.wait, 30)
        given_up = asyncio.create_task(batcher.submit(image(2), key="a"))
        last = asyncio.create_task(batcher.submit(image(3), key="a"))
        await asyncio.sleep(0)
        assert batcher.waiting == 2
        given_up.cancel()
        await asyncio.sleep(0)
        engine.may_run.set()
        return await first, await last

    _, engine, _ = run(scenario)
    assert engine.batches == [("a", [1]), ("a", [3])]


def test_a_key_that_the_engine_refuses_is_the_callers_error() -> None:
    def refuse(key: str, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        raise UsageError("no head is named so")

    async def whole() -> None:
        batcher = Batcher(refuse, size=4, metrics=Metrics())
        batcher.start()
        with pytest.raises(UsageError, match="no head"):
            await batcher.submit(image(1), key="none")
        await batcher.stop()

    asyncio.run(whole())


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(14, 255)), min_size=1, max_size=30),
    st.integers(1, 9),
)
def test_every_image_gets_its_own_answer(wanted: list[tuple[str, int]], size: int) -> None:
    async def scenario(batcher: Batcher, engine: Engine, metrics: Metrics) -> Any:
        return await gathered(batcher, engine, wanted)

    rows, engine, _ = run(scenario, size=size)
    assert [int(row[0][0]) for row in rows] == [number for _, number in wanted]
    assert sum(len(numbers) for _, numbers in engine.batches) == len(wanted)
    assert max(len(numbers) for _, numbers in engine.batches) <= size
