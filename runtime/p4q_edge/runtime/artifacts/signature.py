"""Detached Ed25519 signatures: who vouches for a bundle, an engine with its card, or a head.

`FILE.sig` beside an artifact signs the digest of the bytes that decide what it answers, and that are read once: of a
bundle its manifest, which holds the digests of all members; of an engine its card, which holds that of the engine and
of its optimized copy; of a head the file.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from p4q_edge.runtime.errors import ArtifactError, CorruptArtifactError, EnvironmentNotAbleError, UsageError
from p4q_edge.runtime.storage import atomic_write, decode_json, encode_json, quoted, read_bounded, sha256_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

TRUSTED_KEYS = "P4Q_EDGE_TRUSTED_KEYS"
"""Environment variable with files of public keys; where it is set, nothing that they did not sign is loaded."""
SIGNATURE_SUFFIX = ".sig"
SignedKind = Literal["bundle", "engine", "head"]
Keys = Iterable[str | Path] | None
"""Files of public keys; None takes those of the environment, and an empty list asks for no signature."""
_MAX_KEY_BYTES, _MAX_SIGNATURE_BYTES = 1 << 14, 1 << 14
_MAKE_KEY = "openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out key.pub.pem"


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `FILE.sig` holds.

    Attributes:
        artifact: the kind of the artifact.
        sha256: digest that is signed.
        public_key: raw key that made it, base64; it counts only if it is among the trusted ones.
        signature: Ed25519 signature of kind and digest, base64.
    """

    schema_version: int = 1
    artifact: SignedKind
    sha256: str
    public_key: str
    signature: str


def signature_path(artifact: str | Path) -> Path:
    """Return where the signature of an artifact lies: `model.p4q` -> `model.p4q.sig`."""
    artifact = Path(artifact)
    return artifact.with_name(artifact.name + SIGNATURE_SUFFIX)


def write_signature(
    artifact: str | Path, kind: SignedKind, data: bytes, *, key: Path, force: bool = False
) -> Signature:
    """Sign the deciding bytes of an artifact and write the signature beside it.

    Args:
        artifact: the artifact's file.
        kind: what it is.
        data: its deciding bytes.
        key: file of the private key, PEM.
        force: replace an existing signature.

    Raises:
        UsageError: the key cannot be used, or there is a signature and `force` is false.
        EnvironmentNotAbleError: the package `cryptography` is not installed.
    """
    private, digest = _private_key(key), sha256_bytes(data)
    signature = Signature(
        artifact=kind,
        sha256=digest,
        public_key=_base64(private.public_key().public_bytes_raw()),
        signature=_base64(private.sign(_message(kind, digest))),
    )
    atomic_write(signature_path(artifact), encode_json(signature), force=force)
    return signature


def require_signed(artifact: str | Path, kind: SignedKind, data: bytes, *, trusted: Keys) -> Signature | None:
    """Check that a trusted key signed the deciding bytes of an artifact; return the signature.

    Args:
        artifact: the artifact's file.
        kind: what it is.
        data: its deciding bytes, those that are used.
        trusted: see `Keys`. None is returned where no signature is asked for.

    Raises:
        ArtifactError: there is no signature, it is of another key or artifact, or it is wrong.
        UsageError: a key cannot be used.
        EnvironmentNotAbleError: the package `cryptography` is not installed.
    """
    files = trusted_key_files(trusted)
    if not files:
        return None
    keys = {key.public_bytes_raw(): key for key in map(_public_key, files)}
    path = signature_path(artifact)
    again = f"Sign it: p4q-edge sign {quoted(artifact)} --key key.pem"
    if not path.is_file():
        raise ArtifactError(f"{artifact} is not signed: {path} is missing, and only signed files are loaded. {again}")
    raw = read_bounded(path, limit_bytes=_MAX_SIGNATURE_BYTES, kind="signature")
    found = decode_json(raw, Signature, source=str(path))
    if (found.artifact, found.sha256) != (kind, sha256_bytes(data)):
        raise CorruptArtifactError(f"{path} signs another {found.artifact} than {artifact} now is. {again}")
    key = keys.get(_from_base64(found.public_key, path))
    if key is None:
        named = ", ".join(str(file) for file in files)
        raise ArtifactError(f"{artifact} is signed by a key that is not among the trusted ones ({named}). {again}")
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(_from_base64(found.signature, path), _message(kind, found.sha256))
    except InvalidSignature as error:
        raise CorruptArtifactError(f"the signature in {path} is not that of its key. {again}") from error
    return found


def read_signature(artifact: str | Path, kind: SignedKind, data: bytes) -> bytes | None:
    """Return the bytes of an artifact's signature, whoever made it, if there is one of these deciding bytes.

    Raises:
        CorruptArtifactError: the file is no signature.
    """
    path = signature_path(artifact)
    if not path.is_file():
        return None
    raw = read_bounded(path, limit_bytes=_MAX_SIGNATURE_BYTES, kind="signature")
    found = decode_json(raw, Signature, source=str(path))
    return raw if (found.artifact, found.sha256) == (kind, sha256_bytes(data)) else None


def trusted_key_files(trusted: Keys = None) -> tuple[Path, ...]:
    """Return the files of trusted keys: those given, or those that the environment names."""
    if trusted is not None:
        return tuple(Path(file) for file in trusted)
    return tuple(Path(name) for name in os.environ.get(TRUSTED_KEYS, "").split(os.pathsep) if name)


def _message(kind: SignedKind, digest: str) -> bytes:
    # The kind is signed as well: the bytes of one artifact never pass for another.
    return f"p4q-edge signature 1\n{kind}\n{digest}\n".encode()


def _private_key(path: Path) -> Ed25519PrivateKey:
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = read_bounded(path, limit_bytes=_MAX_KEY_BYTES, kind="key")
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is not a private key in PEM without a password. Make one: {_MAKE_KEY}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} is not an Ed25519 key. Make one: {_MAKE_KEY}")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = read_bounded(path, limit_bytes=_MAX_KEY_BYTES, kind="key")
    try:
        key = load_pem_public_key(data)
    except ValueError as error:
        raise UsageError(f"{path} is not a public key in PEM. Make one: {_MAKE_KEY}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} is not an Ed25519 key. Make one: {_MAKE_KEY}")
    return key


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise EnvironmentNotAbleError(
            "signatures need the package cryptography, which is not installed. Run: "
            "pip install 'p4q-edge-runtime[sign]'"
        ) from error


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(text: str, path: Path) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CorruptArtifactError(f"{path} is not a signature: {error}. Sign the artifact again.") from error
