"""`p4q-edge completion`: a script that completes commands and options in a shell."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from p4q_edge.runtime.cli.command import Command, Output
from p4q_edge.runtime.cli.completion_scripts import SCRIPTS


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """What `completion` was asked for."""

    shell: str


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shell", choices=tuple(SCRIPTS), help="now: source <(p4q-edge completion bash); the script says how to keep it"
    )


def _run(request: CompletionRequest, output: Output) -> int:
    from importlib.metadata import version

    from p4q_edge.runtime.cli.known_words import known_commands
    from p4q_edge.runtime.cli.service_documents import CompletionDocument

    script = SCRIPTS[request.shell](known_commands(), version("p4q-edge-runtime"))
    output.write(document=CompletionDocument(shell=request.shell, script=script), text=script)
    return 0


COMMAND = Command(add_arguments=_add_arguments, request=lambda args: CompletionRequest(shell=args.shell), run=_run)
