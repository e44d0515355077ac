"""The Dockerfiles: one for each JetPack, each says that it was not run, and its commands exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from p4q_edge.runtime.cli import main as cli

JETPACKS = ("jetpack6", "jetpack7.2", "jetpack7.2.2")


def test_each_jetpack_has_one_and_the_guide_names_it(repository: Path) -> None:
    found = {path.name.removesuffix(".Dockerfile") for path in (repository / "tools/docker").glob("*.Dockerfile")}
    assert found == set(JETPACKS)
    guide = (repository / "runtime/README.md").read_text(encoding="utf-8")
    assert all(f"../tools/docker/{name}.Dockerfile" in guide for name in found)


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


@pytest.mark.parametrize("name", JETPACKS)
def test_what_a_container_starts_is_a_command_with_its_options(repository: Path, name: str) -> None:
    text = (repository / f"tools/docker/{name}.Dockerfile").read_text(encoding="utf-8")
    entry, command = (json.loads(found) for found in re.findall(r"(?m)^(?:ENTRYPOINT|CMD) (\[.*\])$", text))
    assert entry == ["p4q-edge"]
    cli.build_parser(command[0]).parse_args(command[1:])
    (example,) = re.findall(rf"p4q-edge:{re.escape(name)} (\w+) (.*)", text)
    cli.build_parser(example[0]).parse_args(example[1].split())
