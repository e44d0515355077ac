"""Where a result comes from: versions, machine, commit and time."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from p4q_edge.runtime.machine import cpu as machine

PACKAGES = (
    "p4q-edge-runtime",
    "p4q-edge",
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "torch",
    "open_clip_torch",
    "onnx",
)
_SECONDS_FOR_GIT = 10


def versions() -> dict[str, str]:
    """Return Python and every installed package that can decide a figure."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def this_machine() -> dict[str, str]:
    """Return what this machine is."""
    return {"system": platform.platform(), "cpu": machine.cpu(), "cores": str(os.cpu_count() or 1)}


def git_commit(folder: Path | None = None) -> str:
    """Return the commit of the checkout that this code runs from, with `+changes` if it has any; else nothing."""
    folder = folder or Path(__file__).parent
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return ""
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit + ("+changes" if changed else "")


def now() -> str:
    """Return the time in UTC to the second, ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=_SECONDS_FOR_GIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        # No git, or a wheel in a folder without one: there is no commit to name.
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
