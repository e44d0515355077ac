"""A subcommand that does what a test wants."""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable

import pytest

from p4q_edge.runtime.cli import main as cli
from p4q_edge.runtime.cli.command import Command, Output


@pytest.fixture
def subcommand(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let `p4q-edge trial` run the given function."""

    def install(run: Callable[[str | None, Output], int]) -> None:
        module = types.ModuleType("trial_module")
        module.COMMAND = Command(add_arguments=_add_path, request=lambda args: args.path, run=run)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"{cli.COMMANDS}.trial", module)
        monkeypatch.setattr(cli, "RUNTIME_HELP", {"trial": "try it"})
        monkeypatch.setattr(cli, "ALL_HELP", {**cli.ALL_HELP, "trial": "try it"})

    def _add_path(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("path", nargs="?")

    return install
