"""Heads that belong to an engine: small files in the folder `<engine>.heads`, found by their names."""

from __future__ import annotations

import re
from pathlib import Path

from p4q_edge.runtime.artifacts.bundle import SUFFIX, read_bundle
from p4q_edge.runtime.artifacts.card import Card, no_engine, read_card, read_card_bytes, verify_engine
from p4q_edge.runtime.artifacts.head import MAX_HEAD_BYTES, EngineHead, Head, load_head, read_head
from p4q_edge.runtime.artifacts.head_files import (
    HeadFile,
    finish_writing,
    read_head_file,
    remove_head_file,
    write_head_file,
)
from p4q_edge.runtime.artifacts.signature import Keys, SignedKind, signature_path, trusted_key_files
from p4q_edge.runtime.errors import ArtifactError, InputError, UsageError
from p4q_edge.runtime.storage import quoted, read_bounded

BUILT_IN = "built-in"
"""Name of the head that is folded into the engine."""
MAX_HEADS = 1024
MAX_VERSIONS = 8
"""Earlier versions that are kept of each head."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def heads_folder(engine: str | Path) -> Path:
    """Return the folder of an engine's heads."""
    engine = Path(engine)
    return engine.with_name(engine.name + ".heads")


def stored_heads(engine: str | Path) -> dict[str, Path]:
    """Return the files of an engine's heads by name.

    Raises:
        UsageError: there are too many, or one was half replaced by a killed writer in a folder that cannot be written.
    """
    finish_writing(heads_folder(engine))
    found = sorted(heads_folder(engine).glob("*.safetensors"))
    if len(found) > MAX_HEADS:
        raise UsageError(f"{heads_folder(engine)} holds {len(found)} heads; at most {MAX_HEADS} are used. Remove some.")
    return {path.stem: path for path in found}


def require_fit(head: Head, card: Card, *, name: str) -> None:
    """Raise `ArtifactError` unless a head was made for the model of an engine."""
    head.require_fit(name=name, embedding_dim=card.embedding_dim, weights_sha256=card.model.weights_sha256)


def load_stored_heads(engine: str | Path, card: Card, *, trusted: Keys = None) -> dict[str, Head]:
    """Return the heads stored with an engine, by name, without any that is removed meanwhile.

    Raises:
        UsageError: there are too many, or a file has a name that no head can have.
        InputError: one cannot be read.
        ArtifactError: one is damaged, was made for another model, or lacks a signature that is asked for.
    """
    loaded = {}
    for name, path in stored_heads(engine).items():
        _require_usable(name, path)
        try:
            head = load_head(path, trusted=trusted)
        except InputError as error:
            if not isinstance(error.__cause__, FileNotFoundError) or path.is_symlink():
                raise
            continue  # removed since the heads were listed: as if that had been a moment earlier
        require_fit(head, card, name=name)
        loaded[name] = head
    return loaded


def _require_usable(name: str, path: Path) -> None:
    """Raise `UsageError` for a file that was put there by hand under a name that would hide the engine's own head."""
    try:
        require_name(name)
    except UsageError as error:
        raise UsageError(
            f"{path.parent} holds a file that is no head of this engine: {error} Rename {path!r}."
        ) from error


def add_head(engine: str | Path, source: str | Path, *, name: str | None = None, force: bool = False) -> str:
    """Copy a head to those of an engine, and return its name: a `.safetensors` file byte for byte with its signature.

    Args:
        engine: the engine; its card is beside it.
        source: the head's file, or a bundle with one.
        name: of the head; that of the file if None.
        force: replace a head of this name, which becomes an earlier version.

    Raises:
        UsageError: the name cannot be used, or is taken and `force` is false.
        ArtifactError: the head was made for another model, or no key that the environment trusts signed it: a head
            that is stored and not signed would keep the engine from being loaded.
    """
    source = Path(source)
    name = source.stem if name is None else name
    require_name(name)
    path = heads_folder(engine) / f"{name}.safetensors"
    if path.exists() and not force:
        raise UsageError(f"{path} exists already; add --force, which keeps the earlier version, or another --name.")
    _put(engine, name, _file_to_add(source))
    return name


