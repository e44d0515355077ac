"""The classes of TensorRT that run an engine, over NumPy; see `doubles`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from doubles.tensorrt_api import ILogger, Last

if TYPE_CHECKING:
    from doubles.tensorrt import TensorRTDouble


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
        fixed, (smallest, _, largest) = self._double.io[name][1][0], self._double.batches
        taken = smallest <= shape[0] <= largest if fixed == -1 else shape[0] == fixed
        return taken and not self._double.refuse_shape

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
        self._double = Last.double
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
