"""Doubles of CUDA and TensorRT for the tests of this folder.

The TensorRT double has the classes, members and enums of `surface.json` and no other; the contract tests
(tests/compiler/contract) compare that file with NVIDIA's bindings, so what runs against the double uses only what every
supported TensorRT has. Its engine computes in NumPy: `embedding` of an image is the mean of its channels.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from p4q_edge.runtime.engines.cuda.base import Captured, DeviceFacts
from p4q_edge.runtime.errors import EnvironmentNotAbleError, P4QEdgeError

SIDE = 4
CLASSES = 5
OUTPUT_SIZES = {"logits": CLASSES, "embedding": 3, "features": 3}


class RecordingCuda:
    """`Cuda` over host memory: streams run at once, captures are replayed, every call is recorded."""

    name = "recording"

    def __init__(self, **facts: Any) -> None:
        known = {
            "index": 0,
            "name": "Orin",
            "compute_capability": "8.7",
            "total_memory_bytes": 8 << 30,
            "integrated": True,
            "driver_version": "12.6",
            "runtime_version": "12.6",
        }
        self.facts = DeviceFacts(**{**known, **facts})
        self.calls: list[str] = []
        self.memory_by_address: dict[int, np.ndarray] = {}
        self.pinned: list[int] = []
        self.open_streams = 0
        self.open_events = 0
        self.open_graphs = 0
        self.current_depth = 0
        self.capturing: list[Callable[[], None]] | None = None
        self.refuse_capture: str | None = None
        self.fail_at: tuple[str, int] | None = None
        self._next_address = 4096

    def _call(self, name: str) -> None:
        assert self.current_depth > 0, f"{name} without a current device"
        self.calls.append(name)
        if self.fail_at is not None and self.fail_at[0] == name and self.calls.count(name) == self.fail_at[1]:
            raise P4QEdgeError(f"{name} failed with cudaErrorMemoryAllocation")

    def on_stream(self, work: Callable[[], None]) -> None:
        if self.capturing is not None:
            self.capturing.append(work)
        else:
            work()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self.current_depth += 1
        try:
            yield
        finally:
            self.current_depth -= 1

    def memory(self) -> tuple[int, int]:
        return 6 << 30, 8 << 30

    def create_stream(self) -> str:
        self._call("create_stream")
        self.open_streams += 1
        return "stream"

    def stream_handle(self, stream: str) -> int:
        return 77

    def synchronize(self, stream: str) -> None:
        self._call("synchronize")

    def destroy_stream(self, stream: str) -> None:
        self._call("destroy_stream")
        self.open_streams -= 1

    def allocate(self, size_bytes: int) -> int:
        self._call("allocate")
        self._next_address += 1 << 20
        self.memory_by_address[self._next_address] = np.zeros(size_bytes, np.uint8)
        return self._next_address

    def free(self, address: int) -> None:
        self._call("free")
        del self.memory_by_address[address]

    def allocate_pinned(self, size_bytes: int) -> np.ndarray:
        self._call("allocate_pinned")
        array = np.zeros(size_bytes, np.uint8)
        self.pinned.append(array.ctypes.data)
        return array

    def free_pinned(self, array: np.ndarray) -> None:
        self._call("free_pinned")
        self.pinned.remove(array.ctypes.data)

    def copy_to_device(self, address: int, source: np.ndarray, stream: str) -> None:
        self._call("copy_to_device")
        assert source.flags.c_contiguous

        def copy() -> None:
            self.memory_by_address[address][: source.nbytes] = source.view(np.uint8).reshape(-1)

        self.on_stream(copy)

    def copy_to_host(self, target: np.ndarray, address: int, stream: str) -> None:
        self._call("copy_to_host")
        flat = target.reshape(-1).view(np.uint8)
        assert np.shares_memory(flat, target)

        def copy() -> None:
            flat[:] = self.memory_by_address[address][: flat.size]

        self.on_stream(copy)

    def capture(self, stream: str, enqueue: Callable[[], None]) -> Captured:
        self._call("capture")
        if self.refuse_capture is not None:
            return Captured(graph=None, refusal=self.refuse_capture)
        self.capturing = []
        try:
            enqueue()
            work = self.capturing
        except P4QEdgeError as error:
            return Captured(graph=None, refusal=str(error))
        finally:
            self.capturing = None
        self.open_graphs += 1
        return Captured(graph=work, refusal=None)

    def launch(self, graph: list[Callable[[], None]], stream: str) -> None:
        self._call("launch")
        for work in graph:
            work()

    def destroy_graph(self, graph: Any) -> None:
        self._call("destroy_graph")
        self.open_graphs -= 1

    def create_event(self) -> object:
        self._call("create_event")
        self.open_events += 1
        return object()

    def record_event(self, event: object, stream: str) -> None:
        self._call("record_event")

    def elapsed_ms(self, start: object, end: object) -> float:
        self._call("elapsed_ms")
        return 1.25

    def destroy_event(self, event: object) -> None:
        self._call("destroy_event")
        self.open_events -= 1

    @property
    def leaks(self) -> dict[str, int]:
        """What is still allocated."""
        held = {
            "device": len(self.memory_by_address),
            "pinned": len(self.pinned),
            "streams": self.open_streams,
            "events": self.open_events,
            "graphs": self.open_graphs,
        }
        return {name: count for name, count in held.items() if count}


def _enum(name: str, members: list[str], **values: int) -> Any:
    return IntEnum(name, {member: values.get(member, index) for index, member in enumerate(members)})


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self.initialized = True


class IProgressMonitor:
    def __init__(self) -> None:
        self.initialized = True


class Weights:
    def __init__(self, a: np.ndarray) -> None:
        self._array = a


class ITensor:
    def __init__(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape


class ILayer:
    def __init__(self, kind: Any, name: str, inputs: list[Any], output: ITensor, **known: Any) -> None:
        self.type, self.name = kind, name
        self._inputs, self._output, self._known = inputs, output, known
        self.num_inputs, self.num_outputs = len(inputs), 1

    def get_input(self, index: int) -> Any:
        return self._inputs[index]

    def get_output(self, index: int) -> ITensor:
        assert index == 0
        return self._output

    def set_input(self, index: int, tensor: ITensor) -> None:
        self._inputs[index] = tensor


class IConstantLayer(ILayer):
    @property
    def weights(self) -> np.ndarray:
        flat: np.ndarray = self._known["array"].reshape(-1)
        if _key(TensorRTDouble.last.trt.__version__) < (10, 16):
            # What the older bindings really give under NumPy 2; tests/compiler/contract shows it.
            return np.lib.stride_tricks.as_strided(flat, strides=(0,))
        return flat

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._known["array"].shape)


class IDequantizeLayer(ILayer):
    @property
    def axis(self) -> int:
        return int(self._known["axis"])


class ParserError:
    def node(self) -> int:
        return 7

    def node_name(self) -> str:
        return "block0/fc1/Q"

    def desc(self) -> str:
        return "Non-zero zero point is not supported"


class INetworkDefinition:
    def __init__(self, double: TensorRTDouble) -> None:
        self._double = double
        self._layers: list[ILayer] = []
        self._inputs: list[ITensor] = []

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]

    def add_constant(self, shape: tuple[int, ...], weights: Weights) -> IConstantLayer:
        dtypes = self._double.trt.DataType
        dtype = {"float16": dtypes.HALF, "float32": dtypes.FLOAT}[weights._array.dtype.name]
        name = f"constant{len(self._layers)}"
        layer = IConstantLayer(
            self._double.trt.LayerType.CONSTANT, name, [], ITensor(f"{name}_output", dtype, shape), array=weights._array
        )
        self._layers.append(layer)
        return layer


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._double = network._double

    def parse(self, model: bytes) -> bool:
        self._double.calls.append("parse")
        if self._double.parse_failures:
            self._double.parse_failures -= 1
            return False
        dtypes = self._double.trt.DataType
        self._network._inputs = [
            ITensor(name, getattr(dtypes, self._double.input_dtype), self._double.input_shape)
            for name in self._double.input_names
        ]
        self._network._layers = list(self._double.layers(self._double.trt))
        return True

    @property
    def num_errors(self) -> int:
        return 0 if self._double.silent_parser else 1

    def get_error(self, index: int) -> ParserError:
        return ParserError()


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, Any] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shapes[input] = (min, opt, max)


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> bytes:
        return self._data + b"timed "


class IBuilderConfig:
    def __init__(self, double: TensorRTDouble) -> None:
        self._double = double
        self._flags: list[Any] = []
        self._pools: dict[Any, int] = {}
        self._profiles: list[IOptimizationProfile] = []
        self._cache: ITimingCache | None = None
        self.builder_optimization_level = 3
        self.profiling_verbosity: Any = None
        self.hardware_compatibility_level: Any = None
        self.progress_monitor: Any = None

    def set_flag(self, flag: Any) -> None:
        self._flags.append(flag.name)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[pool.name] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return -1 if self._double.refuse_profile else len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if cache._data in self._double.foreign_caches:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder:
    def __init__(self, logger: ILogger) -> None:
        assert logger.initialized
        self._log = logger
        self._double = TensorRTDouble.last
        self._double.calls.append("Builder")

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        self._double.calls.append(f"create_network({flags})")
        self._double.networks.append(INetworkDefinition(self._double))
        return self._double.networks[-1]

    def create_builder_config(self) -> IBuilderConfig:
        self._double.configs.append(IBuilderConfig(self._double))
        return self._double.configs[-1]

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        self._double.calls.append("build_serialized_network")
        monitor = config.progress_monitor
        assert monitor.initialized
        monitor.phase_start("Building engine", None, 2)
        for step in range(2):
            if not monitor.step_complete("Building engine", step):
                self._log.log(ILogger.ERROR, "BuildCanceled")
                return None
        monitor.phase_finish("Building engine")
        if self._double.build_failures:
            self._log.log(ILogger.ERROR, self._double.build_failures.pop(0))
            return None
        return b"plan"


class EngineInspector:
    def __init__(self, double: TensorRTDouble) -> None:
        self._double = double

    def get_engine_information(self, format: Any) -> str:
        assert format.name == "JSON"
        return self._double.inspection


class IExecutionContext:
    def __init__(self, double: TensorRTDouble) -> None:
        self._double = double
        self._shape: tuple[int, ...] | None = None
        self._addresses: dict[str, int] = {}
        double.open_contexts += 1

    def __del__(self) -> None:
        self._double.calls.append("context released")
        self._double.open_contexts -= 1

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._double.calls.append(f"set_input_shape{tuple(shape)}")
        self._shape = tuple(shape)
        return not self._double.refuse_shape

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return not self._double.refuse_address

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == 77
        self._double.calls.append("execute_async_v3")
        cuda = self._double.cuda
        if self._double.fail_execute or (cuda.capturing is not None and self._double.fail_capture):
            self._double.logs[-1].log(ILogger.ERROR, "myelin graph has dynamic allocations")
            return False
        cuda.on_stream(self._compute)
        return True

    def _compute(self) -> None:
        assert self._shape is not None
        memory = self._double.cuda.memory_by_address
        image = memory[self._addresses["image"]][: int(np.prod(self._shape))].reshape(self._shape)
        for name, array in self._double.compute(image).items():
            memory[self._addresses[name]][: array.nbytes] = array.reshape(-1).view(np.uint8)


class ICudaEngine:
    def __init__(self, double: TensorRTDouble) -> None:
        self._double = double
        self.num_io_tensors = len(double.io)
        self.device_memory_size_v2 = 12345

    def get_tensor_name(self, index: int) -> str:
        return list(self._double.io)[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self._double.trt.TensorIOMode
        return modes.INPUT if name in self._double.engine_inputs else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(self._double.trt.DataType, self._double.io[name][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._double.io[name][1]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        return [(size, *self._double.io[name][1][1:]) for size in self._double.batches]

    def create_execution_context(self) -> IExecutionContext | None:
        self._double.calls.append("create_execution_context")
        return None if self._double.refuse_context else IExecutionContext(self._double)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._double)


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        assert logger.initialized
        self._double = TensorRTDouble.last
        self._double.calls.append("Runtime")
        self._double.logs.append(logger)
        self._double.runtimes.append(self)
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        self._double.calls.append("deserialize_cuda_engine")
        if self._double.refuse_plan:
            self._double.logs[-1].log(ILogger.ERROR, "Serialization assertion magicTag failed")
            return None
        return ICudaEngine(self._double)


CLASSES_OF_MODULE = (
    ILogger,
    IProgressMonitor,
    Weights,
    IConstantLayer,
    IDequantizeLayer,
    OnnxParser,
    Builder,
    Runtime,
)
CLASSES_BEHIND = (
    ITensor,
    ILayer,
    ParserError,
    INetworkDefinition,
    IOptimizationProfile,
    ITimingCache,
    IBuilderConfig,
    EngineInspector,
    IExecutionContext,
    ICudaEngine,
)


def compute(image: np.ndarray) -> dict[str, np.ndarray]:
    """What the double's engine computes of (N, 3, H, W) uint8."""
    features = image.reshape(len(image), 3, -1).mean(axis=2).astype(np.float32)
    norms = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)
    embedding = (features / norms).astype(np.float32)
    heads = np.linspace(-1, 1, 3 * CLASSES, dtype=np.float32).reshape(3, CLASSES)
    # not `@`: BLAS rounds a row differently when the number of rows differs, and the tests compare bits
    logits = (embedding[:, :, None] * heads).sum(axis=1, dtype=np.float32)
    return {"logits": logits, "embedding": embedding, "features": features}


