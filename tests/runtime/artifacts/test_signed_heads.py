"""A head's signature goes where the head goes, and nowhere else."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.head import read_head
from p4q_edge.runtime.artifacts.head_store import (
    MAX_VERSIONS,
    add_head,
    deciding_bytes,
    earlier_versions,
    find_head,
    heads_folder,
    remove_head,
    stored_heads,
    undo_head,
    write_head,
)
from p4q_edge.runtime.artifacts.signature import TRUSTED_KEYS, signature_path, write_signature
from p4q_edge.runtime.classification import reset_calibration
from p4q_edge.runtime.errors import ArtifactError, CorruptArtifactError, UsageError
from p4q_edge.runtime.storage import switch

Keys = tuple[Path, Path]
Run = Callable[..., tuple[int, str, str]]


def sign(artifact: Path, key: Path) -> bytes:
    write_signature(artifact, *deciding_bytes(artifact), key=key, force=True)
    return signature_path(artifact).read_bytes()


@pytest.fixture
def night(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A head as another program may write it: the same tensors, with other bytes than this program's."""
    data = dataclasses.replace(read_bundle(tiny_bundle).head(), class_names=("moon", "star", "comet")).to_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(dict(reversed(json.loads(data[8 : 8 + length]).items())), indent=1).encode()
    header += b" " * (-len(header) % 8)
    path = tmp_path / "night.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    assert read_head(path.read_bytes(), source="night").to_bytes() != path.read_bytes()
    return path


@pytest.fixture
def stored(tiny_engine: Path) -> Path:
    return heads_folder(tiny_engine) / "night.safetensors"


def test_a_signed_head_is_stored_byte_for_byte_with_its_signature(
    tiny_engine: Path, night: Path, stored: Path, photo: Path, keys_of_a_maker: Keys, run: Run, tmp_path: Path
) -> None:
    private, public = keys_of_a_maker
    signature = sign(night, private)
    sign(tiny_engine, private)
    add_head(tiny_engine, night)
    assert stored.read_bytes() == night.read_bytes()
    assert signature_path(stored).read_bytes() == signature
    with ZeroShotClassifier(tiny_engine, heads="night", trusted_keys=[public]) as classifier:
        assert classifier.active_head == "night"
    assert run("verify", stored, "--key", public)[0] == 0
    exported = tmp_path / "out" / "copy.safetensors"
    assert run("head", "export", tiny_engine, "--name", "night", "-o", exported)[0] == 0
    assert exported.read_bytes() == night.read_bytes()
    assert signature_path(exported).read_bytes() == signature


def test_the_same_head_takes_a_signature_that_it_lacked_and_keeps_one_that_it_has(
    tiny_engine: Path, night: Path, stored: Path, keys_of_a_maker: Keys
) -> None:
    add_head(tiny_engine, night)
    signature = sign(night, keys_of_a_maker[0])
    add_head(tiny_engine, night, force=True)
    assert signature_path(stored).read_bytes() == signature
    signature_path(night).unlink()
    add_head(tiny_engine, night, force=True)
    assert signature_path(stored).read_bytes() == signature
    assert earlier_versions(tiny_engine, "night") == ()


def test_another_head_in_its_place_is_not_signed_and_an_undo_brings_both_back(
    tiny_engine: Path, night: Path, stored: Path, keys_of_a_maker: Keys
) -> None:
    signature, data = sign(night, keys_of_a_maker[0]), night.read_bytes()
    add_head(tiny_engine, night)
    write_head(tiny_engine, "night", dataclasses.replace(find_head(tiny_engine, "night"), logit_scale=3.0))
    assert not signature_path(stored).exists()
    undo_head(tiny_engine, "night")
    assert (stored.read_bytes(), signature_path(stored).read_bytes()) == (data, signature)
    assert [*stored.parent.rglob("*.sig")] == [signature_path(stored)]
    write_head(tiny_engine, "night", dataclasses.replace(find_head(tiny_engine, "night"), logit_scale=4.0))
    undo_head(tiny_engine, "night")
    reset_calibration(tiny_engine, "night")
    assert not signature_path(stored).exists()


