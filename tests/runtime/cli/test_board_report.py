"""The board report: what is run, what the archive has, and what it never has."""

from __future__ import annotations

import getpass
import json
import platform
import sys
import tarfile
from pathlib import Path

import pytest
from machines import ABSENT, environment

from p4q_edge.runtime.cli import board_report
from p4q_edge.runtime.cli.board_report import cleanse, write_board_report
from p4q_edge.runtime.cli.commands import doctor
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.errors import UsageError

TINY = Path(__file__).parents[1] / "data" / "tiny.p4q"
TEGRASTATS = """#!/bin/sh
while :; do echo "RAM 1000/7620MB CPU [1%@729] GR3D_FREQ 0% cpu@40C VDD_IN 3000mW/3000mW"; sleep 0.05; done
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of this machine's CPU engine, with Jetson's tool replaced."""
    folder = tmp_path_factory.mktemp("somebody")
    tool = folder / "tegrastats"
    tool.write_text(TEGRASTATS)
    tool.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(board_report, "BENCH_SECONDS", 0)
        patch.setattr(board_report, "POWER_TOOL", (str(tool),))
        patch.setattr(board_report, "_toolkit_is_installed", lambda: False)
        patch.setenv("P4Q_EDGE_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        found, steps = write_board_report(
            folder / "report", bundle=TINY, backends={"onnxruntime": True, "tensorrt": False}
        )
    assert {step.name: step.exit_code for step in steps} == {
        "doctor": 0,
        "demo": None,
        "bundle-onnx-build": 0,
        "bundle-onnx-selftest": 0,
        "bundle-onnx-validate": 0,
        "bundle-onnx-bench": 0,
    }
    return found


@pytest.fixture(scope="module")
def texts(archive: Path) -> dict[str, str]:
    with tarfile.open(archive) as members:
        assert all((entry.uid, entry.mtime, entry.uname) == (0, 0, "") for entry in members)
        return {
            entry.name.removeprefix("board-report/"): stream.read().decode()
            for entry in members
            if (stream := members.extractfile(entry)) is not None
        }


@pytest.mark.slow
def test_the_archive_has_every_step_and_a_summary(texts: dict[str, str]) -> None:
    assert set(texts) == {
        "report.md",
        "doctor.txt",
        *(f"bundle-onnx-{step}.txt" for step in ("build", "selftest", "validate", "bench", "tegrastats")),
        "bundle-onnx-card.json",
    }
    assert "| demo | not run: needs the toolkit, which is not installed | 0 | `p4q-edge build" in texts["report.md"]
    assert "| bundle-onnx-bench | 0 |" in texts["report.md"]
    assert texts["bundle-onnx-selftest.txt"].startswith("$ p4q-edge selftest bundle.onnx\npassed: bundle.onnx")
    assert "able     onnxruntime" in texts["doctor.txt"]
    assert "GR3D_FREQ" in texts["bundle-onnx-tegrastats.txt"]
    assert len(texts["bundle-onnx-tegrastats.txt"].splitlines()) <= board_report.POWER_LINES


def test_the_card_is_there_without_what_could_be_somebodys(texts: dict[str, str]) -> None:
    card = json.loads(texts["bundle-onnx-card.json"])
    assert card["build"]["backend"] == "onnxruntime"
    assert card["build"]["inspection"]["kernels"]
    assert not {"class_names", "golden", "measured", "model"} & card.keys()


def test_no_text_names_this_user_this_host_or_their_folders(archive: Path, texts: dict[str, str]) -> None:
    personal = [str(Path.home()), str(archive.parent.parent), sys.prefix, str(TINY.parent), "somebody"]
    personal += [name for name in board_report._names() if name != "runner"]
    for name, text in texts.items():
        for word in personal:
            assert f"{word}/" not in text, (name, word)
            assert f" {word} " not in text, (name, word)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("{home}/a/b.plan", "~/a/b.plan"),
        ("at {cwd}/out.plan: bad", "at ./out.plan: bad"),
        ("in /ho" + "me/alice/x y and (/ho" + "me/bob/z)", "in PATH y and (PATH)"),
        ("{home}land stays", "{home}land stays"),
        ("host {host}, user {user}", "host NAME, user NAME"),
        ("no path at all", "no path at all"),
    ],
)
def test_paths_and_names_are_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, cleaned: str) -> None:
    monkeypatch.setattr(platform, "node", lambda: "orin-of-alice")
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    monkeypatch.setenv("HOME", "/data/persons/alice-home")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    words = {"home": "/data/persons/alice-home", "cwd": str(Path.cwd()), "host": "orin-of-alice", "user": "alice"}
    assert cleanse(text.format(**words)) == cleaned.format(**words)


def test_common_names_are_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "ubuntu")
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    assert cleanse("ubuntu 24.04 as root") == "ubuntu 24.04 as root"


def test_a_failed_build_is_a_result_and_ends_the_engines_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = tmp_path / "broken.p4q"
    bundle.write_bytes(b"no zip")
    monkeypatch.setattr(board_report, "_toolkit_is_installed", lambda: False)
    _, steps = write_board_report(tmp_path, bundle=bundle, backends={"onnxruntime": True, "tensorrt": False})
    assert [(step.name, step.exit_code) for step in steps][2:] == [("bundle-onnx-build", 4)]


def test_a_place_that_cannot_be_written_is_found_before_anything_is_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(board_report, "_run", lambda words, folder: pytest.fail(f"{words} was run"))
    with pytest.raises(UsageError, match="file is not a folder"):
        write_board_report(tmp_path / "file", bundle=None, backends={})


def test_the_command_writes_it_and_says_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "read_environment", lambda: environment(onnxruntime=ABSENT, tensorrt=ABSENT))
    monkeypatch.setattr(board_report, "_toolkit_is_installed", lambda: False)
    assert main(["doctor", "--board-report", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert Path(document["archive"]).parent == tmp_path
    assert [step["name"] for step in document["steps"]] == ["doctor", "demo"]
