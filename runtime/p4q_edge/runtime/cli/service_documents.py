"""What `--json` of `serve`, `push` and `completion` writes; kept apart from the other documents, which are many."""

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


class PushDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bundle that was pushed to the Hub.

    Attributes:
        bundle: path of the bundle.
        address: what `p4q-edge build` takes for this version of it.
        url: of the commit.
        private: whether the repository is.
        files: that were pushed.
        card_kept: whether a model card that was there, and that `push` did not write, was left.
    """

    bundle: str
    address: str
    url: str
    private: bool
    files: tuple[str, ...]
    card_kept: bool


class CompletionDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A script that completes commands and options.

    Attributes:
        shell: `bash`, `zsh` or `fish`.
        script: its text.
    """

    shell: str
    script: str
