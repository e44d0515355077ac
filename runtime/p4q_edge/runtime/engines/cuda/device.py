"""Which CUDA backend this machine gets."""

from __future__ import annotations

from p4q_edge.runtime.engines.cuda.base import BACKENDS, Backend, Cuda
from p4q_edge.runtime.errors import EnvironmentNotAbleError, UsageError


def open_cuda(backend: Backend = "auto", *, device: int = 0) -> Cuda:
    """Return the GPU `device` through a backend, after a successful `cudaGetDeviceCount`.

    `auto` takes `cuda.bindings` where it is installed and `pycuda` otherwise.

    Raises:
        EnvironmentNotAbleError: no backend is installed, its library does not load, or there is no driver or GPU.
        UsageError: no such backend, or fewer GPUs than `device`.
    """
    if backend not in BACKENDS:
        raise UsageError(f"expected a CUDA backend of {', '.join(BACKENDS)}, got {backend!r}.")
    missing: list[str] = []
    if backend != "pycuda":
        try:
            # Imported here, as pycuda below, so that a machine without a GPU never loads CUDA.
            from p4q_edge.runtime.engines.cuda.bindings import CudaBindings

            return CudaBindings(device)
        except ImportError as error:
            missing.append(f"cuda.bindings: {error}")
    if backend != "cuda-bindings":
        try:
            from p4q_edge.runtime.engines.cuda.pycuda import PyCuda

            return PyCuda(device)
        except ImportError as error:
            missing.append(f"pycuda: {error}")
    raise EnvironmentNotAbleError(
        f"TensorRT needs a CUDA backend, and none can be imported ({'; '.join(missing)}). "
        "Install the one of your CUDA version: `pip install 'cuda-bindings==12.*'` (JetPack 6) or "
        "`pip install 'cuda-bindings==13.*'` (JetPack 7)."
    )
