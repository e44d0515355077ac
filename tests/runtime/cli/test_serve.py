"""The command `serve` before it serves: what it needs, and what it refuses. See also `tests/runtime/http`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

LIBRARIES = ("starlette", "uvicorn", "python_multipart")
Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("library", [*LIBRARIES, "httpx2"])
def test_the_server_is_tested(library: str) -> None:
    """Without one of these all of `tests/runtime/http` is left out, and with one that is broken it would be, too."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"tests/runtime/http needs {library}: pip install 'p4q-edge-runtime[serve]' httpx2")
    assert importlib.import_module(library).__name__ == library


def test_without_the_extra_it_says_how_to_install_it(
    run: Run, tiny_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = importlib.util.find_spec
    missing = ("starlette", "python_multipart")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else own(name))
    code, out, err = run("serve", tiny_engine)
    if own("uvicorn") is not None:
        assert err == (
            "error: p4q-edge serve needs starlette, python_multipart, which this Python lacks. "
            "Run: pip install 'p4q-edge-runtime[serve]'\n"
        )
    assert (code, out) == (3, "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--host", "0.0.0.0"), "at 0.0.0.0 other machines can reach the server, which needs a token then"),
        (("--port", "99999"), "port must be between 0 and 65535, got 99999."),
        (("--tls-key", "k.pem"), "HTTPS needs both a certificate and its key"),
        (("--requests", "0"), "a server must handle at least one request"),
        (("--token-file", "none"), "cannot read the token none"),
    ],
)
def test_what_it_refuses_before_the_engine_is_loaded(run: Run, options: tuple[str, ...], said: str) -> None:
    for library in LIBRARIES:
        pytest.importorskip(library)
    code, out, err = run("serve", "missing.onnx", *options)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_an_engine_that_is_missing(run: Run) -> None:
    for library in LIBRARIES:
        pytest.importorskip(library)
    code, _, err = run("serve", "missing.onnx", "--port", "0")
    assert code == 2
    assert "missing.onnx" in err
