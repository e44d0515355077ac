"""The two libraries that run engines on GPUs, their log, and whether an engine may be loaded here."""

from __future__ import annotations

import importlib
import logging
import platform
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p4q_edge.runtime.engines.cuda.base import DeviceFacts
from p4q_edge.runtime.errors import EnvironmentNotAbleError, IncompatibleEngineError
from p4q_edge.runtime.machine import advice, jetpack_of
from p4q_edge.runtime.storage import quoted

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Library:
    """One of NVIDIA's two libraries with the same Python API; everything in which they differ is asked here.

    Attributes:
        title: what messages call it.
        module: what Python imports.
        key: under which name a card has its version.
        oldest: the oldest version that is supported.
        upgrade: how to come by a newer one.
        install: how to come by one.
        moves: what its engines do not move between.
        compiles_when_loaded: whether kernels are compiled for the GPU when an engine is loaded, and kept in a cache.
    """

    title: str
    module: str
    key: str
    oldest: tuple[int, int]
    upgrade: str
    install: str
    moves: str
    compiles_when_loaded: bool


TENSORRT = Library(
    title="TensorRT",
    module="tensorrt",
    key="tensorrt",
    # JetPack 6.2 has TensorRT 10.3.0; nothing older is tested.
    oldest=(10, 3),
    upgrade="Upgrade JetPack to 6.2 or newer, or TensorRT on a desktop.",
    install=advice.HOW_TO_INSTALL,
    moves="TensorRT plans do not move between versions, GPUs or platforms.",
    compiles_when_loaded=False,
)
RTX = Library(
    title="TensorRT for RTX",
    module="tensorrt_rtx_bindings",
    key="tensorrt_rtx",
    # The pair of wheels that the tests compile with; engines do not move between versions.
    oldest=(1, 7),
    upgrade=advice.INSTALL_RTX,
    install=advice.INSTALL_RTX,
    moves="Engines of TensorRT for RTX do not move between versions, or to GPUs that they were not built for.",
    compiles_when_loaded=True,
)

STRONG_TYPING_COMPLETE = (10, 12)
"""From here on strong typing covers every layer (NVIDIA's migration guide), so nothing is retried without it."""
INT4_READ = (10, 13)
"""The first that we take graphs of opset 21 with INT4 weights to; 10.3 stops at opset 20."""
FP8_SINCE = (8, 9)
"""Compute capability of the first GPUs that multiply FP8 numbers: Ada, and after it Hopper and Blackwell."""
_KEPT_MESSAGES = 20


def import_tensorrt(facts: DeviceFacts) -> Any:
    """Return the module `tensorrt`.

    Args:
        facts: the GPU. That there are any proves that the driver counted its devices, without which TensorRT's own
            factories crash instead of answering.

    Raises:
        EnvironmentNotAbleError: TensorRT is missing for this Python, does not load, is too old, or has no code for this
            GPU.
    """
    trt = import_library(TENSORRT, found=facts.name)
    problem = advice.without_code(
        trt.__version__, compute_capability=facts.compute_capability, jetpack=jetpack_of(l4t_release())
    )
    if problem is not None:
        raise EnvironmentNotAbleError(f"{problem}.")
    return trt


def import_library(library: Library, *, found: str = "") -> Any:
    """Return the module of a library.

    Args:
        library: which.
        found: name of the GPU that it shall run on; "" where it only compiles.

    Raises:
        EnvironmentNotAbleError: it is missing for this Python, does not load, or is too old.
    """
    try:
        trt = importlib.import_module(library.module)
    except ImportError as error:
        there = f" ({found} is there)" if found else ""
        raise EnvironmentNotAbleError(
            f"expected the Python module {library.module} for Python {sys.version_info.major}.{sys.version_info.minor}"
            f"{there}: {error}. {library.install}"
        ) from error
    if version_tuple(trt.__version__) < library.oldest:
        raise EnvironmentNotAbleError(
            f"expected {library.title} {library.oldest[0]}.{library.oldest[1]} or newer, got {trt.__version__}. "
            f"{library.upgrade}"
        )
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


def make_logger(trt: Any, *, keep: str | None = None) -> Any:
    """Return a TensorRT logger that passes everything on to `logging` and keeps the last errors.

    TensorRT reports failures as `None` or `False`; the reason is only in its log, so `problems(logger)` gives it.

    Args:
        trt: the module.
        keep: of the details, the messages with this text stay in the logger's list `kept`.
    """

    # The base class exists only once TensorRT is imported, which needs a GPU.
    class TensorRTLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.problems: deque[str] = deque(maxlen=_KEPT_MESSAGES)
            self.kept: list[str] = []
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
                if keep is not None and keep in msg:
                    self.kept.append(msg)
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


