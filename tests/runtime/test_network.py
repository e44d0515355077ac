"""No command looks up a host or opens a connection: seen from the system, not from Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

MAIN = "import sys; from p4q_edge.runtime.cli.main import main; sys.exit(main(sys.argv[1:]))"
LOOKUP = "import socket\ntry:\n    socket.getaddrinfo('example.invalid', 443)\nexcept OSError:\n    pass"


def _works(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run([*command, "true"], capture_output=True, timeout=60, check=False).returncode == 0


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a user who has a home of this test's own."""
    (tmp_path / "home").mkdir()
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}


def _commands(bundle: Path, engine: Path, photo: Path, folder: Path) -> list[list[str]]:
    return [
        ["classify", str(engine), str(photo), "--json"],
        ["build", str(bundle), "--engine", str(folder / "new.onnx")],
        ["selftest", str(engine)],
        *_of_openvino(bundle, photo, folder / "openvino.onnx"),
    ]


def _of_openvino(bundle: Path, photo: Path, engine: Path) -> list[list[str]]:
    """Return the commands of an engine for OpenVINO, whose package brings one that reports each import of it."""
    if find_spec("openvino") is None:
        return []
    build = ["build", str(bundle), "--engine", str(engine), "--backend", "openvino", "--force"]
    return [build, ["classify", str(engine), str(photo)], ["doctor", "--backend", "openvino"]]


def test_commands_work_where_there_is_no_network(
    tiny_bundle: Path, tiny_engine: Path, photo: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    if not _works("unshare", "-rn"):
        pytest.skip("this system permits no network namespace (unshare -rn)")
    for command in _commands(tiny_bundle, tiny_engine, photo, tmp_path):
        line = ["unshare", "-rn", sys.executable, "-c", MAIN, *command]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    left = {path.relative_to(tmp_path / "home").parts[:2] for path in (tmp_path / "home").rglob("*") if path.is_file()}
    assert left == {(".cache", "p4q-edge")}


def _asked(program: str, arguments: list[str], folder: Path, environment: dict[str, str]) -> list[str]:
    """Return the system calls of a program and its children that name an address of a network."""
    log = folder / "calls"
    trace = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(log)]
    command = [*trace, sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [line for line in log.read_text(errors="replace").splitlines() if "AF_INET" in line]


def test_no_address_is_asked_for(
    tiny_bundle: Path, tiny_engine: Path, photo: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    if not _works("strace", "-o", "/dev/null"):
        pytest.skip("strace is not installed, or not permitted")
    if not _asked(LOOKUP, [], tmp_path, environment):
        pytest.skip("this system resolves names without the network, so that a look-up could not be seen")
    for command in _commands(tiny_bundle, tiny_engine, photo, tmp_path):
        assert _asked(MAIN, command, tmp_path, environment) == [], command
