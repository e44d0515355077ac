"""A stand-in of the Hub that `huggingface_hub` takes for the real one, with a cache of this test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from doubles.hub import HubDouble, believed


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    """The server; nobody is logged in."""
    pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    double = believed(tmp_path, monkeypatch)
    yield double
    double.close()


@pytest.fixture
def logged_in(hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> HubDouble:
    """The server, with its token in the environment."""
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub
