"""Push a bundle to the Hub: the file, its signature and a model card, in one commit."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from p4q_edge.runtime.artifacts import Bundle, read_bundle, signature_path
from p4q_edge.runtime.errors import InputError, P4QEdgeError, UsageError
from p4q_edge.runtime.evaluation.report import read_report
from p4q_edge.runtime.hub.address import HubAddress, is_bundle_name, is_commit, parse_address
from p4q_edge.runtime.hub.library import asked_hub, hub_library, is_absent, is_offline
from p4q_edge.runtime.hub.model_card import MARK, card_text
from p4q_edge.runtime.hub.network import NotTheHubError
from p4q_edge.runtime.hub.repository_info import TIMEOUT_S, repository_info
from p4q_edge.runtime.storage import printable
from p4q_edge.runtime.wording import number_of

CARD = "README.md"
MAX_CARD_BYTES = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """How a bundle is pushed.

    Attributes:
        private: a repository that is made is private, and one that is there must be.
        report: of `p4q-edge validate` about an engine of the bundle: its figures go into the model card.
        force: replace another bundle of that name, and a model card that this command did not write.
    """

    private: bool = False
    report: Path | None = None
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class PushedBundle:
    """What lies on the Hub now.

    Attributes:
        address: of the bundle, at the commit.
        url: of the commit.
        private: whether the repository is.
        files: that this version of it holds of ours.
        card_kept: whether a model card was there that somebody else wrote, and was left.
    """

    address: str
    url: str
    private: bool
    files: tuple[str, ...]
    card_kept: bool = False


def push_bundle(bundle: str | Path, address: str | HubAddress, *, options: PushOptions = PushOptions()) -> PushedBundle:
    """Push a bundle, and the signature beside it, to a repository of the Hub, which is made where there is none.

    Args:
        bundle: the bundle's file; it is checked as any other before it leaves.
        address: `hf:user/name`, with `@branch` and `/file.p4q` where those matter.
        options: how.

    Raises:
        UsageError: no address, another file is there already, the repository is public and a private one was asked
            for, the report is of another bundle, or the login does not permit it.
        InputError: no such bundle, branch or report.
        CorruptArtifactError: the bundle is damaged.
        EnvironmentNotAbleError: `huggingface_hub` is not installed.
        P4QEdgeError: the Hub cannot be reached, or somebody else changed the repository meanwhile.
    """
    meant = parse_address(address) if isinstance(address, str) else address
    opened = read_bundle(bundle)
    report = None if options.report is None else read_report(options.report)
    name = meant.file or opened.path.name
    if not is_bundle_name(name):
        raise UsageError(f"{name} cannot be a name on the Hub. Name the file: {meant}/model.p4q")
    card = card_text(opened, HubAddress(repo=meant.repo, file=meant.file), report=report)
    hub_library()
    if is_offline():
        raise UsageError("HF_HUB_OFFLINE is set, and a push needs the network. Unset it.")
    with asked_hub(meant, writing=True):
        return _push(opened, meant, name, card, options)


def _push(bundle: Bundle, meant: HubAddress, name: str, card: str, options: PushOptions) -> PushedBundle:
    library = hub_library()
    api = library.HfApi()
    info = _repository(api, meant, private=options.private)
    there = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    _require_free(bundle, meant, there.get(name), force=options.force)
    if not info.private:
        _say_what_is_public(bundle)
    keep = CARD in there and not options.force and not _is_ours(api, meant, info.sha, there[CARD])
    if keep:
        logger.warning(
            "%s of hf:%s was not written by p4q-edge and is left as it is; --force replaces it", CARD, meant.repo
        )
    files: dict[str, Any] = {name: bundle.path} if keep else {name: bundle.path, CARD: card.encode()}
    operations: list[Any] = []
    signature = signature_path(name).as_posix()
    if signature_path(bundle.path).is_file():
        files[signature] = signature_path(bundle.path)
    elif signature in there:
        # Of the bundle that was there: it would make this one look forged.
        operations.append(library.CommitOperationDelete(path_in_repo=signature))
    operations += [library.CommitOperationAdd(path_in_repo=path, path_or_fileobj=data) for path, data in files.items()]
    commit = api.create_commit(
        meant.repo,
        operations,
        commit_message=f"{name}: {bundle.manifest.precision.label} of {bundle.manifest.model.name}, by p4q-edge push",
        revision=meant.revision,
        parent_commit=info.sha,
    )
    if not is_commit(commit.oid):
        raise NotTheHubError(f"the commit is {commit.oid!r}")
    _require_arrived(api, meant, commit.oid, files)
    return PushedBundle(
        address=str(meant.at(commit.oid, name)),
        url=printable(str(commit.commit_url)),
        private=bool(info.private),
        files=tuple(sorted(files)),
        card_kept=keep,
    )


def _require_arrived(api: Any, meant: HubAddress, commit: str, files: Iterable[str]) -> None:
    """Raise where a version lacks a file that was pushed: the Hub passes over what the repository ignores."""
    there = {sibling.rfilename for sibling in repository_info(api, replace(meant, revision=commit)).siblings or ()}
    missing = [name for name in files if name not in there]
    if missing:
        raise P4QEdgeError(
            f"the Hub did not take {', '.join(missing)}: .gitignore of hf:{meant.repo} names it. Remove that line "
            f"there, or name another file: {HubAddress(repo=meant.repo, revision=meant.revision)}/NAME.p4q"
        )


def _repository(api: Any, meant: HubAddress, *, private: bool) -> Any:
    """Return what the Hub says of the repository, which is made where there is none."""
    try:
        info = repository_info(api, meant)
    except hub_library().errors.HfHubHTTPError as error:
        if not is_absent(error):
            raise
        if meant.revision is not None:
            raise InputError(
                f"hf:{meant.repo} is not there yet, so it has no branch {meant.revision!r}. Push without @."
            ) from None
        api.create_repo(meant.repo, private=private)
        info = repository_info(api, meant)
    if private and not info.private:
        raise UsageError(
            f"hf:{meant.repo} is public, and --private was given. Make it private on its page, or name another one."
        )
    return info


def _require_free(bundle: Bundle, meant: HubAddress, sibling: Any | None, *, force: bool) -> None:
    """Raise where another file of that name is there, and may not be replaced."""
    if sibling is None or force or getattr(sibling.lfs, "sha256", None) == bundle.sha256():
        return
    raise UsageError(
        f"hf:{meant.repo} has another {sibling.rfilename}; add --force to replace it (earlier commits keep it), or "
        f"name another file: {HubAddress(repo=meant.repo, revision=meant.revision)}/NAME.p4q"
    )


def _is_ours(api: Any, meant: HubAddress, commit: str, sibling: Any) -> bool:
    """Return whether the model card that is there was written by this command."""
    if (sibling.size or 0) > MAX_CARD_BYTES:
        return False
    path = Path(api.hf_hub_download(meant.repo, CARD, revision=commit, etag_timeout=TIMEOUT_S))
    return MARK in path.read_text(encoding="utf-8", errors="replace")


def _say_what_is_public(bundle: Bundle) -> None:
    """Warn of what a bundle tells beside its weights."""
    index = bundle.manifest.data_index
    parts = [number_of(len(bundle.golden().image), "golden image"), "the class names", "the recipe with its paths"]
    if index.learned:
        parts.append(f"names and digests of {number_of(len(index.learned), 'image')} learned from")
    logger.warning(
        "everybody can read this repository, and with the bundle %s. --private keeps a new repository to yourself",
        ", ".join(parts),
    )
