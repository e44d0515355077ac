"""TensorRT for RTX, as a module: the classes of TensorRT 11 and what only this library has."""

from __future__ import annotations

from typing import Any

from doubles.cuda import RecordingCuda
from doubles.tensorrt import TensorRTDouble, make_module
from doubles.tensorrt_api import (
    Builder,
    IBuilderConfig,
    ILogger,
    INetworkDefinition,
    Last,
    make_enum,
)
from doubles.tensorrt_execution import ICudaEngine, IExecutionContext, Runtime

VERSION = "1.7.1.116"
CAPABILITIES = ["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"]
REASONS = {
    "VERSION_MISMATCH": 1,
    "UNSUPPORTED_CC": 2,
    "OLD_CUDA_DRIVER": 4,
    "OLD_CUDA_RUNTIME": 8,
    "INSUFFICIENT_GPU_MEMORY": 16,
    "MALFORMED_ENGINE": 32,
    "CUDA_ERROR": 64,
}
KERNELS = """Layers:
Name: __myl_Cast_myl0_0, LayerType: kgen, Inputs: [ { Name: image, Dimensions: [-1,3,4,4], Datatype: UInt8, Format: x }], Constants: [], Outputs: [ { Name: a, Dimensions: [-1,8], Datatype: Int8, Format: x }], TacticName: x, StreamId: 0, Metadata:
Name: fc_gemm_myl0_1, LayerType: gemm, Inputs: [ { Name: a, Dimensions: [-1,8], Datatype: Int8, Format: x }], Constants: [ { Name: w, Dimensions: [8,8], Datatype: Int8, Format: x }], Outputs: [ { Name: b, Dimensions: [-1,8], Datatype: Half, Format: x }], TacticName: y, StreamId: 0, Metadata:
"""  # noqa: E501 a line of the log for each kernel


class IRuntimeCache:
    def __init__(self, double: RtxDouble) -> None:
        self._double = double
        self._data = b""

    def deserialize(self, blob: bytes) -> bool:
        self._double.calls.append("cache deserialize")
        if not blob.startswith(self._double.cache_of):
            return False
        self._data = blob
        return True

    def serialize(self) -> bytes:
        return self._data


class IRuntimeConfig:
    def __init__(self, double: RtxDouble) -> None:
        self._double = double
        self._cache: IRuntimeCache | None = None
        self.cuda_graph_strategy: Any = None
        self.dynamic_shapes_kernel_specialization_strategy: Any = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache(self._double)

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True


class RtxEngine(ICudaEngine):
    _double: RtxDouble

    def create_runtime_config(self) -> IRuntimeConfig:
        self._double.runtime_configs.append(IRuntimeConfig(self._double))
        return self._double.runtime_configs[-1]

    def create_execution_context(self, runtime_config: IRuntimeConfig | None = None) -> IExecutionContext | None:
        assert runtime_config is not None, "a context without the kernel cache"
        cache = runtime_config._cache
        assert cache is not None
        if not cache._data:
            self._double.calls.append("compile kernels")
            cache._data = self._double.cache_of + b" kernels"
        return super().create_execution_context()


class RtxRuntime(Runtime):
    _double: RtxDouble

    def get_engine_validity(self, buffer: bytes) -> tuple[Any, int]:
        return getattr(self._double.trt.EngineValidity, self._double.validity), self._double.reasons

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        engine = super().deserialize_cuda_engine(serialized_engine)
        return None if engine is None else RtxEngine(self._double)


class RtxBuilderConfig(IBuilderConfig):
    def __init__(self, double: TensorRTDouble) -> None:
        super().__init__(double)
        self.num_compute_capabilities = 0
        self._capabilities: dict[int, str] = {}

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        assert index < self.num_compute_capabilities
        self._capabilities[index] = compute_capability.name
        return True


class RtxBuilder(Builder):
    def create_builder_config(self) -> IBuilderConfig:
        self._double.configs.append(RtxBuilderConfig(self._double))
        return self._double.configs[-1]

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        plan = super().build_serialized_network(network, config)
        self._log.log(ILogger.VERBOSE, KERNELS)
        return plan


class RtxDouble(TensorRTDouble):
    """Behaviour of the double of TensorRT for RTX; tests set the attributes that they need."""

    def __init__(self, cuda: RecordingCuda) -> None:
        super().__init__("11.4.0.106", cuda)
        self.validity = "VALID"
        self.reasons = 0
        self.cache_of = b"this GPU:"
        self.runtime_configs: list[IRuntimeConfig] = []
        self.trt = make_module("11.4.0.106")
        self.trt.__version__ = VERSION
        self.trt.Builder, self.trt.Runtime = RtxBuilder, RtxRuntime
        self.trt.ComputeCapability = make_enum("ComputeCapability", CAPABILITIES)
        self.trt.CudaGraphStrategy = make_enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
        strategies = ["LAZY", "EAGER", "NONE"]
        self.trt.DynamicShapesKernelSpecializationStrategy = make_enum("Strategy", strategies)
        self.trt.EngineValidity = make_enum("EngineValidity", ["VALID", "SUBOPTIMAL", "INVALID"])
        self.trt.EngineInvalidityDiagnostics = make_enum("EngineInvalidityDiagnostics", list(REASONS), **REASONS)
        Last.double = self


RTX_CLASSES = (IRuntimeCache, IRuntimeConfig, RtxEngine, RtxRuntime, RtxBuilderConfig)
"""Whose further members the contract test compares with the real library."""