class TensorRTDouble:
    """Behaviour of the double of one version; tests set the attributes that they need."""

    last: TensorRTDouble

    def __init__(self, version: str, cuda: RecordingCuda) -> None:
        TensorRTDouble.last = self
        self.cuda = cuda
        self.calls: list[str] = []
        self.networks: list[INetworkDefinition] = []
        self.configs: list[IBuilderConfig] = []
        self.runtimes: list[Runtime] = []
        self.logs: list[Any] = []
        self.open_contexts = 0
        self.parse_failures = 0
        self.silent_parser = False
        self.build_failures: list[str] = []
        self.foreign_caches: set[bytes] = set()
        self.refuse_profile = self.refuse_plan = self.refuse_context = self.refuse_shape = self.refuse_address = False
        self.fail_execute = self.fail_capture = False
        self.input_names = ["image"]
        self.input_dtype = "UINT8"
        self.input_shape: tuple[int, ...] = (-1, 3, SIDE, SIDE)
        self.layers: Callable[[Any], list[ILayer]] = lambda trt: []
        self.engine_inputs = ["image"]
        self.io: dict[str, tuple[str, tuple[int, ...]]] = {
            "image": ("UINT8", (-1, 3, SIDE, SIDE)),
            **{name: ("FLOAT", (-1, size)) for name, size in OUTPUT_SIZES.items()},
        }
        self.batches = (1, 1, 4)
        self.compute: Callable[[np.ndarray], dict[str, np.ndarray]] = compute
        self.inspection = json.dumps({"Layers": [], "Bindings": []})
        self.trt = make_module(version)


