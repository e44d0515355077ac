"""One execution context with its memory: what a thread needs to run a TensorRT engine once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from p4q_edge.runtime.engines import contract
from p4q_edge.runtime.engines.contract import not_an_engine, require_outputs
from p4q_edge.runtime.engines.cuda.base import Cuda
from p4q_edge.runtime.engines.tensorrt.library import problems
from p4q_edge.runtime.errors import P4QEdgeError

logger = logging.getLogger(__name__)

INPUT = "image"


@dataclass(frozen=True, kw_only=True)
class PlanOutput:
    """One output of an engine: its name, the shape of a sample and the element type."""

    name: str
    sample: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, kw_only=True)
class EngineIO:
    """Inputs and outputs of an engine, and the batches that it takes."""

    sample: tuple[int, int, int]
    """(3, H, W)."""
    min_batch: int
    max_batch: int
    dynamic: bool
    outputs: tuple[PlanOutput, ...]


def read_io(trt: Any, engine: Any, *, name: str) -> EngineIO:
    """Return inputs and outputs of a deserialized engine.

    Raises:
        CorruptArtifactError: it is not an engine of P4Q Edge.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [tensor for tensor in names if engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT]
    shape = tuple(engine.get_tensor_shape(INPUT)) if inputs == [INPUT] else ()
    if len(shape) != 4 or shape[1] != 3 or engine.get_tensor_dtype(INPUT) != trt.DataType.UINT8:
        raise not_an_engine(name, f"{contract.INPUT}, got {inputs} {shape}")
    outputs = [tensor for tensor in names if tensor not in inputs]
    require_outputs(outputs, name=name)
    dynamic = shape[0] == -1
    profile = engine.get_tensor_profile_shape(INPUT, 0) if dynamic else [shape] * 3
    smallest, _, largest = (int(next(iter(dims))) for dims in profile)
    return EngineIO(
        sample=(3, shape[2], shape[3]),
        min_batch=smallest,
        max_batch=largest,
        dynamic=dynamic,
        outputs=tuple(_read_output(trt, engine, tensor, name=name) for tensor in outputs),
    )


def _read_output(trt: Any, engine: Any, tensor: str, *, name: str) -> PlanOutput:
    dtype = engine.get_tensor_dtype(tensor)
    if dtype != trt.DataType.FLOAT:
        raise not_an_engine(name, f"the output {tensor} as float32, got {dtype}")
    return PlanOutput(name=tensor, sample=tuple(engine.get_tensor_shape(tensor))[1:], dtype=np.dtype(np.float32))


