"""Importing TensorRT, its log, and whether a plan may be loaded here. CUDA is always asked first."""

from __future__ import annotations

import importlib
import logging
import platform
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from p4q_edge.runtime.engines.cuda.base import DeviceFacts
from p4q_edge.runtime.errors import EnvironmentNotAbleError, IncompatibleEngineError
from p4q_edge.runtime.machine import advice, jetpack_of

logger = logging.getLogger(__name__)

OLDEST = (10, 3)
"""JetPack 6.2 has TensorRT 10.3.0; nothing older is tested."""
STRONG_TYPING_COMPLETE = (10, 12)
"""From here on strong typing covers every layer (NVIDIA's migration guide), so nothing is retried without it."""
_KEPT_MESSAGES = 20


def import_tensorrt(facts: DeviceFacts) -> Any:
    """Return the `tensorrt` module.

    Args:
        facts: the GPU. That there are any proves a successful `cudaGetDeviceCount`, without which TensorRT's own
            factories crash instead of answering.

    Raises:
        EnvironmentNotAbleError: TensorRT is missing for this Python, does not load, or is too old.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise EnvironmentNotAbleError(
            f"expected the Python module tensorrt for Python {sys.version_info.major}.{sys.version_info.minor} "
            f"({facts.name} is there): {error}. {advice.HOW_TO_INSTALL}"
        ) from error
    if version_tuple(trt.__version__) < OLDEST:
        raise EnvironmentNotAbleError(
            f"expected TensorRT {OLDEST[0]}.{OLDEST[1]} or newer, got {trt.__version__}. Upgrade JetPack to 6.2 or "
            "newer, or TensorRT on a desktop."
        )
    problem = advice.without_code(
        trt.__version__, compute_capability=facts.compute_capability, jetpack=jetpack_of(l4t_release())
    )
    if problem is not None:
        raise EnvironmentNotAbleError(f"{problem}.")
    return trt


def make_builder(trt: Any, log: Any, facts: DeviceFacts) -> Any:
    """Return TensorRT's builder.

    Raises:
        EnvironmentNotAbleError: it does not start on this driver.
    """
    try:
        return trt.Builder(log)
    except TypeError as error:
        # The bindings' word for a factory that gave nothing; the reason, error 35 of CUDA, is in the log.
        problem = advice.refused_by_driver(trt.__version__, driver=facts.driver_version)
        raise EnvironmentNotAbleError(f"{problem}. TensorRT says: {problems(log)}") from error


def version_tuple(version: str) -> tuple[int, int]:
    """Return major and minor number of a version as `10.13.3.9`."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def make_logger(trt: Any) -> Any:
    """Return a TensorRT logger that passes everything on to `logging` and keeps the last errors.

    TensorRT reports failures as `None` or `False`; the reason is only in its log, so `problems(logger)` gives it.
    """

    # The base class exists only once TensorRT is imported, which needs a GPU.
    class TensorRTLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.problems: deque[str] = deque(maxlen=_KEPT_MESSAGES)
            self.levels = {
                trt.ILogger.INTERNAL_ERROR: logging.ERROR,
                trt.ILogger.ERROR: logging.ERROR,
                trt.ILogger.WARNING: logging.WARNING,
                trt.ILogger.INFO: logging.DEBUG,
            }

        def log(self, severity: Any, msg: str) -> None:
            level = self.levels.get(severity)
            if level is None:
                # Details, a line for every tried kernel: TensorRT has no way to keep them from crossing into Python.
                # One costs a microsecond: 6,002 of them in 0.8 s of compiling the demo, which a logger in C++ took too.
                return
            if level == logging.ERROR:
                self.problems.append(" ".join(msg.split()))
            logger.log(level, "TensorRT: %s", msg)

    return TensorRTLog()


def problems(log: Any) -> str:
    """Return TensorRT's own last errors on one line."""
    return " | ".join(log.problems) or "TensorRT gave no reason"


def platform_name() -> str:
    """Return the platform that a plan is bound to, as `linux-aarch64`."""
    return f"{platform.system().lower()}-{platform.machine()}"


def l4t_release(path: Path = Path("/etc/nv_tegra_release")) -> str:
    """Return the first line of Jetson's release file, or an empty text elsewhere."""
    return path.read_text(encoding="utf-8").splitlines()[0] if path.is_file() else ""


def machine_facts(trt: Any, facts: DeviceFacts) -> dict[str, str]:
    """Return what a plan is bound to and what it was made with, as the card records it."""
    return {
        "tensorrt": trt.__version__,
        "gpu": facts.name,
        "compute_capability": facts.compute_capability,
        "platform": platform_name(),
        "cuda_driver": facts.driver_version,
        "cuda_runtime": facts.runtime_version,
        "l4t": l4t_release(),
    }


def check_compatible(built_with: Mapping[str, str], here: Mapping[str, str], *, engine: Path) -> None:
    """Compare the card of a plan with this machine, before TensorRT sees the plan.

    Raises:
        IncompatibleEngineError: names what differs, both sides and the command that rebuilds.
    """
    differing = [
        key
        for key, fits in (
            ("tensorrt", _version_fits(built_with, here["tensorrt"])),
            ("compute_capability", _gpu_fits(built_with, here["compute_capability"])),
            ("platform", built_with.get("platform") == here["platform"]),
        )
        if not fits
    ]
    if differing:
        raise IncompatibleEngineError(
            f"{engine} was built by {_side(built_with)}; this device has {_side(here)} "
            f"(differing: {', '.join(differing)}). TensorRT plans do not move between versions, GPUs or platforms. "
            f"Run: p4q-edge build MODEL.p4q --engine {engine} --force"
        )


def _side(facts: Mapping[str, str]) -> str:
    return (
        f"TensorRT {facts.get('tensorrt', 'unknown')} for {facts.get('gpu', 'an unknown GPU')} "
        f"(compute capability {facts.get('compute_capability', 'unknown')}, {facts.get('platform', 'unknown')})"
    )


def _version_fits(built_with: Mapping[str, str], here: str) -> bool:
    built = built_with.get("tensorrt", "")
    if built_with.get("version_compatible") == "true" and built:
        return version_tuple(built) <= version_tuple(here)
    return built == here


def _gpu_fits(built_with: Mapping[str, str], here: str) -> bool:
    if built_with.get("hardware_compatibility") == "ampere_plus":
        return version_tuple(here) >= (8, 0)
    return built_with.get("compute_capability") == here