def _file_to_add(source: Path) -> HeadFile:
    if source.suffix != SUFFIX:
        return read_head_file(source)
    head = open_head(source)
    if trusted_key_files():
        raise ArtifactError(
            f"the signature of {source} is that of the bundle, not of its head, and only signed files are loaded. "
            f"Export the head, sign it and add that: p4q-edge head export {quoted(source)} -o "
            f"{quoted(source.stem + '.safetensors')}"
        )
    return HeadFile(data=head.to_bytes())


def require_name(name: str) -> None:
    """Raise `UsageError` where a name cannot be that of a stored head."""
    if not _NAME.fullmatch(name) or name == BUILT_IN:
        raise UsageError(
            f"{name!r} cannot be the name of a head; expected up to 64 letters, digits, dots, dashes and underscores, "
            f"and not {BUILT_IN!r}. Add --name NAME."
        )


def write_head(engine: str | Path, name: str, head: Head) -> Path:
    """Write a head to those of an engine, and return its file; a head of this name becomes an earlier version.

    Raises:
        UsageError: the name cannot be used.
        ArtifactError: the head was made for another model.
    """
    return _put(engine, name, HeadFile(data=head.to_bytes()))


def replace_head(engine: str | Path, name: str, head: Head) -> None:
    """Write a head in the place of one of an engine, which does not become an earlier version; its signature goes.

    Raises:
        UsageError: there is no head of this name.
    """
    write_head_file(stored_head(engine, name), HeadFile(data=head.to_bytes()))


def _put(engine: str | Path, name: str, file: HeadFile) -> Path:
    require_name(name)
    path = heads_folder(engine) / f"{name}.safetensors"
    require_fit(file.head(source=str(path)), read_card(engine), name=name)
    finish_writing(path.parent)
    if path.is_file():
        before = HeadFile(data=path.read_bytes(), signature=_signature_beside(path))
        if before.data == file.data:
            if before.signature != file.signature and file.signature is not None:
                write_head_file(path, file)
            return path
        # Kept before it is replaced: where this ends in between, one version is there twice and none is lost.
        versions = earlier_versions(engine, name)
        number = int(versions[0].stem) + 1 if versions else 1
        write_head_file(_history(engine, name) / f"{number:08}.safetensors", before)
        for oldest in versions[MAX_VERSIONS - 1 :]:
            remove_head_file(oldest)
    write_head_file(path, file)
    return path


def _signature_beside(path: Path) -> bytes | None:
    """Return the bytes of a signature, whatever it signs: it stays with the head that it lay beside."""
    try:
        return signature_path(path).read_bytes()
    except FileNotFoundError:
        return None


def earlier_versions(engine: str | Path, name: str) -> tuple[Path, ...]:
    """Return the files of the earlier versions of a head, the newest first."""
    finish_writing(_history(engine, name))
    found = _history(engine, name).glob("*.safetensors")
    return tuple(sorted((path for path in found if path.stem.isdigit()), key=lambda path: int(path.stem), reverse=True))


def undo_head(engine: str | Path, name: str) -> Head:
    """Put the newest earlier version of a head in its place, and return it; the present one is gone.

    Raises:
        UsageError: there is no head of this name, or no earlier version of it.
    """
    find_head(engine, name)
    versions = earlier_versions(engine, name)
    if not versions:
        raise UsageError(
            f"head {name} of {engine} has no earlier version. Remove it: p4q-edge head remove {quoted(engine)} {name}"
        )
    data = read_bounded(versions[0], limit_bytes=MAX_HEAD_BYTES, kind="head")
    head = read_head(data, source=str(versions[0]))
    earlier = HeadFile(data=data, signature=_signature_beside(versions[0]))
    write_head_file(heads_folder(engine) / f"{name}.safetensors", earlier)
    remove_head_file(versions[0])
    return head