class Session:
    """An execution context, a stream, and all memory of the largest batch, allocated once.

    A session serves one thread at a time. The first run of a batch size is plain; if the next run has the same size,
    the copies and the engine are captured into a CUDA graph, which is launched from then on. Another size drops the
    graph: a context holds the state of one shape, and a graph of another would read it.
    """

    def __init__(self, cuda: Cuda, engine: Any, io: EngineIO, log: Any, *, graphs: bool) -> None:
        """Allocate; the GPU must be current in this thread. Nothing stays allocated if anything fails.

        Raises:
            P4QEdgeError: device memory or a context cannot be made.
        """
        self._cuda, self._io, self._log = cuda, io, log
        self._graphs = graphs
        self._graph: Any | None = None
        self._batch = 0
        self._runs_of_batch = 0
        self.graph_refusal: str | None = None if graphs else "switched off"
        with ExitStack() as stack:
            self._stream = cuda.create_stream()
            stack.callback(cuda.destroy_stream, self._stream)
            self._context = engine.create_execution_context()
            if self._context is None:
                raise P4QEdgeError(
                    f"TensorRT cannot make an execution context: {problems(log)}. Free GPU memory, or build with a "
                    "smaller --max-batch."
                )
            sizes = {INPUT: io.max_batch * int(np.prod(io.sample))}
            sizes |= {
                output.name: io.max_batch * int(np.prod(output.sample)) * output.dtype.itemsize for output in io.outputs
            }
            self._host: dict[str, npt.NDArray[np.uint8]] = {}
            self._device: dict[str, int] = {}
            for tensor, size in sizes.items():
                self._device[tensor] = cuda.allocate(size)
                stack.callback(cuda.free, self._device[tensor])
                self._host[tensor] = cuda.allocate_pinned(size)
                stack.callback(cuda.free_pinned, self._host[tensor])
                self._set_address(tensor)
            self._resources = stack.pop_all()

    @property
    def batch(self) -> int:
        """The batch size that the context is set to; 0 before the first run."""
        return self._batch

    def run(self, image: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Return all outputs of images (N, 3, H, W) uint8; N is within the profile. The GPU must be current."""
        self._prepare(image)
        self._start()
        self._cuda.synchronize(self._stream)
        batch = len(image)
        return {output.name: self._host_output(output, batch).copy() for output in self._io.outputs}

    def time_ms(self, image: npt.NDArray[np.uint8], runs: int) -> list[float]:
        """Return the milliseconds of `runs` runs on the GPU's own clock, copies included; no outputs."""
        self._prepare(image)
        start, end = self._cuda.create_event(), self._cuda.create_event()
        times = []
        try:
            for _ in range(runs):
                self._cuda.record_event(start, self._stream)
                self._start()
                self._cuda.record_event(end, self._stream)
                times.append(self._cuda.elapsed_ms(start, end))
        finally:
            self._cuda.destroy_event(start)
            self._cuda.destroy_event(end)
        return times

    def close(self) -> None:
        """Release everything; the GPU must be current in this thread."""
        self._drop_graph()
        self._context = None
        self._resources.close()

    def _prepare(self, image: npt.NDArray[np.uint8]) -> None:
        batch = len(image)
        np.copyto(self._host[INPUT][: image.size].reshape(image.shape), image)
        if batch != self._batch:
            self._drop_graph()
            # A failure below must not leave the session believing in a shape that TensorRT refused.
            self._batch = self._runs_of_batch = 0
            if not self._context.set_input_shape(INPUT, image.shape):
                raise P4QEdgeError(f"TensorRT refuses the input shape {image.shape}: {problems(self._log)}.")
            self._batch = batch

    def _start(self) -> None:
        """Put one run on the stream, as a graph where there is one."""
        if self._graph is None and self._runs_of_batch and self.graph_refusal is None:
            captured = self._cuda.capture(self._stream, self._enqueue)
            self._graph, self.graph_refusal = captured.graph, captured.refusal
            if captured.refusal is not None:
                logger.warning("running without a CUDA graph: %s", captured.refusal)
        if self._graph is None:
            # The first run of a shape is never captured: TensorRT may allocate and update its state in it.
            self._enqueue()
        else:
            self._cuda.launch(self._graph, self._stream)
        self._runs_of_batch += 1

    def _enqueue(self) -> None:
        batch = self._batch
        size = batch * int(np.prod(self._io.sample))
        self._cuda.copy_to_device(self._device[INPUT], self._host[INPUT][:size], self._stream)
        if not self._context.execute_async_v3(self._cuda.stream_handle(self._stream)):
            raise P4QEdgeError(f"TensorRT cannot run the engine: {problems(self._log)}. Run `p4q-edge selftest`.")
        for output in self._io.outputs:
            self._cuda.copy_to_host(self._host_output(output, batch), self._device[output.name], self._stream)

    def _host_output(self, output: PlanOutput, batch: int) -> npt.NDArray[Any]:
        size = batch * int(np.prod(output.sample)) * output.dtype.itemsize
        return self._host[output.name][:size].view(output.dtype).reshape(batch, *output.sample)

    def _set_address(self, tensor: str) -> None:
        if not self._context.set_tensor_address(tensor, self._device[tensor]):
            raise P4QEdgeError(f"TensorRT refuses the memory of {tensor}: {problems(self._log)}.")

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._cuda.destroy_graph(self._graph)
            self._graph = None


class SessionPool:
    """At most `limit` sessions, made when they are first needed; a caller beyond that waits."""

    def __init__(self, make: Callable[[], Session], *, limit: int) -> None:
        """Make sessions with `make`, which runs in the calling thread."""
        self._make = make
        self._limit = limit
        self._idle: list[Session] = []
        self._count = 0
        self._closed = False
        self._changed = threading.Condition()

    @contextmanager
    def lease(self, batch: int) -> Iterator[Session]:
        """Give a session to the calling thread, one that last ran this batch size if there is one.

        A session whose run fails is closed: what CUDA left in it is not known.

        Raises:
            P4QEdgeError: the pool is closed.
        """
        session = self._take(batch)
        try:
            if session is None:
                session = self._make()
            yield session
        except BaseException:
            self._discard(session)
            raise
        with self._changed:
            self._idle.append(session)
            self._changed.notify_all()

    def close(self) -> None:
        """Wait for all leases to end and close every session; later leases fail."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._count == len(self._idle))
            sessions, self._idle = self._idle, []
            self._count = 0
        for session in sessions:
            session.close()

    def refusals(self) -> list[str]:
        """Return why idle sessions run without a CUDA graph, if any does."""
        with self._changed:
            return sorted({session.graph_refusal for session in self._idle if session.graph_refusal})

    def _take(self, batch: int) -> Session | None:
        """Return an idle session, or None where the caller is to make one."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._idle) or self._count < self._limit or self._closed)
            if self._closed:
                raise P4QEdgeError("the engine was closed. Load it again.")
            fitting = [session for session in self._idle if session.batch == batch]
            if not fitting and self._count < self._limit:
                self._count += 1
                return None
            session = (fitting or self._idle)[-1]
            self._idle.remove(session)
            return session

    def _discard(self, session: Session | None) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()
        if session is None:
            return
        try:
            session.close()
        except P4QEdgeError as error:
            # The caller gets the error that made the session unusable; this one follows from it.
            logger.warning("could not release a failed session: %s", error)