def make_module(version: str) -> Any:
    """Return a module double with the enums that this version has."""
    surface = json.loads(SURFACE.read_text(encoding="utf-8"))
    enums = {}
    for name, members in surface["enums"].items():
        since = surface["enums_since"].get(name, {})
        until = surface["enums_until"].get(name, {})
        present = [
            *members,
            *(member for member, first in since.items() if _key(version) >= _key(first)),
            *(member for member, last in until.items() if _key(version) < _key(last)),
        ]
        # The value differs between versions: the code must not know it.
        values = {"STRONGLY_TYPED": 1 if _key(version) < (11,) else 0}
        enums[name] = _enum(name, present, **{key: value for key, value in values.items() if key in present})
    return SimpleNamespace(__version__=version, **enums, **{kind.__name__: kind for kind in CLASSES_OF_MODULE})


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


SURFACE = Path(__file__).with_name("surface.json")


@pytest.fixture
def cuda() -> RecordingCuda:
    """A Jetson Orin."""
    return RecordingCuda()


@pytest.fixture
def desktop() -> RecordingCuda:
    """A desktop GPU."""
    return RecordingCuda(name="NVIDIA RTX A2000", compute_capability="8.6", integrated=False)


@pytest.fixture(params=["10.3.0", "10.13.3.9", "10.16.1.11", "11.4.0.106"])
def double(request: pytest.FixtureRequest, cuda: RecordingCuda) -> TensorRTDouble:
    """TensorRT, every supported version in turn."""
    return TensorRTDouble(request.param, cuda)


