"""Bundles of the Hub on this machine: fetched once a commit, then taken from the cache of `huggingface_hub`.

What comes from there is a stranger's file. Its size is looked at before it is fetched, its digest is compared with
that which the Hub states, and `read_bundle` then checks it as any other bundle, its signature where keys are trusted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from p4q_edge.runtime.artifacts import SUFFIX, read_bundle, signature_path
from p4q_edge.runtime.errors import CorruptArtifactError, InputError, P4QEdgeError
from p4q_edge.runtime.hub.address import HubAddress, is_bundle_name, parse_address
from p4q_edge.runtime.hub.library import asked_hub, hub_library, is_offline, not_here
from p4q_edge.runtime.hub.repository_info import TIMEOUT_S, repository_info
from p4q_edge.runtime.storage import printable, sha256_file

MAX_BUNDLE_BYTES = 8 << 30
"""Of a bundle that is fetched: two members of the largest size that one may have."""
MAX_SIGNATURE_BYTES = 1 << 14
_SHOWN = 5

logger = logging.getLogger(__name__)


def download_bundle(address: str | HubAddress) -> Path:
    """Fetch a bundle from the Hub, check it, and return its path in the cache of `huggingface_hub`.

    A file that is there already for the commit meant is not fetched again. An address with a commit, 40 hexadecimal
    digits, and a file needs no network then; any other asks the Hub what is meant, unless `HF_HUB_OFFLINE=1` is set.

    Args:
        address: `hf:user/name`, with `@revision` and `/file.p4q` where those matter.

    Raises:
        UsageError: no address, or the login does not permit it.
        InputError: no such repository, revision or file, several bundles of which none is named, or one that is too
            large.
        ArtifactError: a signature is asked for (`P4Q_EDGE_TRUSTED_KEYS`), and there is none of these keys.
        CorruptArtifactError: its bytes are not what the Hub or the bundle says.
        EnvironmentNotAbleError: `huggingface_hub` is not installed, or the Hub cannot be reached, or not used by
            `HF_HUB_OFFLINE=1`, for what is not in the cache.
        P4QEdgeError: the Hub answers with an error of its own.
    """
    meant = parse_address(address) if isinstance(address, str) else address
    path = _cached(meant)
    if path is None:
        with asked_hub(meant):
            path = _fetch(meant)
    try:
        read_bundle(path)
    except CorruptArtifactError as error:
        raise CorruptArtifactError(
            f"{meant} is not a usable bundle: {error} The copy lies at {path.resolve()}; remove it to fetch it again."
        ) from error
    return path


def _cached(meant: HubAddress) -> Path | None:
    """Return the bundle where the cache has it and nothing needs to be asked; None where the Hub must be.

    Raises:
        EnvironmentNotAbleError: offline, and it is not there.
    """
    library = hub_library()
    if is_offline():
        with asked_hub(meant):
            folder = Path(
                library.snapshot_download(
                    meant.repo, revision=meant.revision, local_files_only=True, allow_patterns=[f"*{SUFFIX}"]
                )
            )
        names = {path.relative_to(folder).as_posix() for path in folder.rglob(f"*{SUFFIX}") if path.is_file()}
        if not names or meant.file not in {None, *names}:
            raise not_here(meant)
        return folder / _one_of(meant, dict.fromkeys(names))
    if not meant.names_a_commit or meant.file is None:
        return None
    found = library.try_to_load_from_cache(meant.repo, meant.file, revision=meant.revision)
    return Path(found) if isinstance(found, str) else None


def _fetch(meant: HubAddress) -> Path:
    api = hub_library().HfApi()
    info = repository_info(api, meant)
    files = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    name = _one_of(meant, files)
    size = files[name].size
    if size is None or size > MAX_BUNDLE_BYTES:
        raise InputError(
            f"{meant} has {size} bytes; a bundle that is fetched has at most {MAX_BUNDLE_BYTES}. Copy it by hand, if "
            "you trust it, and name the file."
        )
    logger.info("%s: %s of %.1f MB, commit %s", meant, name, size / 1e6, info.sha)
    # By the revision, so that the cache knows offline which commit it was.
    path = Path(api.hf_hub_download(meant.repo, name, revision=meant.revision, etag_timeout=TIMEOUT_S))
    if info.sha not in path.parts:
        raise P4QEdgeError(f"hf:{meant.repo} was changed while it was fetched. Run this again.")
    signature = signature_path(name).as_posix()
    if signature in files and (files[signature].size or 0) <= MAX_SIGNATURE_BYTES:
        api.hf_hub_download(meant.repo, signature, revision=info.sha, etag_timeout=TIMEOUT_S)
    _require_digest(meant, path, files[name])
    return path


def _require_digest(meant: HubAddress, path: Path, sibling: Any) -> None:
    """Raise, and forget the copy, where a file is not what the Hub says: the library compares sizes alone."""
    stated = getattr(sibling.lfs, "sha256", None)
    if path.stat().st_size == sibling.size and (stated is None or sha256_file(path) == stated):
        return
    blob = path.resolve()
    path.unlink(missing_ok=True)
    if blob.is_relative_to(Path(hub_library().constants.HF_HUB_CACHE).resolve()):
        blob.unlink(missing_ok=True)
    raise CorruptArtifactError(
        f"{meant} was damaged on its way, or in the cache: its digest is not the one that the Hub states. The copy was "
        "removed. Run this again."
    )


def _one_of(meant: HubAddress, files: Mapping[str, object]) -> str:
    """Return the name of the bundle that an address means among the files of a repository.

    Raises:
        InputError: there is none, or more than one.
    """
    bundles = sorted(name for name in files if is_bundle_name(name))
    if meant.file in bundles:
        return meant.file
    shown = printable(", ".join(bundles[:_SHOWN])) + (", ..." if len(bundles) > _SHOWN else "")
    if meant.file is not None:
        there = f"it has {shown}" if bundles else "it has no bundle"
        raise InputError(f"hf:{meant.repo} has no file {meant.file}; {there}. Name one that is there.")
    if not bundles:
        raise InputError(
            f"{meant} does not hold a bundle ({SUFFIX}). Name a repository that `p4q-edge push` filled; models of "
            "other kinds go into a recipe (model.name)."
        )
    if len(bundles) > 1:
        raise InputError(f"{meant} holds {len(bundles)} bundles: {shown}. Name one: {meant}/{bundles[0]}")
    return bundles[0]
