"""What `tools/release.py` checks: equal bytes, metadata, and that each wheel works in an environment of its own."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

RUNTIME, TOOLKIT = "p4q_edge_runtime", "p4q_edge"
_IMPORTS = {
    RUNTIME: "from p4q_edge.runtime import ZeroShotClassifier, build_engine, read_bundle",
    TOOLKIT: "import p4q_edge.api; from importlib.metadata import entry_points; "
    "assert len(entry_points(group='p4q_edge.commands')) >= 7",
}


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A wheel or a source archive.

    Attributes:
        path: the file.
        sha256: its digest.
    """

    path: Path
    sha256: str

    @property
    def distribution(self) -> str:
        """Which of the two it is of."""
        return self.path.name.partition("-")[0]

    @property
    def is_wheel(self) -> bool:
        """Whether it is a wheel."""
        return self.path.suffix == ".whl"

    def metadata(self) -> bytes:
        """Return its metadata."""
        if self.is_wheel:
            with zipfile.ZipFile(self.path) as archive:
                (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
                return archive.read(name)
        with tarfile.open(self.path) as packed:
            (member,) = (one for one in packed.getmembers() if re.fullmatch(r"[^/]+/PKG-INFO", one.name))
            stream = packed.extractfile(member)
            assert stream is not None
            return stream.read()


def archives_of(folder: Path) -> tuple[Archive, ...]:
    """Return what was built into a folder, by name."""
    paths = sorted([*folder.glob("*.whl"), *folder.glob("*.tar.gz")])
    return tuple(Archive(path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths)


def differences(first: Sequence[Archive], second: Sequence[Archive]) -> list[str]:
    """Return what two builds of one commit differ in."""
    one, other = ({archive.path.name: archive.sha256 for archive in built} for built in (first, second))
    found = [f"only one build has {name}" for name in sorted(one.keys() ^ other.keys())]
    found += [f"two builds of {name} differ" for name in sorted(one.keys() & other.keys()) if one[name] != other[name]]
    return found if len(one) == 4 else [*found, f"expected two wheels and two source archives, got {sorted(one)}"]


def check_metadata(archive: Archive, version: str) -> list[str]:
    """Return what is wrong with the metadata of an archive, as an index would say."""
    from packaging.metadata import ExceptionGroup, Metadata

    name = archive.path.name
    try:
        metadata = Metadata.from_email(archive.metadata(), validate=True)
    except ExceptionGroup as error:
        return [f"{name}: {problem}" for problem in error.exceptions]
    problems = []
    if str(metadata.version) != version:
        problems.append(f"{name} is of version {metadata.version}, expected {version}")
    if metadata.description_content_type != "text/markdown" or len(metadata.description or "") < 200:
        problems.append(f"{name} has no description in Markdown")
    if metadata.license_expression != "Apache-2.0" or not metadata.license_files:
        problems.append(f"{name} states no licence")
    pin = f"p4q-edge-runtime=={version}"
    if archive.distribution == TOOLKIT and pin not in map(str, metadata.requires_dist or ()):
        problems.append(f"{name} does not need {pin}")
    return problems


def write_sums(archives: Sequence[Archive], path: Path) -> None:
    """Write the digests, as `sha256sum --check` reads them."""
    path.write_text("".join(f"{archive.sha256}  {archive.path.name}\n" for archive in archives), encoding="utf-8")


def find_python(version: str) -> str | None:
    """Return an interpreter of a version that really starts, on PATH or of pyenv; None where there is none."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which(f"python{version}"), *map(str, root.glob(f"versions/{version}.*/bin/python{version}"))]
    code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    for python in filter(None, candidates):
        # pyenv has a shim for versions that are not selected.
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:
            return python
    return None


def try_in_clean_environments(
    archives: Sequence[Archive], version: str, *, pythons: Sequence[str], full: bool, root: Path
) -> list[str]:
    """Install the wheels into a new environment of each Python that is found, and return what went wrong.

    The runtime comes with its dependencies at the pinned versions; the toolkit without its own unless `full`, since
    these are gigabytes.
    """
    wheels = {archive.distribution: archive.path for archive in archives if archive.is_wheel}
    problems, tried = [], 0
    for number in pythons:
        python = find_python(number)
        if python is None:
            print(f"Python {number}: not found here, and not tried")
            continue
        tried += 1
        with tempfile.TemporaryDirectory() as name:
            found = list(_problems(Path(name) / "venv", python, wheels, version, full=full, root=root))
        problems += [f"Python {number}: {problem}" for problem in found]
        if not found:
            what = "the runtime" if _too_old(number) else "runtime and toolkit"
            print(f"Python {number}: {what} installed, `p4q-edge --version` and imports work")
    return problems if tried else [*problems, f"none of the Pythons {', '.join(pythons)} was found"]


def _too_old(number: str) -> bool:
    return tuple(map(int, number.split("."))) < (3, 11)


def _problems(
    folder: Path, python: str, wheels: dict[str, Path], version: str, *, full: bool, root: Path
) -> Iterator[str]:
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    bin_folder = folder / ("Scripts" if os.name == "nt" else "bin")
    number = subprocess.run(
        [str(bin_folder / "python"), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    pins = ["--constraint", str(root / "tools/constraints.txt")]
    steps = [[str(wheels[RUNTIME]), *pins]]
    if not _too_old(number):
        steps.append([str(wheels[TOOLKIT]), *(pins if full else ["--no-deps"])])
    for step in steps:
        install = [str(bin_folder / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*install, *step], capture_output=True, text=True, check=False)
        if done.returncode:
            yield f"{Path(step[0]).name} cannot be installed: {done.stderr[-500:]}"
            return
    installed = RUNTIME if _too_old(number) else TOOLKIT
    said = _run(bin_folder / "p4q-edge", "--version", folder=folder)
    expected = f"p4q-edge-runtime {version}\np4q-edge {'not installed' if _too_old(number) else version}\n"
    if said != expected:
        yield f"`p4q-edge --version` says {said!r}, expected {expected!r}"
    for name in dict.fromkeys((RUNTIME, installed)):
        if said := _run(bin_folder / "python", "-c", _IMPORTS[name], folder=folder):
            yield f"{name} cannot be imported: {said}"


def _run(program: Path, *words: str, folder: Path) -> str:
    """Return what a program of an environment wrote, away from the checkout and its variables."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([str(program), *words], capture_output=True, text=True, check=False, cwd=folder, env=outer)
    return done.stdout + (done.stderr if done.returncode else "")