@pytest.fixture
def double_of(cuda: RecordingCuda) -> Callable[[str], TensorRTDouble]:
    """TensorRT of a version that the test chooses."""
    return lambda version: TensorRTDouble(version, cuda)


@pytest.fixture
def doubles() -> Any:
    """The classes of the double and helpers, for tests that build networks of it."""
    return SimpleNamespace(
        compute=compute,
        ILayer=ILayer,
        ITensor=ITensor,
        IConstantLayer=IConstantLayer,
        IDequantizeLayer=IDequantizeLayer,
        classes=(*CLASSES_OF_MODULE, *CLASSES_BEHIND),
        surface=json.loads(SURFACE.read_text(encoding="utf-8")),
        make_module=make_module,
        RecordingCuda=RecordingCuda,
    )


@pytest.fixture
def images() -> np.ndarray:
    """(9, 3, SIDE, SIDE) uint8."""
    return np.random.default_rng(0).integers(0, 256, (9, 3, SIDE, SIDE), dtype=np.uint8)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, double: TensorRTDouble) -> TensorRTDouble:
    """Install the doubles where the runtime looks for CUDA and TensorRT."""
    _install(monkeypatch, double)
    return double


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[TensorRTDouble], None]:
    """Install a double that the test made."""
    return lambda double: _install(monkeypatch, double)


def _install(monkeypatch: pytest.MonkeyPatch, double: TensorRTDouble) -> None:
    def open_cuda(backend: str = "auto", *, device: int = 0) -> RecordingCuda:
        double.calls.append("open_cuda")
        return double.cuda

    for module in ("engines.tensorrt.engine", "builders.tensorrt.builder", "builders.tensorrt.worker"):
        monkeypatch.setattr(f"p4q_edge.runtime.{module}.open_cuda", open_cuda)
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", double.trt)


@pytest.fixture
def gpu() -> Iterator[Any]:
    """A real GPU through cuda.bindings; tests with it are skipped, and counted, where there is none."""
    pytest.importorskip("cuda.bindings.runtime", reason="no GPU: cuda-bindings is not installed")
    from p4q_edge.runtime.engines.cuda.bindings import CudaBindings

    try:
        backend = CudaBindings(0)
    except EnvironmentNotAbleError as error:
        pytest.skip(f"no GPU: {error}")
    with backend.current():
        yield backend
