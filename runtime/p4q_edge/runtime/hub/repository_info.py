"""What the Hub says of a repository: another machine's words, which are looked at before anything is done with them."""

from __future__ import annotations

from typing import Any

from p4q_edge.runtime.errors import P4QEdgeError
from p4q_edge.runtime.hub.address import HubAddress, is_commit
from p4q_edge.runtime.hub.network import answer_of, network_cause
from p4q_edge.runtime.storage import one_line

TIMEOUT_S = 10.0
"""For the first answer of the Hub: without a network a command must end, not wait."""


def repository_info(api: Any, meant: HubAddress) -> Any:
    """Return what the library makes of the answer about a repository, its files by `siblings`, each with a size.

    Args:
        api: the library's `HfApi`.
        meant: the repository, and the revision.

    Raises:
        P4QEdgeError: the answer is of another form.
    """
    try:
        info = api.model_info(meant.repo, revision=meant.revision, files_metadata=True, timeout=TIMEOUT_S)
        _check(info)
    except (TypeError, ValueError, KeyError, AttributeError) as error:  # what the library raises on other forms
        if network_cause(error) is not None or answer_of(error) is not None:
            raise
        raise P4QEdgeError(
            f"the Hub's answer about hf:{meant.repo} is not what a repository looks like ({one_line(error)}). Try "
            "again later, or look at HF_ENDPOINT."
        ) from error
    return info


def _check(info: Any) -> None:
    """Raise `ValueError`, or what the library's classes raise, unless names, sizes and digests are such."""
    if not is_commit(info.sha):
        raise ValueError(f"its commit is {str(info.sha)[:60]!r}")
    for sibling in info.siblings or ():
        stated = None if sibling.lfs is None else sibling.lfs.sha256
        if not isinstance(sibling.rfilename, str) or not (stated is None or isinstance(stated, str)):
            raise ValueError(f"a file is named {str(sibling.rfilename)[:60]!r}")
        if sibling.size is not None and (type(sibling.size) is not int or sibling.size < 0):
            raise ValueError(f"a file has {str(sibling.size)[:60]!r} bytes")
