"""`make release`: one version, a changelog that is cut, the same bytes twice, and what is checked before a tag."""

from __future__ import annotations

import datetime
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import release
import release_checks

DAY = datetime.date(2026, 11, 27)


def git(root: Path, *words: str) -> str:
    """Return what git says."""
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """The files that a version stands in, in a repository of their own."""
    root = tmp_path / "checkout"
    for name in (release.SOURCE, release.PINNED, release.CHANGES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, root / name)
    git(root, "init", "--quiet")
    for key, value in (("user.name", "a"), ("user.email", "a@b.c")):
        git(root, "config", key, value)
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "All")
    return root


def test_the_version_stands_in_one_place_and_the_toolkit_needs_that_runtime(repository: Path) -> None:
    version = release.version_of(repository)
    assert f'"p4q-edge-runtime=={version}"' in (repository / release.PINNED).read_text()
    assert "\nversion = " not in (repository / release.PINNED).read_text()


def test_the_licence_is_a_file_of_both(repository: Path) -> None:
    """A link would lead out of the runtime's source archive, and the wheel that is built from it would have none."""
    own = repository / "runtime/LICENSE"
    assert not own.is_symlink()
    assert own.read_bytes() == (repository / "LICENSE").read_bytes()


def test_a_toolkit_that_needs_another_runtime_is_found(checkout: Path) -> None:
    path = checkout / release.PINNED
    path.write_text(path.read_text().replace("p4q-edge-runtime==", "p4q-edge-runtime==9"))
    with pytest.raises(release.ReleaseError, match=r"pyproject\.toml needs the runtime 9"):
        release.version_of(checkout)


def test_a_cut_writes_the_version_and_the_section(checkout: Path) -> None:
    before = release.section((checkout / release.CHANGES).read_text(), "Unreleased")
    release.cut(checkout, "7.0.0rc1", DAY)
    assert release.version_of(checkout) == "7.0.0rc1"
    changes = (checkout / release.CHANGES).read_text()
    assert "## [Unreleased]\n\n## [7.0.0rc1] - 2026-11-27\n" in changes
    assert release.section(changes, "7.0.0rc1") == before
    assert release.section(changes, "Unreleased") == ""
    with pytest.raises(release.ReleaseError, match="has nothing below"):
        release.cut(checkout, "7.0.0", DAY)


def test_a_second_section_of_a_version_is_refused(checkout: Path) -> None:
    path = checkout / release.CHANGES
    path.write_text("# Changelog\n\n## [Unreleased]\n\n- new\n\n## [7.0.0] - 2026-01-01\n\n- old\n")
    with pytest.raises(release.ReleaseError, match=r"has a section of 7\.0\.0 already"):
        release.cut(checkout, "7.0.0", DAY)
    with pytest.raises(release.ReleaseError, match="'seven' is no version; expected one as"):
        release.cut(checkout, "seven", DAY)


def test_only_what_is_committed_is_built(checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "scratch.txt").write_text("mine")
    assert release.main(["--output", str(tmp_path / "dist")], root=checkout) == 1
    assert (
        "error: files that differ from the commit: 1, as ?? scratch.txt. Commit them first." in capsys.readouterr().err
    )


def test_a_cut_takes_no_other_change_along(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / release.SOURCE).write_text((checkout / release.SOURCE).read_text() + "\n")
    assert release.main(["--cut", "7.0.0"], root=checkout) == 1
    assert "files that differ from the commit: 1" in capsys.readouterr().err
    assert "7.0.0" not in (checkout / release.CHANGES).read_text()


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("0.0.1", r"0\.0\.1 is earlier than 0\.\d+\.\d+, which runtime/pyproject\.toml says"),
        ("01.2.3", "'01.2.3' is no version; expected one as"),
        ("", "'' is no version; expected one as"),
    ],
)
def test_what_cannot_be_cut(checkout: Path, capsys: pytest.CaptureFixture[str], version: str, message: str) -> None:
    assert release.main(["--cut", version], root=checkout) == 1
    assert re.search(message, capsys.readouterr().err)
    assert git(checkout, "status", "--porcelain") == ""


