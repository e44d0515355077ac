"""Sessions of a TensorRT engine: memory, CUDA graphs, failures, and the pool that threads share."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p4q_edge.runtime.engines.tensorrt.engine import TensorRTEngine
from p4q_edge.runtime.engines.tensorrt.session import SessionPool
from p4q_edge.runtime.errors import InputError, P4QEdgeError

from doubles.cards import card_of


def test_memory_is_allocated_once_for_the_largest_batch(engine: Any, images: np.ndarray) -> None:
    for batch in (1, 4, 2):
        engine.run(images[:batch])
    calls = engine._cuda.calls
    assert (calls.count("allocate"), calls.count("allocate_pinned"), calls.count("create_stream")) == (4, 4, 1)
    sizes = sorted(memory.size for memory in engine._cuda.memory_by_address.values())
    assert sizes == sorted([4 * 48, 4 * 5 * 4, 4 * 3 * 4, 4 * 3 * 4])


def test_a_repeated_batch_is_captured_on_its_second_run_and_then_replayed(
    engine: Any, installed: Any, images: np.ndarray
) -> None:
    seen = []
    for _ in range(4):
        before = len(engine._cuda.calls)
        engine.run(images[:2])
        seen.append([call for call in engine._cuda.calls[before:] if call in ("capture", "launch")])
    assert seen == [[], ["capture", "launch"], ["launch"], ["launch"]]
    # Once plain and once into the graph; replays do not pass through TensorRT.
    assert installed.calls.count("execute_async_v3") == 2
    assert engine.graph_refusals == []


def test_another_batch_drops_the_graph_and_captures_anew(engine: Any, installed: Any, images: np.ndarray) -> None:
    for batch in (1, 1, 1, 2, 2, 1, 1):
        engine.run(images[:batch])
    assert engine._cuda.calls.count("capture") == 3
    assert engine._cuda.calls.count("destroy_graph") == 2
    assert engine._cuda.open_graphs == 1
    shapes = [call for call in installed.calls if call.startswith("set_input_shape")]
    assert shapes == [f"set_input_shape{(batch, 3, 4, 4)}" for batch in (1, 2, 1)]


def test_the_first_run_of_every_batch_size_is_plain(engine: Any, images: np.ndarray) -> None:
    """TensorRT may allocate in it, which a capture would record; so it holds for each size anew."""
    seen = []
    for batch in (1, 1, 2, 2, 1, 1):
        before = len(engine._cuda.calls)
        engine.run(images[:batch])
        seen.append([call for call in engine._cuda.calls[before:] if call in ("capture", "launch")])
    assert seen == [[], ["capture", "launch"]] * 3


def test_a_refused_capture_is_logged_once_with_its_reason_and_runs_go_on(
    engine: Any, doubles: Any, images: np.ndarray, caplog: Any
) -> None:
    engine._cuda.refuse_capture = "cudaStreamEndCapture answers cudaErrorStreamCaptureUnsupported"
    for _ in range(4):
        np.testing.assert_array_equal(engine.run(images[:1])["logits"], doubles.compute(images[:1])["logits"])
    assert engine._cuda.calls.count("capture") == 1
    assert [record.getMessage() for record in caplog.records] == [
        "running without a CUDA graph: cudaStreamEndCapture answers cudaErrorStreamCaptureUnsupported"
    ]
    assert engine.graph_refusals == ["cudaStreamEndCapture answers cudaErrorStreamCaptureUnsupported"]


def test_an_engine_that_cannot_be_captured_runs_plainly(engine: Any, installed: Any, images: np.ndarray) -> None:
    installed.fail_capture = True
    for _ in range(3):
        engine.run(images[:1])
    assert "myelin graph has dynamic allocations" in engine.graph_refusals[0]


def test_graphs_can_be_switched_off(installed: Any, plan: Path, images: np.ndarray) -> None:
    loaded = TensorRTEngine.open(plan, card_of(installed), graphs=False)
    for _ in range(3):
        loaded.run(images[:1])
    assert "capture" not in installed.cuda.calls
    assert loaded.graph_refusals == ["switched off"]


def test_a_failed_run_is_reported_and_its_session_replaced(
    engine: Any, installed: Any, doubles: Any, images: np.ndarray
) -> None:
    installed.fail_execute = True
    with pytest.raises(P4QEdgeError, match="TensorRT cannot run the engine: myelin graph has dynamic allocations"):
        engine.run(images[:1])
    assert engine._cuda.leaks == {}
    assert installed.open_contexts == 0
    installed.fail_execute = False
    np.testing.assert_array_equal(engine.run(images[:1])["logits"], doubles.compute(images[:1])["logits"])


def test_a_refused_shape_is_reported(engine: Any, installed: Any, images: np.ndarray) -> None:
    installed.refuse_shape = True
    with pytest.raises(P4QEdgeError, match=r"TensorRT refuses the input shape \(1, 3, 4, 4\)"):
        engine.run(images[:1])
    assert engine._cuda.leaks == {}


@pytest.mark.parametrize(
    ("call", "nth"),
    [("create_stream", 1), ("allocate", 1), ("allocate", 3), ("allocate_pinned", 1), ("allocate_pinned", 3)],
)
def test_nothing_stays_allocated_when_a_session_cannot_be_made(
    engine: Any, installed: Any, images: np.ndarray, call: str, nth: int
) -> None:
    engine._cuda.fail_at = (call, nth)
    with pytest.raises(P4QEdgeError, match=f"{call} failed with cudaErrorMemoryAllocation"):
        engine.run(images[:1])
    assert engine._cuda.leaks == {}
    engine._cuda.fail_at = None
    assert len(engine.run(images[:1])["logits"]) == 1


@pytest.mark.parametrize("call", ["copy_to_device", "copy_to_host", "synchronize", "launch"])
def test_nothing_stays_allocated_when_a_run_fails(engine: Any, images: np.ndarray, call: str) -> None:
    engine._cuda.fail_at = (call, 1)
    if call == "launch":
        engine.run(images[:1])  # a graph is launched from the second run on
    with pytest.raises(P4QEdgeError, match=f"{call} failed"):
        engine.run(images[:1])
    assert engine._cuda.leaks == {}


def test_a_release_that_fails_as_well_does_not_hide_the_first_error(
    engine: Any, images: np.ndarray, caplog: Any, monkeypatch: Any
) -> None:
    engine._cuda.fail_at = ("synchronize", 1)

    def broken(stream: str) -> None:
        raise P4QEdgeError("destroy_stream failed")

    monkeypatch.setattr(engine._cuda, "destroy_stream", broken)
    with pytest.raises(P4QEdgeError, match="synchronize failed"):
        engine.run(images[:1])
    assert "could not release a failed session: destroy_stream failed" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("refuse_context", "TensorRT cannot make an execution context"),
        ("refuse_address", "refuses the memory of image"),
    ],
)
def test_a_context_that_cannot_be_had_is_reported(
    engine: Any, installed: Any, images: np.ndarray, change: str, message: str
) -> None:
    setattr(installed, change, True)
    with pytest.raises(P4QEdgeError, match=message):
        engine.run(images[:1])
    assert engine._cuda.leaks == {}


def test_close_releases_all_and_contexts_first(engine: Any, installed: Any, images: np.ndarray) -> None:
    for _ in range(3):
        engine.run(images[:1])
    engine.close()
    assert engine._cuda.leaks == {}
    assert installed.open_contexts == 0
    assert engine._cuda.current_depth == 0
    with pytest.raises(P4QEdgeError, match="the engine was closed. Load it again"):
        engine.run(images[:1])


def test_submit_gives_futures_and_errors_through_them(
    engine: Any, installed: Any, doubles: Any, images: np.ndarray
) -> None:
    futures = [engine.submit(images[index : index + 1]) for index in range(6)]
    for index, future in enumerate(futures):
        expected = doubles.compute(images[index : index + 1])["logits"]
        np.testing.assert_array_equal(future.result(timeout=30)["logits"], expected)
    installed.fail_execute = True
    engine._cuda.refuse_capture = "no"
    with pytest.raises(P4QEdgeError, match="cannot run the engine"):
        engine.submit(images[:3]).result(timeout=30)
    with pytest.raises(ValueError, match="expected uint8"):
        engine.submit(images[0])
    engine.close()


def test_device_times_are_taken_with_events_that_are_released(engine: Any, images: np.ndarray) -> None:
    assert engine.device_times_ms(images[:2], 3) == [1.25] * 3
    assert engine._cuda.calls.count("record_event") == 6
    assert engine._cuda.open_events == 0
    engine._cuda.fail_at = ("elapsed_ms", engine._cuda.calls.count("elapsed_ms") + 1)
    with pytest.raises(P4QEdgeError, match="elapsed_ms failed"):
        engine.device_times_ms(images[:2], 3)
    assert engine._cuda.leaks == {}
    with pytest.raises(InputError, match="at most 4 images for one GPU run, got 5"):
        engine.device_times_ms(images[:5], 1)


class _Session:
    """A session for the pool's tests."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.batch = 0
        self.users = 0
        self.closed = False
        self.graph_refusal: str | None = None

    def close(self) -> None:
        self.closed = True


