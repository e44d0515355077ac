"""Running TensorRT plans: checked against their card before TensorRT sees them, then one session a thread."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from p4q_edge.runtime.choices import CudaBackend
from p4q_edge.runtime.engines.contract import require_batch
from p4q_edge.runtime.engines.cuda.base import Cuda, DeviceFacts
from p4q_edge.runtime.engines.cuda.device import open_cuda
from p4q_edge.runtime.engines.tensorrt.kernel_cache import CachedContexts, check_validity, kernel_cache_path
from p4q_edge.runtime.engines.tensorrt.library import (
    RTX,
    TENSORRT,
    Library,
    check_compatible,
    import_library,
    import_tensorrt,
    machine_facts,
    make_logger,
    problems,
    rebuild_command,
)
from p4q_edge.runtime.engines.tensorrt.session import EngineIO, Session, SessionPool, read_io
from p4q_edge.runtime.errors import CorruptArtifactError, IncompatibleEngineError, InputError, UsageError
from p4q_edge.runtime.storage import sha256_bytes
from p4q_edge.runtime.wording import number_of

if TYPE_CHECKING:
    from p4q_edge.runtime.artifacts import Card

SESSIONS = 2
"""Two suffice to copy one batch while another computes; each needs device memory of its own."""
_DEVICE = re.compile(r"auto|cuda(?::(\d+))?")


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedPlan:
    """A plan that TensorRT has loaded, with all that must live as long as it."""

    name: str
    cuda: Cuda
    log: Any
    runtime: Any
    engine: Any
    contexts: Any
    """What makes execution contexts: the engine, or `CachedContexts` of it."""
    io: EngineIO


def load_plan(
    trt: Any, cuda: Cuda, plan: bytes, *, name: str, host_code: bool, library: Library = TENSORRT
) -> LoadedPlan:
    """Load a plan.

    Args:
        trt: the module of the library.
        cuda: the GPU.
        plan: its bytes.
        name: what messages call it.
        host_code: let code that the plan carries run.
        library: which built it.

    Raises:
        IncompatibleEngineError: the library cannot load it.
    """
    log = make_logger(trt)
    with cuda.current():
        runtime = trt.Runtime(log)
        if host_code:
            # Version-compatible plans carry code. It runs only if the card, whose digest fits, says so.
            runtime.engine_host_code_allowed = True
        if library.compiles_when_loaded:
            check_validity(trt, runtime, plan, name=name, gpu=cuda.facts)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise IncompatibleEngineError(
                f"{library.title} {trt.__version__} cannot load {name}: {problems(log)}. Run: {rebuild_command(name)}"
            )
        io = read_io(trt, engine, name=name)
        contexts = engine
        if library.compiles_when_loaded:
            contexts = CachedContexts(trt, engine, kernel_cache_path(plan, version=trt.__version__))
    return LoadedPlan(name=name, cuda=cuda, log=log, runtime=runtime, engine=engine, contexts=contexts, io=io)


class TensorRTEngine:
    """A TensorRT plan on one GPU. `run` may be called from several threads at once, `submit` from any."""

    def __init__(self, loaded: LoadedPlan, *, sessions: int = SESSIONS, graphs: bool = True) -> None:
        """Serve a loaded plan.

        Args:
            loaded: the plan.
            sessions: how many runs may be under way at once; each allocates the memory of the largest batch.
            graphs: replay a CUDA graph when a batch size repeats.

        Raises:
            UsageError: no session was asked for.
        """
        _require_sessions(sessions)
        self._cuda, self._io, self._log = loaded.cuda, loaded.io, loaded.log
        # Held one by one: `close` drops the engine before its runtime, while CUDA is there.
        self._engine, self._runtime, self._contexts = loaded.engine, loaded.runtime, loaded.contexts
        self._pool = SessionPool(
            lambda: Session(self._cuda, self._contexts, self._io, self._log, graphs=graphs), limit=sessions
        )
        # Threads start at the first `submit`; an engine that is only called directly never has any.
        self._executor = ThreadPoolExecutor(max_workers=sessions, thread_name_prefix="p4q-engine")

    @classmethod
    def open(
        cls,
        path: str | Path,
        card: Card,
        *,
        device: str = "auto",
        backend: CudaBackend = "auto",
        sessions: int = SESSIONS,
        graphs: bool = True,
    ) -> TensorRTEngine:
        """Check the plan against its card and this machine, then load it.

        Args:
            path: the plan.
            card: its card.
            device: `auto`, `cuda` or `cuda:N`.
            backend: how CUDA is reached: `driver` (the default), `cuda-bindings` or `pycuda`.
            sessions: how many runs may be under way at once; each allocates the memory of the largest batch.
            graphs: replay a CUDA graph when a batch size repeats.

        Raises:
            EnvironmentNotAbleError: no GPU, no CUDA backend or no TensorRT.
            IncompatibleEngineError: built by another TensorRT version, for another GPU or platform.
            CorruptArtifactError: not the plan of the card.
        """
        _require_sessions(sessions)
        path = Path(path)
        cuda = open_cuda(backend, device=device_index(device, engine=str(path)))
        library = library_of(card)
        trt = import_for(library, cuda.facts)
        here = machine_facts(trt, cuda.facts, library)
        check_compatible(card.built_with, here, engine=path, library=library, **_told_again(card))
        plan = path.read_bytes()
        # These very bytes are hashed and loaded, so that nothing can change the file between the two.
        if sha256_bytes(plan) != card.engine_sha256:
            raise CorruptArtifactError(
                f"{path} is not the plan that its card describes: their digests differ. Copy both files together, or "
                f"build again: {rebuild_command(path)}"
            )
        host_code = card.built_with.get("version_compatible") == "true"
        loaded = load_plan(trt, cuda, plan, name=str(path), host_code=host_code, library=library)
        return cls(loaded, sessions=sessions, graphs=graphs)

    @classmethod
    def from_plan(cls, trt: Any, cuda: Cuda, plan: bytes, *, name: str, library: Library = TENSORRT) -> TensorRTEngine:
        """Serve a plan that this machine built a moment ago, before it has a card."""
        host_code = library is TENSORRT
        return cls(load_plan(trt, cuda, plan, name=name, host_code=host_code, library=library), sessions=1)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(-1, 3, H, W): `run` takes any number of images, whatever batches the plan takes."""
        return (-1, *self._io.sample)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of all outputs."""
        return tuple(output.name for output in self._io.outputs)

    @property
    def batches(self) -> tuple[int, int]:
        """Smallest and largest batch of one GPU run; `run` pads what is smaller and splits what is larger."""
        return self._io.min_batch, self._io.max_batch

    @property
    def device_memory_bytes(self) -> int:
        """Scratch memory that TensorRT takes for each session."""
        return int(self._engine.device_memory_size_v2)

    @property
    def graph_refusals(self) -> list[str]:
        """Why sessions run without a CUDA graph; empty where all may use one."""
        return self._pool.refusals()

    def run(self, image: npt.NDArray[np.uint8], outputs: tuple[str, ...] | None = None) -> dict[str, npt.NDArray[Any]]:
        """Return the named outputs (all of them for None) of images (N, 3, H, W) uint8, RGB.

        More images than the largest batch are run in parts; a part below the smallest batch is padded with its last
        image, whose further results are dropped.

        Raises:
            P4QEdgeError: CUDA or TensorRT failed; the message has their reason.
        """
        names = self._check(image, outputs)
        parts = [self._run_part(part) for part in self._parts(image)]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def submit(
        self, image: npt.NDArray[np.uint8], outputs: tuple[str, ...] | None = None
    ) -> Future[dict[str, npt.NDArray[Any]]]:
        """Start `run` in a thread of the engine and return its future; the image must not change meanwhile."""
        self._check(image, outputs)
        return self._executor.submit(self.run, image, outputs)

    def device_times_ms(self, image: npt.NDArray[np.uint8], runs: int) -> list[float]:
        """Return the milliseconds of `runs` runs of one batch on the GPU's own clock, copies and padding included."""
        self._check(image, None)
        if len(image) > self._io.max_batch:
            raise InputError(
                f"expected at most {number_of(self._io.max_batch, 'image')} for one GPU run, got {len(image)}."
            )
        padded = self._padded(image)
        with self._cuda.current(), self._pool.lease(len(padded)) as session:
            return session.time_ms(padded, runs)

    def close(self) -> None:
        """Wait for what runs, then release all memory; the engine cannot be run afterwards."""
        self._executor.shutdown(wait=True)
        with self._cuda.current():
            self._pool.close()
            if isinstance(self._contexts, CachedContexts):
                self._contexts.save()
            # Contexts before the engine, the engine before the runtime: TensorRT's rule.
            self._contexts = None
            self._engine = None
            self._runtime = None

    def _run_part(self, image: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        padded = self._padded(image)
        with self._cuda.current(), self._pool.lease(len(padded)) as session:
            outputs = session.run(padded)
        return {name: values[: len(image)] for name, values in outputs.items()}

    def _padded(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        missing = self._io.min_batch - len(image)
        return image if missing <= 0 else np.concatenate([image, np.repeat(image[-1:], missing, axis=0)])

    def _parts(self, image: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
        size = self._io.max_batch
        return [image[start : start + size] for start in range(0, len(image), size)]

    def _check(self, image: npt.NDArray[np.uint8], outputs: tuple[str, ...] | None) -> tuple[str, ...]:
        require_batch(image, self._io.sample)
        if not len(image):
            raise ValueError(f"expected uint8 (N, {self._io.sample}) of at least one image, got none")
        names = self.output_names if outputs is None else outputs
        unknown = set(names) - set(self.output_names)
        if unknown:
            raise ValueError(f"expected outputs of {self.output_names}, got {sorted(unknown)}")
        return names


def device_index(device: str, *, engine: str) -> int:
    """Return the GPU index of `auto`, `cuda` or `cuda:N`.

    Raises:
        UsageError: another device.
    """
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise UsageError(
            f"{engine} is a TensorRT engine and runs on auto, cuda or cuda:N, not on {device!r}. For the CPU build "
            "an .onnx: p4q-edge build MODEL.p4q --engine out.onnx"
        )
    return int(match[1] or 0)


def library_of(card: Card) -> Library:
    """Return the library that built the engine of a card, and that runs it."""
    return RTX if RTX.key in card.built_with else TENSORRT


def _told_again(card: Card) -> dict[str, Any]:
    """Return what `check_compatible` needs to know of an engine's bundle and build, to name the command for another."""
    build: Any = card.build  # of a plan, as its `built_with` said
    # A plan that was kept in FP16 has no other trace of what it was measured against.
    flavours = {card.built_with.get("precision"), *build.inspection.rows}
    return {"of_fp8": "fp8" in flavours, "asked": "fp16" if build.options.precision == "fp16" else ""}


def import_for(library: Library, facts: DeviceFacts) -> Any:
    """Return the module of a library that shall run on a GPU.

    Raises:
        EnvironmentNotAbleError: it is missing, too old, or has no code for this GPU.
    """
    return import_tensorrt(facts) if library is TENSORRT else import_library(library, found=facts.name)


def fingerprint(device: str = "auto", library: Library = TENSORRT) -> Mapping[str, str]:
    """Return what decides the values of an engine: two machines with equal answers compute the same.

    Raises:
        EnvironmentNotAbleError: no GPU, no CUDA backend or no TensorRT.
    """
    cuda = open_cuda(device=device_index(device, engine="the engine"))
    facts = machine_facts(import_for(library, cuda.facts), cuda.facts, library)
    return {name: facts[name] for name in (library.key, "gpu", "compute_capability", "platform")}


def _require_sessions(sessions: int) -> None:
    if sessions < 1:
        raise UsageError(f"expected at least one session, got {sessions}.")
