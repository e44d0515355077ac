"""Bundles pushed to a stand-in of the Hub: what goes there, what is never replaced, who may."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from p4q_edge.runtime.artifacts import write_signature
from p4q_edge.runtime.artifacts.head_store import deciding_bytes
from p4q_edge.runtime.errors import CorruptArtifactError, InputError, P4QEdgeError, UsageError
from p4q_edge.runtime.hub import PushOptions, download_bundle, push_bundle
from p4q_edge.runtime.hub.model_card import MARK

from doubles.hub import HubDouble


def files_of(hub: HubDouble, name: str) -> dict[str, bytes]:
    """Return the files of the main branch."""
    repository = hub.repositories[name]
    return repository.commits[repository.branches["main"]]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle in a folder of this test's own, where a signature can be written."""
    path = tmp_path / "cups.p4q"
    path.write_bytes(tiny_bundle.read_bytes())
    return path


def test_a_bundle_and_its_card_are_pushed_and_come_back(logged_in: HubDouble, bundle: Path) -> None:
    pushed = push_bundle(bundle, "hf:ann/cups")
    files = files_of(logged_in, "ann/cups")
    assert files["cups.p4q"] == bundle.read_bytes()
    assert MARK in files["README.md"].decode()
    assert "hf:ann/cups --engine" in files["README.md"].decode()
    assert pushed.files == ("README.md", "cups.p4q")
    assert not pushed.private
    assert pushed.address == f"hf:ann/cups@{logged_in.repositories['ann/cups'].branches['main']}/cups.p4q"
    assert download_bundle(pushed.address).read_bytes() == bundle.read_bytes()


