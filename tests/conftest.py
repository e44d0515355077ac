"""What all tests share: no network, no colours, the same random examples in every run, GPU tests counted."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from test_session import forget_logging, has_gpu

# Set before any library is imported: nothing is fetched while tests run.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NO_COLOR"] = "1"
# Threads of torch that wait for processes outlive their tests, and what they print then no test catches.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
# Which library is faster is decided by the machine, and no test may depend on it but those of that choice.
os.environ["P4Q_EDGE_CPU_PROFILE"] = "exact"

# A shell's background job ignores Ctrl-C, its children with it; those of the tests are sent one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A failing example must fail everywhere, and a busy machine must fail nothing.
hypothesis.settings.register_profile("p4q", derandomize=True, deadline=None)
hypothesis.settings.load_profile("p4q")

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if has_gpu():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [
        report for report in terminalreporter.stats.get("skipped", ()) if "gpu" in getattr(report, "keywords", ())
    ]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests need a CUDA device and did not run.")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Undo what `cli.main` sets up for a whole process, so that no test changes what a later one sees.

    Before a test too: fixtures of a wider scope call it outside of any test.
    """
    forget_logging()
    yield
    forget_logging()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that connects to another machine; what it starts as a process is its own affair."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            assert isinstance(address, tuple)
            assert address[0] in ("127.0.0.1", "::1", "localhost"), f"a test connects to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
