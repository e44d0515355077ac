"""What `--json` of `serve` and `completion` writes; kept apart from the other documents, which are many."""

from __future__ import annotations

import msgspec


class ServeDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server that has begun to answer; it goes on after this was written.

    Attributes:
        engine: path of the engine.
        url: address of the page.
        token: whether clients need one.
        read_only: whether nothing can be taught, chosen or saved.
        process: number of the process that serves.
    """

    engine: str
    url: str
    token: bool
    read_only: bool
    process: int


class CompletionDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A script that completes commands and options.

    Attributes:
        shell: `bash`, `zsh` or `fish`.
        script: its text.
    """

    shell: str
    script: str