@pytest.fixture
def building(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Builds that are asked for; none is done."""
    asked: list[Path] = []

    def build(root: Path, target: Path, **_: object) -> str:
        asked.append(target)
        return release.version_of(root)

    monkeypatch.setattr(release, "release", build)
    return asked


def test_a_tag_is_of_a_version_that_is_cut_and_of_one_commit(
    checkout: Path, tmp_path: Path, building: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tag = ["--tag", "--output", str(tmp_path / "dist")]
    assert release.main(tag, root=checkout) == 1
    assert "has no section of 0." in capsys.readouterr().err
    release.cut(checkout, "7.0.0", DAY)
    git(checkout, "commit", "--all", "--quiet", "--message", "Release 7.0.0")
    assert not building
    assert release.main(tag, root=checkout) == 0
    assert "tagged v7.0.0; to publish it: git push origin v7.0.0" in capsys.readouterr().out
    assert git(checkout, "rev-parse", "v7.0.0^{commit}") == git(checkout, "rev-parse", "HEAD")
    assert release.main(tag[1:], root=checkout) == 0
    assert "v7.0.0 is a tag of this commit; to publish it" in capsys.readouterr().out
    git(checkout, "commit", "--allow-empty", "--quiet", "--message", "More")
    assert release.main(tag[1:], root=checkout) == 0
    assert "v7.0.0 is a tag of another commit, " in capsys.readouterr().out
    building.clear()
    assert release.main(tag, root=checkout) == 1
    assert re.search(r"error: v7\.0\.0 is a tag of [0-9a-f]{12} already\. Cut another version", capsys.readouterr().err)
    assert not building


def test_what_git_or_the_folder_refuses_is_one_line(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(checkout / ".git")
    assert release.main(["--output", str(tmp_path / "dist")], root=checkout) == 1
    assert re.search(r"^error: git status failed in .*not a git repository", capsys.readouterr().err)
    (tmp_path / "file").touch()
    assert release.main(["--output", str(tmp_path / "file")], root=checkout) == 1
    assert re.search(r"^error: .*File exists: '.*file'$", capsys.readouterr().err.strip())


def test_another_build_is_not_mixed_in(checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p4q_edge-0.0.1-py3-none-any.whl").touch()
    assert release.main(["--output", str(tmp_path)], root=checkout) == 1
    assert "of another build. Remove it: make clean" in capsys.readouterr().err


@pytest.fixture
def built(wheels: dict[str, Path]) -> tuple[release_checks.Archive, ...]:
    """The wheels of this checkout."""
    return release_checks.archives_of(next(iter(wheels.values())).parent)


def test_metadata_is_what_an_index_takes(built: tuple[release_checks.Archive, ...], repository: Path) -> None:
    version = release.version_of(repository)
    assert [release_checks.check_metadata(archive, version) for archive in built] == [[], []]
    (problem,) = release_checks.check_metadata(built[1], "9.9")
    assert problem.endswith(f"is of version {version}, expected 9.9")


def test_metadata_that_an_index_refuses_is_found(
    built: tuple[release_checks.Archive, ...], tmp_path: Path, repository: Path
) -> None:
    version = release.version_of(repository)
    toolkit = next(archive for archive in built if archive.distribution == release_checks.TOOLKIT)
    planted = tmp_path / toolkit.path.name
    with zipfile.ZipFile(toolkit.path) as source, zipfile.ZipFile(planted, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("/METADATA"):
                data = data.replace(b"Apache-2.0", b"No Licence At All").replace(
                    f"runtime=={version}".encode(), b"runtime"
                )
            target.writestr(name, data)
    (archive,) = release_checks.archives_of(tmp_path)
    assert release_checks.check_metadata(archive, version) != []


def test_the_second_build_has_other_habits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Place, permissions of new files, time zone, language and the order of sets."""
    seen: list[dict[str, str]] = []

    def run(command: list[str], *, env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        seen.append(env)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(release.subprocess, "run", run)
    release.build(tmp_path, tmp_path, seconds=7, habits=release.OTHER_HABITS)
    monkeypatch.undo()
    assert [env["SOURCE_DATE_EPOCH"] for env in seen] == ["7", "7"]
    hour = [sys.executable, "-c", "import time; print(time.strftime('%H:%M %z', time.localtime(0)))"]
    assert {subprocess.check_output(hour, env=env, text=True) for env in seen} == {"14:00 +1400\n"}
    assert release.OTHER_HABITS.keys() == {"TZ", "LC_ALL", "PYTHONHASHSEED"}


def test_two_builds_that_differ_are_found(tmp_path: Path) -> None:
    for folder, data in (("one", b"a"), ("two", b"b")):
        (tmp_path / folder).mkdir()
        for name in ("p4q_edge-1.whl", "p4q_edge-1.tar.gz", "p4q_edge_runtime-1.whl", "p4q_edge_runtime-1.tar.gz"):
            (tmp_path / folder / name).write_bytes(data if name == "p4q_edge-1.whl" else b"same")
    one, two = (release_checks.archives_of(tmp_path / folder) for folder in ("one", "two"))
    assert release_checks.differences(one, one) == []
    assert release_checks.differences(one, two) == ["two builds of p4q_edge-1.whl differ"]
    assert release_checks.differences(one[:3], one[:3])[0].startswith("expected two wheels and two source archives")


@pytest.mark.slow
def test_a_release_is_built_twice_and_tried_in_a_clean_environment(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of this checkout as it is, committed or not: a copy of it is a repository of its own."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=repository,
        capture_output=True,
        check=True,
    ).stdout
    root = tmp_path / "checkout"
    for name in map(Path, filter(None, listing.decode().split("\0"))):
        if name.parts[0] in ("p4q_edge", "runtime", "calibration", "tools") or len(name.parts) == 1:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, root / name)
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "All"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words], cwd=root, check=True)
    number = f"{sys.version_info.major}.{sys.version_info.minor}"
    code = release.main(["--output", str(tmp_path / "dist"), "--pythons", number], root=root)
    out, err = capsys.readouterr()
    assert code == 0, err
    assert out.count("twice the same bytes") == 4
    assert f"Python {number}: runtime and toolkit installed, `p4q-edge --version` and imports work" in out
    assert "--cut" in out.splitlines()[-1] or out.splitlines()[-1].startswith("tag it: git tag --annotate v")
    sums = (tmp_path / "dist/SHA256SUMS").read_text().splitlines()
    assert [line.split()[1] for line in sums] == sorted(path.name for path in (tmp_path / "dist").glob("p4q*"))
