"""What the processes of a team must have in common: the version, the command, the recipe, and what that names."""

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from p4q_edge.cli.common import DEFAULT_RECIPE
from p4q_edge.models import Team, difference_in_words, naming_process
from p4q_edge.runtime import errors
from p4q_edge.runtime.errors import P4QEdgeError, UsageError
from p4q_edge.runtime.storage import LIBRARIES, encode_json, sha256_bytes, sha256_file

if TYPE_CHECKING:
    from p4q_edge.stages import Source

_ONLY_SAID = frozenset({"--quiet", "-q", "--verbose", "-v", "-vv", "--json"})
"""Options that decide what is told and nothing that is computed."""
_VERSIONS = (*LIBRARIES, "numpy", "pillow")


def command_card(arguments: Sequence[str]) -> dict[str, str]:
    """Return the card of a process that runs `p4q-edge` with these arguments, in words by what it is."""
    card = {f"version of {name}": _version(name) for name in _VERSIONS}
    card["command"] = " ".join(word for word in arguments if word not in _ONLY_SAID)
    return card | {f"contents of {path}": _contents(path) for path in _recipes(arguments)}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _recipes(arguments: Sequence[str]) -> Iterator[Path]:
    named = [Path(word.partition("=")[2] or word) for word in arguments if word.endswith(".toml")]
    yield from named or [DEFAULT_RECIPE]


def _contents(path: Path) -> str:
    try:
        return f"sha256 {sha256_file(path)}"
    except OSError:
        return "no such file"


class _Opened(msgspec.Struct, frozen=True, kw_only=True):
    """What opening a recipe gave in one process: a card, or why it cannot be opened."""

    card: dict[str, str] = {}
    kind: str = ""
    problem: str = ""


def source_card(source: "Source") -> dict[str, str]:
    """Return the card of a recipe that was opened: its images and its model, by digests."""
    split = source.split
    sets = {
        "labelled images": [list(source.train_digests), split.train.labels.tolist(), list(source.class_names)],
        "images without labels": source.unlabelled_digests,
        "calibration images": source.calibration_digests,
    }
    card = {name: f"{len(found)} sha256 {sha256_bytes(encode_json(found))}" for name, found in sets.items()}
    card["labelled images"] = f"{len(source.train_digests)} {card['labelled images'].partition(' ')[2]}"
    return card | {"weights": f"sha256 {source.model.info.weights_sha256}"}


def require_same(team: Team, opened: "Source | P4QEdgeError") -> None:
    """Compare what a recipe gave in all processes of a team, before anything is computed; all raise the same.

    Raises:
        P4QEdgeError: a process could not open what the recipe names; the message names the process.
        UsageError: processes found other images or weights.
    """
    if isinstance(opened, P4QEdgeError):
        own = _Opened(kind=type(opened).__name__, problem=str(opened))
    else:
        own = _Opened(card=source_card(opened))
    every = [msgspec.json.decode(text, type=_Opened) for text in team.gather(msgspec.json.encode(own))]
    failed = next((rank for rank, found in enumerate(every) if found.problem), None)
    if failed is not None:
        kind, why = getattr(errors, every[failed].kind, P4QEdgeError), every[failed].problem
        if all(found.problem == why for found in every):
            raise kind(why)
        raise naming_process(kind(f"{why} (in process {failed})"))
    cards = [found.card for found in every]
    if problem := difference_in_words(cards, advice="Let all processes read the same folders and model"):
        raise naming_process(UsageError(problem))
