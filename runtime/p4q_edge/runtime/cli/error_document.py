"""What `--json` writes when a command fails; apart from the other documents, which import more than a failure may."""

from __future__ import annotations

import msgspec


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happened; `type` is the class of the error."""

    type: str
    message: str
    exit_code: int


class ErrorDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A failure of any command."""

    error: ErrorDetail
