"""Which CUDA backend this machine gets."""

from __future__ import annotations

from p4q_edge.runtime.choices import CudaBackend
from p4q_edge.runtime.engines.cuda.base import BACKENDS, Cuda
from p4q_edge.runtime.errors import EnvironmentNotAbleError, UsageError


def open_cuda(backend: CudaBackend = "auto", *, device: int = 0) -> Cuda:
    """Return the GPU `device` through a backend, after the driver has counted its devices.

    `auto` takes `driver`, which all others stand on.

    Raises:
        EnvironmentNotAbleError: no backend is installed, its library does not load, or there is no driver or GPU.
        UsageError: no such backend, or fewer GPUs than `device`.
    """
    if backend not in BACKENDS:
        raise UsageError(f"expected a CUDA backend of {', '.join(BACKENDS)}, got {backend!r}.")
    # Imported here, so that a machine without a GPU never loads CUDA.
    try:
        if backend == "cuda-bindings":
            from p4q_edge.runtime.engines.cuda.bindings import CudaBindings

            return CudaBindings(device)
        if backend == "pycuda":
            from p4q_edge.runtime.engines.cuda.pycuda import PyCuda

            return PyCuda(device)
    except ImportError as error:
        raise EnvironmentNotAbleError(
            f"expected the Python package {backend}, which --cuda-backend asks for: {error}. Leave that option out, "
            f"as the driver itself is enough, or run: pip install {backend}"
        ) from error
    from p4q_edge.runtime.engines.cuda.driver import DriverCuda

    return DriverCuda(device)