def remove_head(engine: str | Path, name: str) -> Path:
    """Remove a head from those of an engine with its earlier versions, and return the file that was removed.

    Raises:
        UsageError: there is none of this name, or it is the one folded into the engine.
        InputError: there is neither a head of this name nor an engine.
    """
    stored = stored_heads(engine)
    if name == BUILT_IN:
        raise UsageError(f"the built-in head is part of {engine} and cannot be removed. Others: {_listed(stored)}.")
    if name not in stored and _NAME.fullmatch(name):
        # Of a removal that was killed; what no head can be called is the path of another file.
        signature_path(heads_folder(engine) / f"{name}.safetensors").unlink(missing_ok=True)
    _require_stored(engine, name, stored)
    for path in (*earlier_versions(engine, name), stored[name]):
        remove_head_file(path)
    return stored[name]


def _history(engine: str | Path, name: str) -> Path:
    return heads_folder(engine) / "earlier" / name


def base_head(engine: str | Path, source: str | Path = BUILT_IN, *, trusted: Keys = None) -> Head:
    """Return a head, with its class rows, to teach another from.

    Args:
        engine: the engine; its card is beside it.
        source: name of a head of the engine, `BUILT_IN`, or a file (a `.safetensors` head or a bundle).
        trusted: keys of which one must have signed it, see `Keys`.

    Raises:
        UsageError: there is none.
        ArtifactError: the head was made for another model, or the card lacks the rows of the built-in one.
    """
    card = read_card(engine, trusted=trusted)
    if str(source) == BUILT_IN:
        return card.head_rows()
    stored = stored_heads(engine)
    if str(source) in stored:
        head = load_head(stored[str(source)], trusted=trusted)
    elif Path(source).suffix in (SUFFIX, ".safetensors"):
        head = open_head(source, trusted=trusted)
    else:
        _require_stored(engine, str(source), stored)
    require_fit(head, card, name=str(source))
    return head


def open_head(source: str | Path, *, trusted: Keys = None) -> Head:
    """Return the head in a `.safetensors` file, or that of a bundle; `trusted` as in `Keys`."""
    source = Path(source)
    if source.suffix == SUFFIX:
        return read_bundle(source, trusted=trusted).head()
    return load_head(source, trusted=trusted)


def engine_head(engine: str | Path, name: str) -> EngineHead:
    """Return a head of an engine by name; `BUILT_IN` is the one folded into it.

    Raises:
        UsageError: there is none of this name.
    """
    return read_card(engine).head if name == BUILT_IN else find_head(engine, name)


def find_head(engine: str | Path, name: str) -> Head:
    """Return a head of an engine by name.

    Raises:
        UsageError: there is none of this name, or it is the one folded into the engine.
        InputError: there is neither a head of this name nor an engine.
    """
    return load_head(stored_head(engine, name))


def stored_head(engine: str | Path, name: str) -> Path:
    """Return the file of a head of an engine by name; errors as of `find_head`."""
    stored = stored_heads(engine)
    if name == BUILT_IN:
        raise UsageError(f"the built-in head is part of {engine}. Name the bundle instead of the engine to export it.")
    _require_stored(engine, name, stored)
    return stored[name]


def _require_stored(engine: str | Path, name: str, stored: dict[str, Path]) -> None:
    if name not in stored:
        if not Path(engine).is_file():
            raise no_engine(Path(engine))
        raise UsageError(f"{engine} has no head {name!r}; it has {', '.join([BUILT_IN, *stored])}.")


def _listed(stored: dict[str, Path]) -> str:
    return ", ".join(stored) or "none"


def deciding_bytes(artifact: str | Path) -> tuple[SignedKind, bytes]:
    """Return what an artifact is and the bytes that decide what it answers, after all that they vouch for was checked.

    Raises:
        InputError: a file is missing.
        CorruptArtifactError: it is damaged, or not what its card or manifest describes.
    """
    artifact = Path(artifact)
    suffix = artifact.suffix.lower()
    if suffix == SUFFIX:
        return "bundle", read_bundle(artifact, trusted=()).deciding_bytes
    if suffix == ".safetensors":
        head = read_bounded(artifact, limit_bytes=MAX_HEAD_BYTES, kind="head")
        read_head(head, source=str(artifact))
        return "head", head
    data, card = read_card_bytes(artifact, trusted=())
    verify_engine(artifact, card)
    return "engine", data