def test_signatures_of_earlier_versions_go_with_them(
    tiny_engine: Path, night: Path, stored: Path, keys_of_a_maker: Keys
) -> None:
    head = read_head(night.read_bytes(), source="night")
    for number in range(MAX_VERSIONS + 3):
        night.write_bytes(dataclasses.replace(head, logit_scale=1.0 + number).to_bytes())
        sign(night, keys_of_a_maker[0])
        add_head(tiny_engine, night, force=True)
    assert len([*stored.parent.rglob("*.sig")]) == 1 + MAX_VERSIONS
    remove_head(tiny_engine, "night")
    assert [path for path in stored.parent.rglob("*") if path.is_file()] == []


def test_a_removal_that_was_killed_is_finished(
    tiny_engine: Path, night: Path, stored: Path, keys_of_a_maker: Keys
) -> None:
    sign(night, keys_of_a_maker[0])
    add_head(tiny_engine, night)
    stored.unlink()
    with pytest.raises(UsageError, match="has no head 'night'"):
        remove_head(tiny_engine, "night")
    assert [*stored.parent.iterdir()] == []


def test_head_and_signature_are_replaced_together(
    tiny_engine: Path, night: Path, stored: Path, keys_of_a_maker: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is killed after the commit leaves both to the next reader."""
    signature = sign(night, keys_of_a_maker[0])
    with monkeypatch.context() as patched:
        patched.setattr(switch, "complete_switch", lambda _: None)
        add_head(tiny_engine, night)
    assert not stored.exists()
    assert stored_heads(tiny_engine) == {"night": stored}
    assert signature_path(stored).read_bytes() == signature
    assert not [path for path in stored.parent.iterdir() if path.name.startswith(".")]


def test_a_signature_of_other_bytes_is_left_behind(
    tiny_engine: Path, night: Path, stored: Path, keys_of_a_maker: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    sign(night, keys_of_a_maker[0])
    night.write_bytes(dataclasses.replace(read_head(night.read_bytes(), source=""), logit_scale=2.0).to_bytes())
    with caplog.at_level(logging.WARNING):
        add_head(tiny_engine, night)
    assert "night.safetensors.sig signs another file than" in caplog.text
    assert not signature_path(stored).exists()
    signature_path(night).write_bytes(b"no signature")
    with pytest.raises(CorruptArtifactError, match=r"night\.safetensors\.sig"):
        add_head(tiny_engine, night, force=True)


def test_where_only_signed_files_are_loaded_no_other_head_is_added(
    tiny_engine: Path,
    tiny_bundle: Path,
    night: Path,
    photo: Path,
    tmp_path: Path,
    keys_of_a_maker: Keys,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would keep the engine from being loaded: what is signed in its place is named."""
    private, public = keys_of_a_maker
    bundle = tmp_path / "model.p4q"
    shutil.copy(tiny_bundle, bundle)
    for artifact in (tiny_engine, bundle):
        sign(artifact, private)
    monkeypatch.setenv(TRUSTED_KEYS, str(public))
    with pytest.raises(ArtifactError, match=r"night\.safetensors is not signed"):
        add_head(tiny_engine, night)
    code, _, err = run("head", "add", tiny_engine, bundle, "--name", "own")
    assert (code, f"p4q-edge head export {bundle} -o model.safetensors" in err) == (4, True)
    assert not heads_folder(tiny_engine).exists()
    assert run("classify", tiny_engine, photo)[0] == 0
    exported = tmp_path / "model.safetensors"
    assert run("head", "export", bundle, "-o", exported)[0] == 0
    assert run("sign", exported, "--key", private)[0] == 0
    assert run("head", "add", tiny_engine, exported, "--name", "own")[0] == 0
    assert run("classify", tiny_engine, photo, "--head", "own")[0] == 0


def test_commands_that_unsign_say_how_to_sign(
    tiny_engine: Path, night: Path, stored: Path, keys_of_a_maker: Keys, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from p4q_edge.runtime.cli.commands.head import sign_hint

    private, public = keys_of_a_maker
    sign(night, private)
    add_head(tiny_engine, night)
    assert sign_hint(stored) == ""
    monkeypatch.setenv(TRUSTED_KEYS, str(public))
    assert sign_hint(stored) == ""
    signature_path(stored).unlink()
    assert f"Sign it: p4q-edge sign {stored} --key key.pem --force" in sign_hint(stored)
    assert run("sign", stored, "--key", private, "--force")[0] == 0
    assert sign_hint(stored) == ""