def test_a_public_push_says_what_everybody_can_read(
    logged_in: HubDouble, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    push_bundle(bundle, "hf:ann/cups")
    assert "everybody can read this repository, and with the bundle 4 golden images" in caplog.text
    caplog.clear()
    push_bundle(bundle, "hf:ann/own", options=PushOptions(private=True))
    assert logged_in.repositories["ann/own"].private
    assert "everybody" not in caplog.text


def test_private_is_not_pushed_to_a_public_repository(logged_in: HubDouble, bundle: Path) -> None:
    logged_in.repository("ann/cups", {"a.txt": b"a"})
    with pytest.raises(UsageError, match=r"hf:ann/cups is public, and --private was given"):
        push_bundle(bundle, "hf:ann/cups", options=PushOptions(private=True))
    assert files_of(logged_in, "ann/cups") == {"a.txt": b"a"}


def test_another_bundle_is_replaced_only_if_forced(
    logged_in: HubDouble, bundle: Path, rebundle: Callable[..., Path]
) -> None:
    first = push_bundle(bundle, "hf:ann/cups/cups.p4q")
    newer = rebundle(seed=8)
    with pytest.raises(UsageError, match=r"hf:ann/cups has another cups\.p4q; add --force .* hf:ann/cups/NAME\.p4q"):
        push_bundle(newer, "hf:ann/cups/cups.p4q")
    pushed = push_bundle(newer, "hf:ann/cups/cups.p4q", options=PushOptions(force=True))
    assert files_of(logged_in, "ann/cups")["cups.p4q"] == newer.read_bytes()
    assert download_bundle(first.address).read_bytes() == bundle.read_bytes()
    assert download_bundle(pushed.address).read_bytes() == newer.read_bytes()


def test_the_same_bundle_again_is_no_replacement(logged_in: HubDouble, bundle: Path) -> None:
    push_bundle(bundle, "hf:ann/cups")
    push_bundle(bundle, "hf:ann/cups")
    assert files_of(logged_in, "ann/cups")["cups.p4q"] == bundle.read_bytes()


def test_a_card_of_somebody_else_is_left_unless_forced(
    logged_in: HubDouble, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logged_in.repository("ann/cups", {"README.md": b"# by hand"})
    assert push_bundle(bundle, "hf:ann/cups").card_kept
    assert files_of(logged_in, "ann/cups")["README.md"] == b"# by hand"
    assert "README.md of hf:ann/cups was not written by p4q-edge and is left as it is" in caplog.text
    assert not push_bundle(bundle, "hf:ann/cups", options=PushOptions(force=True)).card_kept
    assert MARK.encode() in files_of(logged_in, "ann/cups")["README.md"]


def test_a_signature_goes_along_and_never_stays_behind(
    logged_in: HubDouble, bundle: Path, keys_of_a_maker: tuple[Path, Path], rebundle: Callable[..., Path]
) -> None:
    write_signature(bundle, *deciding_bytes(bundle), key=keys_of_a_maker[0])
    assert "cups.p4q.sig" in push_bundle(bundle, "hf:ann/cups").files
    push_bundle(rebundle(seed=8), "hf:ann/cups/cups.p4q", options=PushOptions(force=True))
    assert "cups.p4q.sig" not in files_of(logged_in, "ann/cups")


def test_a_repository_may_hold_several_bundles(logged_in: HubDouble, bundle: Path) -> None:
    push_bundle(bundle, "hf:ann/cups")
    pushed = push_bundle(bundle, "hf:ann/cups/small/b.p4q")
    assert pushed.address.endswith("/small/b.p4q")
    assert download_bundle(pushed.address).read_bytes() == bundle.read_bytes()


def test_without_a_login_nothing_is_pushed(hub: HubDouble, bundle: Path) -> None:
    with pytest.raises(P4QEdgeError, match=r"Log in with `hf auth login`, or set HF_TOKEN"):
        push_bundle(bundle, "hf:ann/cups")
    assert hub.repositories == {}


def test_a_login_that_may_not_write(logged_in: HubDouble, bundle: Path) -> None:
    logged_in.may_write = False
    with pytest.raises(
        UsageError, match=r"this login may not do that with hf:ann/cups .*rights.*a token that may write"
    ):
        push_bundle(bundle, "hf:ann/cups")
    logged_in.repository("bob/cups", {"a.txt": b"a"})
    with pytest.raises(UsageError, match=r"this login may not do that with hf:bob/cups"):
        push_bundle(bundle, "hf:bob/cups")


def test_a_change_by_somebody_else_is_not_lost(
    logged_in: HubDouble, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = logged_in.repository("ann/cups", {"a.txt": b"a"})
    api = pytest.importorskip("huggingface_hub").HfApi
    create = api.create_commit

    def late(self: object, *args: object, **keywords: object) -> object:
        repository.commit({"a.txt": b"b"})
        return create(self, *args, **keywords)

    monkeypatch.setattr(api, "create_commit", late)
    with pytest.raises(P4QEdgeError, match=r"hf:ann/cups was changed by somebody else meanwhile .*Run this again"):
        push_bundle(bundle, "hf:ann/cups")
    assert files_of(logged_in, "ann/cups") == {"a.txt": b"b"}


def test_what_is_refused_before_the_network_is_asked(
    logged_in: HubDouble, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged.p4q"
    damaged.write_bytes(bundle.read_bytes()[:-9])
    with pytest.raises(CorruptArtifactError):
        push_bundle(damaged, "hf:ann/cups")
    with pytest.raises(InputError, match="does not exist"):
        push_bundle(tmp_path / "none.p4q", "hf:ann/cups")
    with pytest.raises(UsageError, match="is not an address on the Hub"):
        push_bundle(bundle, "ann/cups")
    odd = bundle.rename(tmp_path / "my cups.p4q")
    with pytest.raises(
        UsageError, match=r"my cups\.p4q cannot be a name on the Hub\. Name the file: hf:ann/cups/model"
    ):
        push_bundle(odd, "hf:ann/cups")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set, and a push needs the network"):
        push_bundle(odd, "hf:ann/cups/cups.p4q")
    assert logged_in.asked == []


def test_a_branch_must_be_there(logged_in: HubDouble, bundle: Path) -> None:
    with pytest.raises(InputError, match=r"hf:ann/cups is not there yet, so it has no branch 'next'"):
        push_bundle(bundle, "hf:ann/cups@next")
    logged_in.repository("ann/cups", {"a.txt": b"a"}).commit({"a.txt": b"a"}, "next")
    push_bundle(bundle, "hf:ann/cups@next")
    assert "cups.p4q" not in files_of(logged_in, "ann/cups")
    assert download_bundle("hf:ann/cups@next").is_file()
