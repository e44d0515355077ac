"""Who vouches for an artifact: signed files load, all others are refused where a key is trusted."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.card import card_path, read_card, write_card
from p4q_edge.runtime.artifacts.head import load_head
from p4q_edge.runtime.artifacts.head_store import add_head, deciding_bytes
from p4q_edge.runtime.artifacts.signature import TRUSTED_KEYS, require_signed, signature_path, write_signature
from p4q_edge.runtime.errors import ArtifactError, CorruptArtifactError, EnvironmentNotAbleError, UsageError

from doubles.keys import make_keys

Keys = tuple[Path, Path]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def head(tiny_bundle: Path, tmp_path: Path) -> Path:
    path = tmp_path / "night.safetensors"
    path.write_bytes(read_bundle(tiny_bundle).head().to_bytes())
    return path


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.p4q"
    path.write_bytes(tiny_bundle.read_bytes())
    return path


def sign(artifact: Path, key: Path) -> None:
    write_signature(artifact, *deciding_bytes(artifact), key=key, force=True)


def test_what_was_signed_is_loaded(tiny_engine: Path, bundle: Path, head: Path, keys_of_a_maker: Keys) -> None:
    private, public = keys_of_a_maker
    for artifact, load in ((tiny_engine, read_card), (bundle, read_bundle), (head, load_head)):
        with pytest.raises(ArtifactError, match=rf"{artifact.name} is not signed: .*\.sig is missing, and only signed"):
            load(artifact, trusted=[public])  # type: ignore[operator]
        sign(artifact, private)
        load(artifact, trusted=[public])  # type: ignore[operator]


def test_another_key_is_not_trusted(tiny_engine: Path, tmp_path: Path, keys_of_a_maker: Keys) -> None:
    other_private, other_public = make_keys(tmp_path, "other")
    sign(tiny_engine, other_private)
    with pytest.raises(ArtifactError, match=r"is signed by a key that is not among the trusted ones \(.*maker\.pub"):
        read_card(tiny_engine, trusted=[keys_of_a_maker[1]])
    read_card(tiny_engine, trusted=[keys_of_a_maker[1], other_public])


def test_a_change_of_what_decides_answers_breaks_the_signature(
    tiny_engine: Path, head: Path, keys_of_a_maker: Keys
) -> None:
    private, public = keys_of_a_maker
    sign(tiny_engine, private)
    card = read_card(tiny_engine)
    write_card(tiny_engine, msgspec.structs.replace(card, class_names=card.class_names[::-1]), force=True)
    with pytest.raises(CorruptArtifactError, match="signs another engine than .* now is. Sign it: p4q-edge sign"):
        ZeroShotClassifier(tiny_engine, trusted_keys=[public])
    write_card(tiny_engine, card, force=True)
    ZeroShotClassifier(tiny_engine, trusted_keys=[public]).close()
    tiny_engine.write_bytes(tiny_engine.read_bytes() + b"\x12\x01x")
    with pytest.raises(CorruptArtifactError, match="their digests differ"):
        ZeroShotClassifier(tiny_engine, trusted_keys=[public])


def test_a_signature_is_bound_to_its_kind_and_its_bytes(head: Path, tmp_path: Path, keys_of_a_maker: Keys) -> None:
    private, public = keys_of_a_maker
    data = head.read_bytes()
    write_signature(head, "bundle", data, key=private)
    with pytest.raises(CorruptArtifactError, match="signs another bundle than"):
        require_signed(head, "head", data, trusted=[public])
    # Said to be of a head, the signature itself is still that of a bundle.
    document = json.loads(signature_path(head).read_bytes())
    signature_path(head).write_text(json.dumps({**document, "artifact": "head"}))
    with pytest.raises(CorruptArtifactError, match="is not that of its key"):
        require_signed(head, "head", data, trusted=[public])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("signature", "AAAA"),
        ("signature", "not base64"),
        ("public_key", "AAAA"),
        ("sha256", "0" * 64),
        ("artifact", "engine"),
        ("artifact", "model"),
        ("schema_version", 2),
        ("more", 1),
    ],
)
def test_a_changed_signature_is_refused(head: Path, keys_of_a_maker: Keys, field: str, value: object) -> None:
    private, public = keys_of_a_maker
    sign(head, private)
    document = json.loads(signature_path(head).read_bytes())
    signature_path(head).write_text(json.dumps({**document, field: value}))
    with pytest.raises(ArtifactError):
        load_head(head, trusted=[public])


def test_stored_heads_and_heads_of_files_need_signatures(tiny_engine: Path, head: Path, keys_of_a_maker: Keys) -> None:
    private, public = keys_of_a_maker
    sign(tiny_engine, private)
    with pytest.raises(ArtifactError, match=r"night\.safetensors is not signed"):
        ZeroShotClassifier(tiny_engine, heads=head, trusted_keys=[public])
    add_head(tiny_engine, head)
    stored = tiny_engine.with_name(tiny_engine.name + ".heads") / "night.safetensors"
    with pytest.raises(ArtifactError, match=r"night\.safetensors is not signed"):
        ZeroShotClassifier(tiny_engine, trusted_keys=[public])
    sign(head, private)
    # The same bytes under another name: their signature may be copied.
    signature_path(stored).write_bytes(signature_path(head).read_bytes())
    with ZeroShotClassifier(tiny_engine, heads="night", trusted_keys=[public]) as classifier:
        assert classifier.active_head == "night"


def test_the_environment_holds_for_every_command(
    tiny_engine: Path,
    bundle: Path,
    photo: Path,
    tmp_path: Path,
    keys_of_a_maker: Keys,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    private, public = keys_of_a_maker
    monkeypatch.setenv(TRUSTED_KEYS, str(public))
    commands = (
        ("classify", tiny_engine, photo),
        ("selftest", tiny_engine),
        ("inspect", tiny_engine),
        ("build", bundle, "--engine", tmp_path / "new.onnx"),
    )
    for command in commands:
        code, _, err = run(*command)
        assert (code, "is not signed" in err) == (4, True), command
    for artifact in (tiny_engine, bundle):
        assert run("sign", artifact, "--key", private)[0] == 0
        code, out, _ = run("verify", artifact)
        assert (code, "signed by the key" in out) == (0, True)
    for command in commands:
        assert run(*command)[0] == 0, command


def test_the_flag_of_classify(tiny_engine: Path, photo: Path, keys_of_a_maker: Keys, run: Run) -> None:
    private, public = keys_of_a_maker
    code, _, err = run("classify", tiny_engine, photo, "--trusted-key", public)
    assert (code, "is not signed" in err) == (4, True)
    sign(tiny_engine, private)
    assert run("classify", tiny_engine, photo, "--trusted-key", public)[0] == 0


def test_sign_and_verify_say_what_is_wrong(head: Path, tmp_path: Path, keys_of_a_maker: Keys, run: Run) -> None:
    private, public = keys_of_a_maker
    for key, message in ((public, "not a private key in PEM"), (tmp_path / "absent", "cannot read the key")):
        code, _, err = run("sign", head, "--key", key)
        assert (code, message in err) == (2, True)
    code, _, err = run("verify", head)
    assert (code, "no key is trusted here. Add --key" in err) == (2, True)
    code, _, err = run("verify", head, "--key", public)
    assert (code, "is not signed" in err) == (4, True)
    assert run("sign", head, "--key", private)[0] == 0
    assert run("sign", head, "--key", private)[0] == 2  # there is one
    assert run("sign", head, "--key", private, "--force")[0] == 0
    code, _, err = run("verify", head, "--key", private)
    assert (code, "not a public key in PEM" in err) == (2, True)
    head.write_bytes(b"other")
    assert run("sign", head, "--key", private, "--force")[0] == 4


def test_keys_of_other_kinds_are_refused(head: Path, tmp_path: Path, keys_of_a_maker: Keys) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "ec.pem", tmp_path / "ec.pub.pem"
    pem = serialization.Encoding.PEM
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(UsageError, match=r"ec\.pem is not an Ed25519 key\. Make one: openssl genpkey"):
        sign(head, private)
    with pytest.raises(UsageError, match=r"ec\.pub\.pem is not an Ed25519 key"):
        load_head(head, trusted=[public])


def test_without_cryptography_nothing_is_taken_for_signed(
    head: Path, keys_of_a_maker: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(EnvironmentNotAbleError, match=r"pip install 'p4q-edge-runtime\[sign\]'"):
        load_head(head, trusted=[keys_of_a_maker[1]])
    load_head(head)


def test_an_empty_list_asks_for_no_signature(
    tiny_engine: Path, keys_of_a_maker: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUSTED_KEYS, str(keys_of_a_maker[1]))
    with pytest.raises(ArtifactError, match="is not signed"):
        read_card(tiny_engine)
    assert read_card(tiny_engine, trusted=()).class_names
    assert card_path(tiny_engine).is_file()
