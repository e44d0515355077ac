"""The classes of TensorRT that our code uses, over NumPy; see `doubles`."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from doubles.tensorrt import TensorRTDouble

SIDE = 4
CLASSES = 5
OUTPUT_SIZES = {"logits": CLASSES, "embedding": 3, "features": 3}


class Last:
    """The double that was made last, which classes without an argument for it belong to."""

    double: TensorRTDouble


def version_key(version: str) -> tuple[int, ...]:
    """Return a version as numbers that compare."""
    return tuple(int(part) for part in version.split("."))


def make_enum(name: str, members: list[str], **values: int) -> Any:
    """Return an enum as TensorRT has it."""
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
        if version_key(Last.double.trt.__version__) < (10, 16):
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

    @property
    def num_outputs(self) -> int:
        return len(self._double.io) - 1

    def get_output(self, index: int) -> ITensor:
        name, (dtype, shape) = list(self._double.io.items())[index + 1]
        return ITensor(name, getattr(self._double.trt.DataType, dtype), shape)

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
        self._double = Last.double
        self._double.calls.append("Builder")
        if self._double.refuse_builder:
            logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

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
        for profile in config._profiles:
            self._double.batches = tuple(size for size, *_ in profile._shapes["image"])
        return b"plan"
