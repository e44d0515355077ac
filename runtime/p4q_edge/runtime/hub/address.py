"""Addresses of bundles on the Hub: `hf:user/name`, `hf:user/name@revision`, `hf:user/name@revision/file.p4q`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from p4q_edge.runtime.artifacts import SUFFIX
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.storage import printable

PREFIX = "hf:"
EXPECTED = "hf:user/name, hf:user/name@revision or hf:user/name@revision/file.p4q"
# A name of the Hub begins and ends with a letter or digit; what else it asks of one, it says itself.
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_FILE = r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,99}/){0,8}[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_REVISION = r"refs/(?:pr|convert)/[A-Za-z0-9._-]{1,100}|[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
_ADDRESS = re.compile(rf"hf:/{{0,2}}(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>{_REVISION}))?(?:/(?P<file>{_FILE}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHOWN = 200


@dataclass(frozen=True, kw_only=True)
class HubAddress:
    """Where a bundle lies on the Hub.

    Attributes:
        repo: `user/name`.
        revision: branch, tag or commit; None is the main branch.
        file: path within the repository; None is its only bundle.
    """

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{PREFIX}{self.repo}{revision}{'' if self.file is None else f'/{self.file}'}"

    @property
    def names_a_commit(self) -> bool:
        """Whether what is meant can never change."""
        return is_commit(self.revision)

    def at(self, commit: str, file: str) -> HubAddress:
        """Return that of a file at a commit, which always means the same bytes."""
        return replace(self, revision=commit, file=file)


def is_commit(revision: object) -> bool:
    """Return whether something is the whole name of a commit, 40 hexadecimal digits."""
    return isinstance(revision, str) and _COMMIT.fullmatch(revision) is not None


def is_hub_address(text: str | Path) -> bool:
    """Return whether something that stands where a bundle may stand is meant as an address of the Hub."""
    return str(text).startswith(PREFIX)


def is_bundle_name(name: str) -> bool:
    """Return whether a file of a repository is a bundle by its name, and has one that can be asked for."""
    return name.endswith(SUFFIX) and re.fullmatch(_FILE, name) is not None and ".." not in name


def parse_address(text: str | Path) -> HubAddress:
    """Return the parts of an address.

    Raises:
        UsageError: it is none.
    """
    found = _ADDRESS.fullmatch(str(text))
    if found is None or ".." in str(text) or "--" in found["repo"]:
        raise UsageError(f"{printable(str(text)[:_SHOWN])} is not an address on the Hub; expected {EXPECTED}.")
    if found["file"] is not None and not is_bundle_name(found["file"]):
        raise UsageError(f"{text} does not name a bundle; expected a file that ends in {SUFFIX}, as in {EXPECTED}.")
    return HubAddress(repo=found["repo"], revision=found["revision"], file=found["file"])
