"""Wheels of other projects for the contract tests, fetched once into the user's cache.

The cache is keyed by Python and platform: a wheel for one Python holds nothing that another can import.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# The platform tags of these wheels; pip matches each exactly.
PLATFORMS = ("manylinux_2_17_x86_64", "manylinux_2_24_x86_64", "manylinux_2_28_x86_64", "manylinux_2_31_x86_64")
FETCH_S = 240
UNREACHABLE: list[str] = []
"""Why nothing can be fetched, once that is known."""
MISSING: dict[str, str] = {}
"""Distributions that the index does not have for this Python, and what pip said."""
# What pip writes when it reaches no index; without these words the index has no such file for this Python.
_NO_INDEX = ("Retrying (", "connection", "Connection", "resolve", "timed out", "unreachable", "SSLError", "ProxyError")


def cache_folder() -> Path:
    """The user's cache for this Python on this platform, never the checkout."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = f"{sys.implementation.cache_tag}-{sys.platform}-{platform.machine()}"
    return Path(root) / "p4q-edge" / "contract" / key


def fetch(requirement: str, *options: str) -> Path:
    """Return a downloaded distribution, from the cache if it is there; skip the test if it cannot be had.

    A distribution that this Python lacks skips its own tests alone; an index that cannot be reached skips all.
    """
    folder = cache_folder() / requirement.replace("==", "-")
    if not folder.is_dir():
        known = UNREACHABLE[0] if UNREACHABLE else MISSING.get(requirement)
        if known:
            # One refusal is enough: the next would take as long and say the same.
            pytest.skip(known)
        with _appears(folder) as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries=1"]
            command += ["--dest", str(scratch)]
            try:
                done = subprocess.run(
                    [*command, *options, requirement], capture_output=True, text=True, timeout=FETCH_S, check=False
                )
                said, reached = done.stderr, not any(word in done.stderr for word in _NO_INDEX)
            except subprocess.TimeoutExpired:
                said, reached = f"no answer in {FETCH_S} s", False
            if not list(scratch.iterdir()):
                reason = (said.strip().splitlines() or ["no reason given"])[-1]
                if reached:
                    MISSING[requirement] = f"contract: {requirement} has no file for {cache_folder().name}: {reason}"
                    pytest.skip(MISSING[requirement])
                UNREACHABLE.append(
                    f"contract: the real libraries cannot be fetched: pip says of {requirement}: {reason}"
                )
                pytest.skip(UNREACHABLE[0])
    return next(path for path in folder.iterdir() if path.suffix in (".whl", ".gz"))


def unpacked(requirement: str) -> Path:
    """Return the folder of an unpacked wheel."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    tags = [f"--platform={platform}" for platform in PLATFORMS]
    wheel = fetch(requirement, "--only-binary=:all:", "--implementation=cp", f"--python-version={version}", *tags)
    folder = wheel.parent / "unpacked"
    if not folder.is_dir():
        with _appears(folder) as scratch, zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch)
    return folder


@contextlib.contextmanager
def _appears(folder: Path) -> Iterator[Path]:
    """Fill a scratch folder and rename it, so that several test processes at once meet no half-made one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    try:
        yield scratch
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
