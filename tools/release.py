"""Build what is published, twice, and try it: both wheels and source archives, from the commit and nothing else.

    python tools/release.py --cut 0.2.0   the version into its places, and the changelog's section of it; commit that
    python tools/release.py               build into dist/, check, install in clean environments, print what is next
    python tools/release.py --tag         the same, and tag the commit at the end

The version stands in runtime/pyproject.toml; the toolkit reads it there, and needs exactly that runtime.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from release_checks import Archive, archives_of, check_metadata, differences, try_in_clean_environments, write_sums

ROOT = Path(__file__).resolve().parent.parent
SOURCE, PINNED, CHANGES = "runtime/pyproject.toml", "pyproject.toml", "CHANGELOG.md"
_VERSION = re.compile(r'(?m)^version = "([^"]+)"$')
_PIN = re.compile(r'"p4q-edge-runtime==([^"]+)"')
_NUMBER = r"(?:0|[1-9]\d*)"
_RELEASED = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:(?:a|b|rc){_NUMBER})?")
_UNRELEASED = "## [Unreleased]"
OTHER_HABITS = {"TZ": "LINT-14", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
"""Of the second build: half a day ahead by a rule that no machine lacks, in no language, with sets in another order."""


class ReleaseError(Exception):
    """What stands in the way of a release."""


def version_of(root: Path) -> str:
    """Return the version of a checkout.

    Raises:
        ReleaseError: it is not where it stands, or the toolkit needs another runtime.
    """
    (version,) = _VERSION.findall((root / SOURCE).read_text(encoding="utf-8"))
    pins = set(_PIN.findall((root / PINNED).read_text(encoding="utf-8")))
    if pins != {version}:
        raise ReleaseError(f"{SOURCE} says {version}, and {PINNED} needs the runtime {', '.join(sorted(pins))}: --cut")
    return str(version)


def cut(root: Path, version: str, day: datetime.date) -> None:
    """Write a version into its places, and make what is unreleased in the changelog the section of it.

    Raises:
        ReleaseError: no version, an earlier one, or nothing is unreleased.
    """
    from packaging.version import Version

    if not _RELEASED.fullmatch(version):
        raise ReleaseError(f"{version!r} is no version; expected one as 1.2.3 or 1.2.3rc1")
    if Version(version) < Version(current := version_of(root)):
        raise ReleaseError(f"{version} is earlier than {current}, which {SOURCE} says; expected that or a later one")
    changes = (root / CHANGES).read_text(encoding="utf-8")
    notes = section(changes, "Unreleased")
    if not notes:
        raise ReleaseError(f"{CHANGES} has nothing below {_UNRELEASED}")
    if f"\n## [{version}]" in changes:
        raise ReleaseError(f"{CHANGES} has a section of {version} already")
    heading = f"{_UNRELEASED}\n\n## [{version}] - {day.isoformat()}\n"
    _rewrite(root / CHANGES, changes.replace(f"{_UNRELEASED}\n", heading, 1))
    for name, pattern in ((SOURCE, _VERSION), (PINNED, _PIN)):
        text = (root / name).read_text(encoding="utf-8")
        _rewrite(root / name, pattern.sub(lambda found: found[0].replace(found[1], version), text))


def section(changes: str, name: str) -> str:
    """Return what stands in a changelog about a version; empty if there is nothing."""
    found = re.search(rf"(?ms)^## \[{re.escape(name)}\][^\n]*\n(.*?)(?=^## |\Z)", changes)
    return found[1].strip() if found else ""


def _rewrite(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def require_committed(root: Path, *, untracked: bool) -> None:
    """Raise `ReleaseError` where a file differs from the commit; files that git does not know count if `untracked`."""
    files = "normal" if untracked else "no"
    changed = _git(root, "status", "--porcelain", f"--untracked-files={files}").splitlines()
    if changed:
        raise ReleaseError(
            f"files that differ from the commit: {len(changed)}, as {changed[0].strip()}. Commit them first."
        )


def require_free_tag(root: Path) -> None:
    """Raise `ReleaseError` where the commit cannot be tagged: its version is not cut, or tagged already.

    Asked before anything is built, which takes minutes.
    """
    version = version_of(root)
    if not section((root / CHANGES).read_text(encoding="utf-8"), version):
        raise ReleaseError(f"{CHANGES} has no section of {version}: python tools/release.py --cut {version}")
    if commit := tagged(root, version):
        raise ReleaseError(f"v{version} is a tag of {commit[:12]} already. Cut another version: --cut VERSION")


def tagged(root: Path, version: str) -> str:
    """Return the commit that has the tag of a version; empty if none has."""
    return _git(root, "for-each-ref", "--format=%(*objectname)%(objectname)", f"refs/tags/v{version}").strip()[:40]


def export(root: Path, folder: Path) -> int:
    """Write the files of the commit into a folder, and return the time of the commit.

    Raises:
        ReleaseError: something is not committed.
    """
    require_committed(root, untracked=True)
    packed = folder / "commit.tar"
    _git(root, "archive", "--format=tar", f"--output={packed}", "HEAD")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    packed.unlink()
    return int(_git(root, "log", "-1", "--format=%ct"))


def build(
    sources: Path, target: Path, *, seconds: int, habits: Mapping[str, str] = MappingProxyType({})
) -> tuple[Archive, ...]:
    """Build wheel and source archive of both distributions, each wheel from its source archive.

    Args:
        sources: files of the commit.
        target: folder for what is built.
        seconds: time of the commit, which all files in the archives get.
        habits: variables of the environment of whoever builds.
    """
    environment = {**os.environ, **habits, "SOURCE_DATE_EPOCH": str(seconds)}
    for project in (sources / "runtime", sources):
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(project)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ReleaseError(f"{project.name} cannot be built: {(done.stdout + done.stderr)[-2000:]}")
    return archives_of(target)


def release(root: Path, target: Path, *, pythons: Sequence[str], full: bool) -> str:
    """Build twice, compare, check and try; return the version.

    Raises:
        ReleaseError: something is not as it must be; what was built lies in `target` all the same.
    """
    version = version_of(root)
    with tempfile.TemporaryDirectory() as name:
        first, second = Path(name) / "one", Path(name) / "another-place"
        for folder in (first, second):
            folder.mkdir()
        seconds = export(root, first)
        export(root, second)
        built = build(first, target, seconds=seconds)
        before = os.umask(0o077)  # neither the place nor the builder's habits must show
        try:
            again = build(second, Path(name) / "again", seconds=seconds, habits=OTHER_HABITS)
        finally:
            os.umask(before)
    problems = differences(built, again)
    problems += [problem for archive in built for problem in check_metadata(archive, version)]
    if problems:
        raise ReleaseError("; ".join(problems))
    for archive in built:
        print(
            f"{archive.sha256}  {archive.path.name}  {archive.path.stat().st_size / 1e6:.2f} MB, twice the same bytes"
        )
    write_sums(built, target / "SHA256SUMS")
    notes = section((root / CHANGES).read_text(encoding="utf-8"), version) or "Not cut yet: --cut VERSION"
    (target / f"NOTES-{version}.md").write_text(notes + "\n", encoding="utf-8")
    problems = try_in_clean_environments(built, version, pythons=pythons, full=full, root=root)
    if problems:
        raise ReleaseError("; ".join(problems))
    return version


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"git {words[0]} failed in {root}: {done.stderr.strip()}")
    return done.stdout


def _next(root: Path, version: str, *, tag: bool) -> str:
    """Tag the commit if `tag`, and return what is to be done next."""
    publish = f"to publish it: git push origin v{version}"
    if tag:
        _git(root, "tag", "--annotate", f"v{version}", "--message", f"P4Q Edge {version}")
        return f"tagged v{version}; {publish}"
    if not section((root / CHANGES).read_text(encoding="utf-8"), version):
        return f"{CHANGES} has no section of {version} yet: python tools/release.py --cut {version}"
    commit = tagged(root, version)
    if commit and commit != _git(root, "rev-parse", "HEAD").strip():
        return f"v{version} is a tag of another commit, {commit[:12]}: python tools/release.py --cut VERSION"
    if commit:
        return f"v{version} is a tag of this commit; {publish}"
    return f"tag it: git tag --annotate v{version} --message 'P4Q Edge {version}'"


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cut", metavar="VERSION", help="write the version and cut the changelog, and build nothing")
    parser.add_argument("--output", type=Path, default=root / "dist", help="folder for what is built (default: dist)")
    parser.add_argument(
        "--pythons", default="3.10,3.11,3.12,3.13,3.14", help="to try, where they are found (default: %(default)s)"
    )
    parser.add_argument("--full", action="store_true", help="install the toolkit with torch too; gigabytes a Python")
    parser.add_argument("--tag", action="store_true", help="tag the commit when all of it went well")
    options = parser.parse_args(arguments)
    try:
        if options.cut is not None:
            require_committed(root, untracked=False)  # as all of it is committed next
            cut(root, options.cut, datetime.datetime.now(tz=datetime.UTC).date())
            print(f"look at it and commit: git commit -am 'Release {options.cut}', then: make release")
            return 0
        if options.tag:
            require_free_tag(root)
        options.output.mkdir(parents=True, exist_ok=True)
        left = [path.name for path in options.output.iterdir() if path.suffix in (".whl", ".gz")]
        if left:
            raise ReleaseError(f"{options.output} holds {left[0]} of another build. Remove it: make clean")
        version = release(root, options.output, pythons=options.pythons.split(","), full=options.full)
        print(_next(root, version, tag=options.tag))
    except (ReleaseError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
