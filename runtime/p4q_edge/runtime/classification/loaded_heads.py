"""The heads that a classifier has: those stored with its engine, and those that it is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from p4q_edge.runtime.artifacts import BUILT_IN, Card, Head, load_stored_heads, open_head, require_fit
from p4q_edge.runtime.errors import UsageError


def load_heads(
    heads: str | Path | Iterable[str | Path] | Mapping[str, Head] | None,
    engine: Path,
    card: Card,
    *,
    trusted: tuple[Path, ...],
) -> tuple[dict[str, Head], str]:
    """Return the heads stored with the engine and those given, and the name of the one that is active at first."""
    loaded = load_stored_heads(engine, card, trusted=trusted)
    given = _given_heads(heads, stored=loaded, trusted=trusted)
    for name, head in given.items():
        require_fit(head, card, name=name)
    return {**loaded, **given}, next(iter(given), BUILT_IN)


def _given_heads(
    heads: str | Path | Iterable[str | Path] | Mapping[str, Head] | None,
    *,
    stored: Mapping[str, Head],
    trusted: tuple[Path, ...],
) -> dict[str, Head]:
    if heads is None or heads == BUILT_IN:
        return {}
    if isinstance(heads, Mapping):
        given = dict(heads)
    else:
        names = [heads] if isinstance(heads, (str, Path)) else list(heads)
        given = {}
        for name in names:
            # A plain name is that of a stored head; anything else is a file.
            key = str(name) if str(name) in stored else Path(name).stem
            if key in given:
                raise UsageError(f"two heads are named {key!r}; rename one of the files.")
            given[key] = stored[key] if str(name) in stored else _opened(name, stored, trusted)
    if BUILT_IN in given:
        raise UsageError(f"a head cannot be named {BUILT_IN!r}, the name of the engine's own. Rename it.")
    return given


def _opened(name: str | Path, stored: Mapping[str, Head], trusted: tuple[Path, ...]) -> Head:
    """Return the head in a file; a word that names none is answered with the heads that there are."""
    if not Path(name).exists() and Path(name).suffix not in (".safetensors", ".p4q"):
        raise UsageError(
            f"no head is named {str(name)!r}; there are {', '.join([BUILT_IN, *stored])}. Or name a .safetensors file."
        )
    return open_head(name, trusted=trusted)