def test_threads_never_share_a_session_and_the_pool_keeps_its_limit() -> None:
    sessions: list[_Session] = []

    def make() -> Any:
        sessions.append(_Session())
        return sessions[-1]

    pool = SessionPool(make, limit=3)
    shared = []

    def work() -> None:
        for _ in range(50):
            with pool.lease(1) as session:
                session.users += 1  # type: ignore[attr-defined]
                shared.append(session.users)  # type: ignore[attr-defined]
                session.users -= 1  # type: ignore[attr-defined]

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(shared) == {1}
    assert 1 <= len(sessions) <= 3
    pool.close()
    assert all(session.closed for session in sessions)


def test_the_pool_prefers_the_session_that_ran_this_batch_last() -> None:
    pool = SessionPool(_Session, limit=2)  # type: ignore[arg-type]
    with pool.lease(1) as one, pool.lease(2) as two:
        one.batch, two.batch = 1, 2  # type: ignore[misc]
    with pool.lease(1) as again:
        assert again is one
    with pool.lease(2) as again:
        assert again is two
    with pool.lease(7) as other:
        assert other in (one, two)


def test_closing_waits_for_the_runs_and_wakes_those_that_wait() -> None:
    pool = SessionPool(_Session, limit=1)  # type: ignore[arg-type]
    inside, go, refused = threading.Event(), threading.Event(), []
    order = []

    def run() -> None:
        with pool.lease(1):
            inside.set()
            go.wait(30)
            order.append("run ended")

    def wait_for_a_session() -> None:
        try:
            with pool.lease(1):
                order.append("never")
        except P4QEdgeError as error:
            refused.append(str(error))

    def close() -> None:
        pool.close()
        order.append("closed")

    threads = [threading.Thread(target=run)]
    threads[0].start()
    assert inside.wait(30)
    threads += [threading.Thread(target=wait_for_a_session), threading.Thread(target=close)]
    for thread in threads[1:]:
        thread.start()
    threads[1].join(0.05)
    go.set()
    for thread in threads:
        thread.join(30)
    assert order[-1] == "closed"
    assert "run ended" in order
    assert refused in ([], ["the engine was closed. Load it again."])
