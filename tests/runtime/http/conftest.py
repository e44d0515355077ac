"""Servers over the tiny engine: in this process, and as a child on a free port of this machine."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served_child import Child

from p4q_edge.runtime import RuntimeOptions, ZeroShotClassifier

LIBRARIES = ("starlette", "uvicorn", "python_multipart", "httpx2")
# Without the extra nothing here can be imported; `test_the_server_is_tested` in tests/runtime/cli/test_serve.py is
# skipped then, and says so.
collect_ignore_glob = ["test_*.py"] if not all(map(importlib.util.find_spec, LIBRARIES)) else []

MAIN = "import sys; from p4q_edge.runtime.cli.main import main; sys.exit(main())"


@pytest.fixture
def classifier(tiny_engine: Path) -> Iterator[ZeroShotClassifier]:
    """Over the tiny engine."""
    with ZeroShotClassifier(tiny_engine, options=RuntimeOptions(threads=1)) as opened:
        yield opened


@pytest.fixture
def serve(classifier: ZeroShotClassifier, tiny_engine: Path) -> Iterator[Callable[..., Any]]:
    """Return clients of applications with these options."""
    from starlette.testclient import TestClient

    from p4q_edge.runtime.http import ServeOptions, make_app

    with ExitStack() as opened:

        def client(*, headers: dict[str, str] | None = None, **options: Any) -> TestClient:
            app = make_app(classifier, tiny_engine, ServeOptions(**options))
            made = TestClient(app, base_url="http://127.0.0.1:8080", headers=headers, raise_server_exceptions=False)
            return opened.enter_context(made)

        yield client


@pytest.fixture
def client(serve: Callable[..., Any]) -> Any:
    """A client of an application with the defaults."""
    return serve()


@pytest.fixture
def photos(tmp_path: Path) -> list[bytes]:
    """Twelve different pictures as PNG files."""
    random = np.random.default_rng(11)
    found = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        # Smooth, as noise alone gives every picture the same answer.
        small = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        small.resize((40, 30), Image.Resampling.BICUBIC).save(path)
        found.append(path.read_bytes())
    return found


@pytest.fixture
def child(tiny_engine: Path) -> Iterator[Callable[..., Child]]:
    """Start servers; those that a test leaves are ended."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str, **environment: str) -> Child:
        command = [sys.executable, "-c", MAIN, "serve", str(tiny_engine), "--port", "0", "--threads", "1", *options]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("http"), line + process.stderr.read()
        return Child(process, line)

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
