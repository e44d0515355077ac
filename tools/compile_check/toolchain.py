"""NVIDIA's compiler on a machine without a GPU: pinned wheels, and the small object that joins them.

TensorRT-RTX comes in the wheel of its ONNX Runtime plug-in, the Python API in the wheel of the TensorRT 11
bindings. Both are downloaded into the user's cache (or taken from the environment, extra `compiler`), used
for development and tests only, and never shipped with anything.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PINS = {"onnxruntime-ep-nv-tensorrt-rtx-cu13": "0.5.0", "tensorrt-cu13-bindings": "11.4.0.106"}
LIBRARIES = "onnxruntime_ep_nv_tensorrt_rtx"
COMPILER = "libtensorrt_rtx.so.1.7.1"
PARSER = "libtensorrt_onnxparser_rtx.so.1.7.1"
SOURCE = Path(__file__).with_name("versions.c")


class ToolchainError(Exception):
    """The compiler cannot be had here; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """Where the pieces lie.

    Attributes:
        bindings: folder that holds the package `tensorrt_bindings`.
        libraries: folder of TensorRT-RTX and its parser.
        links: folder of the names under which the bindings look for these, and of our own object.
    """

    bindings: Path
    libraries: Path
    links: Path

    def environment(self) -> dict[str, str]:
        """Return the environment of a process that is to import `tensorrt_bindings`."""
        preload = [self.links / "libversions.so", self.libraries / COMPILER, self.libraries / PARSER]
        return {
            **os.environ,
            "LD_PRELOAD": " ".join(str(path) for path in preload),
            "LD_LIBRARY_PATH": f"{self.links}:{self.libraries}",
            "PYTHONPATH": str(self.bindings),
            # The kernels are to be the same on a machine that has a GPU.
            "CUDA_VISIBLE_DEVICES": "",
        }


def default_cache() -> Path:
    """Return the folder that keeps the wheels between runs."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "p4q-edge" / "compiler"


def find_toolchain(cache: Path | None = None) -> Toolchain:
    """Return the compiler, downloading it on first use.

    Raises:
        ToolchainError: another platform, no C compiler, or wheels that cannot be downloaded.
    """
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise ToolchainError(f"the compiler's wheels are for Linux on x86_64, this is {sys.platform}")
    key = hashlib.sha256(repr((sorted(PINS.items()), sys.version_info[:2], SOURCE.read_bytes())).encode())
    folder = (cache or default_cache()) / key.hexdigest()[:16]
    if not folder.is_dir():
        _make(folder)
    installed = _installed()
    return Toolchain(
        bindings=installed or folder / "packages",
        libraries=(installed or folder / "packages") / LIBRARIES,
        links=folder / "links",
    )


def _make(folder: Path) -> None:
    """Fill `folder` beside itself and rename it, so that an interrupted download leaves nothing half made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        if _installed() is None:
            _download(scratch)
        _compile(scratch / "links", _installed() or folder / "packages")
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _installed() -> Path | None:
    """Return the site-packages folder when both wheels are installed in the pinned versions."""
    try:
        found = [metadata.distribution(name) for name in PINS]
    except metadata.PackageNotFoundError:
        return None
    if [d.version for d in found] != list(PINS.values()):
        return None
    return Path(str(found[0].locate_file("")))


def _download(scratch: Path) -> None:
    wheels = scratch / "wheels"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--retries",
        "1",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
    ]
    command += [str(wheels), *(f"{name}=={version}" for name, version in PINS.items())]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ToolchainError(f"the wheels of NVIDIA's compiler cannot be downloaded: {last}")
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch / "packages")
    shutil.rmtree(wheels)


def _compile(links: Path, packages: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise ToolchainError("a C compiler is needed to join the wheels; install gcc")
    links.mkdir()
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(links / "libversions.so"), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ToolchainError(f"{SOURCE.name} does not compile: {done.stderr.strip().splitlines()[-1:]}")
    (links / "libnvinfer.so.11").symlink_to(packages / LIBRARIES / COMPILER)
    (links / "libnvonnxparser.so.11").symlink_to(packages / LIBRARIES / PARSER)
    (links / "libnvinfer_plugin.so.11").symlink_to("libversions.so")
