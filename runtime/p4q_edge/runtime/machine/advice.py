"""What is advised where something is missing: the one place that decides, for messages, doctor and guide.

Facts of NVIDIA's documents and of public reports; nothing here was tried on a board.
"""

from __future__ import annotations

NO_DRIVER = "no CUDA driver is installed"
OLD_DRIVER = "the CUDA driver is too old"
DOES_NOT_START = "does not start on"
ASK_THE_DOCTOR = "Run `p4q-edge doctor`"
ON_THE_CPU = f"{ASK_THE_DOCTOR}, or build for the CPU: `p4q-edge build MODEL.p4q --engine out.onnx`."

COMPATIBILITY = "cuda-compat-12-9"
"""The package with the user half of a newer driver, for Jetson and data centre GPUs; JetPack 6 is on CUDA 12.6."""
CONTAINER = "nvcr.io/nvidia/tensorrt:26.03-py3"
"""TensorRT 10.16.1, reported to run on an Orin NX with JetPack 6.2 (ika-rwth-aachen/ros2-depth-anything-v3-trt #16)."""

HOW_TO_INSTALL = (
    "On a Jetson use its own Python, `python3 -m venv --system-site-packages`, for which JetPack has TensorRT; on a "
    "desktop `pip install tensorrt-cu13`, or `tensorrt-cu12` with a driver for CUDA 12. `p4q-edge doctor` tells which."
)

INSTALL_RTX = (
    "Run: pip install './runtime[tensorrt-rtx]' in a checkout (Linux on x86_64), which installs "
    "tensorrt-rtx-cu13-bindings and tensorrt-rtx-cu13-libs 1.7.1.116; with a driver for CUDA 12 "
    "'./runtime[tensorrt-rtx-cu12]'."
)

FIRST_WITH_ORIN = (10, 16)
"""The first TensorRT for servers (SBSA, the build of JetPack 7) with code for Orin, compute capability 8.7."""
FIRST_SBSA = (10, 13)
"""The first TensorRT that JetPack 7 brought."""
FIRST_RIGHT = (10, 16)
"""The first TensorRT for which reports call DINOv2-like vision transformers right that 10.3 computes wrongly."""

OVERFLOW_IN_OPENVINO = (
    "OpenVINO adds 8-bit products in 16 bits on this processor (x86 without VNNI), and those of 8-bit weights overflow"
)
FP8_IN_OPENVINO = "OpenVINO leaves the rounding of inputs to FP8 out, so that it computes something else"
"""Seen in 2026.4: its outputs are those of the profile `float`."""


def without_doctor(problem: str | None) -> str:
    """Return a problem without the advice to run the doctor, which is the one that tells of it."""
    return (problem or "").partition(ASK_THE_DOCTOR)[0].rstrip().removesuffix(".")


def install_driver(*, jetson: bool) -> str:
    """Return the command that installs a driver."""
    if jetson:
        return "sudo apt install nvidia-jetpack && sudo reboot"
    return "sudo apt install nvidia-driver  # on Ubuntu: sudo ubuntu-drivers install"


def newer_driver(*, jetson: bool) -> str:
    """Return the command for a driver that runs a newer CUDA."""
    if jetson:
        return f"sudo apt install {COMPATIBILITY}  # from NVIDIA's CUDA repository"
    return install_driver(jetson=False)


def install_tensorrt(*, jetpack: int | None, cuda: str) -> str:
    """Return the command that installs TensorRT.

    Args:
        jetpack: the major version of JetPack; None elsewhere.
        cuda: the newest CUDA that the driver runs, as `12.6`; "" where it is not known.
    """
    if jetpack is not None:
        return "sudo apt install nvidia-jetpack python3-libnvinfer"
    major = cuda.partition(".")[0]
    return f"pip install tensorrt-cu{major}" if major else "pip install tensorrt-cu13  # CUDA 12: tensorrt-cu12"


def refused_by_driver(version: str, *, driver: str) -> str:
    """Return what it means that TensorRT starts no builder on a driver that works.

    Args:
        version: of TensorRT.
        driver: the newest CUDA that the driver runs, as `12.6`.
    """
    return (
        f"TensorRT {version} {DOES_NOT_START} a driver for CUDA {driver}, as happens where it was made for a newer "
        f"CUDA. Install a TensorRT of that CUDA, or a newer driver; on a Jetson `{newer_driver(jetson=True)}`"
    )


def without_code(version: str, *, compute_capability: str, jetpack: int | None) -> str | None:
    """Return why a TensorRT has no code for this GPU, with the remedy, or None.

    Args:
        version: of TensorRT, as `10.13.3.9`.
        compute_capability: of the GPU, as `8.7`.
        jetpack: the major version of JetPack; None elsewhere.
    """
    if compute_capability != "8.7" or jetpack is None or jetpack < 7:
        return None
    if not FIRST_SBSA <= _numbers(version) < FIRST_WITH_ORIN:
        return None
    return (
        f"TensorRT {version} of JetPack 7 has no code for Orin (compute capability 8.7); 10.16 is the first that has. "
        f"Update to JetPack 7.2 or newer, or run the container {CONTAINER}"
    )


def wrong_transformers(version: str) -> str | None:
    """Return what is known of wrong values of a TensorRT, with the remedy, or None."""
    if _numbers(version) >= FIRST_RIGHT:
        return None
    return (
        f"This is TensorRT {version}: boards with 10.3 are reported to compute DINOv2-like vision transformers wrongly "
        "that 10.16.1 computes right (and NVIDIA calls 10.3's wrong transformers a bug, NVIDIA/TensorRT #4419). If "
        f"values are wrong, build with TensorRT 10.16 or newer, for example in the container {CONTAINER}"
    )


def reported_wrong(version: str) -> bool:
    """Return whether a TensorRT is one of those that reports call wrong: 10.5 was right in NVIDIA/TensorRT #4419."""
    return _numbers(version) < (10, 5)


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