def machine_facts(trt: Any, facts: DeviceFacts, library: Library = TENSORRT) -> dict[str, str]:
    """Return what an engine is bound to and what it was made with, as the card records it."""
    return {
        library.key: trt.__version__,
        "gpu": facts.name,
        "compute_capability": facts.compute_capability,
        "platform": platform_name(),
        "cuda_driver": facts.driver_version,
        "cuda_runtime": facts.runtime_version,
        "l4t": l4t_release(),
    }


def known_capabilities(trt: Any) -> dict[str, Any]:
    """Return what TensorRT for RTX compiles for, by compute capability as `8.6`, with the member of its enumeration."""
    members = {name: getattr(trt.ComputeCapability, name) for name in dir(trt.ComputeCapability)}
    return {f"{name[2:-1]}.{name[-1]}": member for name, member in members.items() if name.startswith("SM")}


def rebuild_command(engine: Path | str, *, capability: str = "", precision: str = "") -> str:
    """Return the command that builds an engine again; for GPUs of one compute capability, as `8.6`, or as before.

    Args:
        precision: of the new engine; empty leaves it to the build.
    """
    options = f"{capability and f' --capability {capability}'}{precision and f' --precision {precision}'}"
    return f"p4q-edge build MODEL.p4q --engine {quoted(engine)}{options} --force"


def check_compatible(
    built_with: Mapping[str, str],
    here: Mapping[str, str],
    *,
    engine: Path,
    library: Library = TENSORRT,
    of_fp8: bool = False,
    asked: str = "",
) -> None:
    """Compare the card of an engine with this machine, before the library sees the engine.

    Args:
        of_fp8: the bundle that it was built from is quantized to FP8, whatever the engine computes in.
        asked: the precision that its build was told, to be told again; empty where it was left to the build.

    Raises:
        IncompatibleEngineError: names what differs, both sides and the command that rebuilds.
    """
    checks = {
        library.key: _version_fits(built_with, here[library.key], library),
        "compute_capability": _gpu_fits(built_with, here["compute_capability"]),
        "platform": built_with.get("platform") == here["platform"],
    }
    differing = [key for key, fits in checks.items() if not fits]
    if differing:
        other_gpu = library.compiles_when_loaded and "compute_capability" in differing
        capability = here["compute_capability"] if other_gpu else ""
        way_out = f"Run: {rebuild_command(engine, capability=capability, precision=asked)}"
        if of_fp8 and not multiplies_fp8(here["compute_capability"]):
            way_out = (
                "This GPU multiplies no FP8 numbers: export with the recipe int8, or build their values in FP16 here. "
                f"Run: {rebuild_command(engine, capability=capability, precision='fp16')}"
            )
        raise IncompatibleEngineError(
            f"{engine} was built by {_side(built_with, library)}; this device has {_side(here, library)} "
            f"(differing: {', '.join(differing)}). {library.moves} {way_out}"
        )


def _side(facts: Mapping[str, str], library: Library) -> str:
    return (
        f"{library.title} {facts.get(library.key, 'unknown')} for {facts.get('gpu', 'an unknown GPU')} "
        f"(compute capability {facts.get('compute_capability', 'unknown')}, {facts.get('platform', 'unknown')})"
    )


def _version_fits(built_with: Mapping[str, str], here: str, library: Library) -> bool:
    built = built_with.get(library.key, "")
    if built_with.get("version_compatible") == "true" and built:
        return version_tuple(built) <= version_tuple(here)
    return built == here


def _gpu_fits(built_with: Mapping[str, str], here: str) -> bool:
    """Return whether an engine was built for a GPU."""
    if built_with.get("hardware_compatibility") == "ampere_plus":
        return version_tuple(here) >= (8, 0)
    return covers_gpu(built_with.get("compute_capability", ""), here)


def multiplies_fp8(compute_capability: str) -> bool:
    """Return whether GPUs of a compute capability, as `8.9`, multiply FP8 numbers."""
    return version_tuple(compute_capability) >= FP8_SINCE


def covers_gpu(built: str, here: str) -> bool:
    """Return whether compute capabilities as a card has them, `8.7`, `8.6,8.9` or `8.0+`, include that of a GPU."""
    if built.endswith("+"):
        return version_tuple(here) >= version_tuple(built[:-1])
    return here in built.split(",")
