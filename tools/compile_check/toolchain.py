"""NVIDIA's compiler on a machine without a GPU: the matching wheels of TensorRT-RTX, bindings and libraries.

They are downloaded into the user's cache (or taken from the environment, extra `compiler`), used for development and
tests only, and never shipped with anything.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

VERSION = "1.7.1.116"
FLAVOURS = ("13", "12")
"""Versions of CUDA for whose drivers there is a pair of wheels, the usual one first."""


def pins(cuda: str = FLAVOURS[0]) -> dict[str, str]:
    """Return the wheels for a version of CUDA, with their versions."""
    return {f"tensorrt-rtx-cu{cuda}-{part}": VERSION for part in ("bindings", "libs")}


class ToolchainError(Exception):
    """The compiler cannot be had here; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """Where the packages `tensorrt_rtx_bindings` and `tensorrt_rtx_libs` lie."""

    packages: Path

    def environment(self) -> dict[str, str]:
        """Return the environment of a process that is to import `tensorrt_rtx_bindings`."""
        # The kernels are to be the same on a machine that has a GPU.
        return {**os.environ, "PYTHONPATH": str(self.packages), "CUDA_VISIBLE_DEVICES": ""}


def default_cache() -> Path:
    """Return the folder that keeps the wheels between runs."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "p4q-edge" / "compiler"


def find_toolchain(cache: Path | None = None, *, cuda: str = FLAVOURS[0]) -> Toolchain:
    """Return the compiler for a version of CUDA, downloading it on first use.

    Raises:
        ToolchainError: another platform, or wheels that cannot be downloaded.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise ToolchainError(f"the compiler's wheels are for Linux on x86_64, this is {sys.platform}")
    wanted = pins(cuda)
    installed = _installed(wanted)
    if installed is not None:
        return Toolchain(packages=installed)
    # The bindings are built for one Python: another one that ran here before must not leave its own.
    key = hashlib.sha256(repr((sorted(wanted.items()), sys.version_info[:2], platform.machine())).encode())
    folder = (cache or default_cache()) / key.hexdigest()[:16]
    if not folder.is_dir():
        _make(folder, wanted)
    return Toolchain(packages=folder)


def _make(folder: Path, wanted: dict[str, str]) -> None:
    """Fill a folder beside it and rename that, so that an interrupted download leaves nothing half made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        _download(scratch, wanted)
        try:
            (scratch / "packages").rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _installed(wanted: dict[str, str]) -> Path | None:
    """Return the site-packages folder when both wheels are installed in the pinned versions."""
    try:
        found = [metadata.distribution(name) for name in wanted]
    except metadata.PackageNotFoundError:
        return None
    if [d.version for d in found] != list(wanted.values()):
        return None
    return Path(str(found[0].locate_file("")))


def _download(scratch: Path, wanted: dict[str, str]) -> None:
    wheels = scratch / "wheels"
    options = ["--quiet", "--retries", "1", "--no-deps", "--only-binary=:all:", "-d", str(wheels)]
    requirements = [f"{name}=={version}" for name, version in wanted.items()]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, *requirements], capture_output=True, text=True
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ToolchainError(f"the wheels of NVIDIA's compiler cannot be downloaded: {last}")
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch / "packages")
