"""A real Triton server on this machine's CPU, from the wheel `nvidia-pytriton` in an environment of its own.

`tools/setup_triton.sh` makes that environment, `.venv-triton`; without it these tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from triton_server import REPOSITORY, Server, free_port, server_command, server_environment, wait_until_ready

from p4q_edge.runtime.artifacts import BUILT_IN, Head, add_head, read_bundle
from p4q_edge.runtime.builders import build_engine
from p4q_edge.runtime.serving import write_repository

TINY = REPOSITORY / "tests" / "runtime" / "data" / "tiny.p4q"
ENVIRONMENT = Path(os.environ.get("P4Q_TRITON", REPOSITORY / ".venv-triton"))


@pytest.fixture(scope="session")
def packages() -> Path:
    """Where the packages of that environment lie."""
    found = list(ENVIRONMENT.glob("lib/python3.*/site-packages/pytriton"))
    if not found:
        pytest.skip("triton: there is no environment with a server; tools/setup_triton.sh makes it")
    return found[0].parent


@pytest.fixture(scope="session")
def triton_python(packages: Path) -> Callable[..., Any]:
    """Run a script of this folder in that environment; returns its JSON."""

    def run(script: str, *arguments: object) -> Any:
        command = [str(ENVIRONMENT / "bin" / "python"), str(Path(__file__).with_name(script)), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine of the tiny bundle, with a second head of two classes."""
    folder = tmp_path_factory.mktemp("engine")
    build_engine(TINY, folder / "tiny.onnx")
    head = read_bundle(TINY).head()
    rows = [2, 0]
    night = Head(
        class_names=tuple(f"night {head.class_names[row]}" for row in rows),
        text_embedding=head.text_embedding[rows],
        logit_scale=head.logit_scale,
        adapter=head.adapter,
        weights_sha256=head.weights_sha256,
    )
    (folder / "night.safetensors").write_bytes(night.to_bytes())
    assert add_head(folder / "tiny.onnx", folder / "night.safetensors") == "night" != BUILT_IN
    return folder / "tiny.onnx"


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The golden images of the bundle as PNG and JPEG files of several sizes."""
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for index, array in enumerate(read_bundle(TINY).golden().image):
        picture = Image.fromarray(array.transpose(1, 2, 0)).resize((40 + 8 * index, 32))
        paths.append(folder / f"{index}.{'png' if index % 2 else 'jpg'}")
        picture.save(paths[-1])
    return paths


@pytest.fixture(scope="session")
def server(packages: Path, engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of that engine on loopback."""
    folder = tmp_path_factory.mktemp("triton")
    models = write_repository(engine, folder / "models", name="tiny", served_by="python")
    assert models == ["tiny", "tiny-night"]
    ports = Server(http=free_port(), grpc=free_port(), metrics=free_port())
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            server_command(packages, folder, ports),
            env=server_environment(packages, folder),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    try:
        wait_until_ready(process, ports, folder / "log")
        yield ports
    finally:
        process.terminate()
        process.wait(timeout=60)
