"""Bundles fetched from a stand-in of the Hub: what is taken, what is refused, and how often it is asked."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from p4q_edge.runtime.artifacts import signature_path, write_signature
from p4q_edge.runtime.artifacts.head_store import deciding_bytes
from p4q_edge.runtime.errors import (
    ArtifactError,
    CorruptArtifactError,
    EnvironmentNotAbleError,
    InputError,
    P4QEdgeError,
    UsageError,
)
from p4q_edge.runtime.hub import download, download_bundle

from doubles.hub import HubDouble

Run = Callable[..., tuple[int, str, str]]


def fetched(hub: HubDouble) -> int:
    """Return how many files were fetched."""
    return sum(method == "GET" and "/resolve/" in path for method, path in hub.asked)


def test_the_only_bundle_is_taken_and_kept(hub: HubDouble, tiny_bundle: Path) -> None:
    hub.repository("ann/cups", {"README.md": b"# cups", "cups.p4q": tiny_bundle.read_bytes()})
    path = download_bundle("hf:ann/cups")
    assert path.name == "cups.p4q"
    assert path.read_bytes() == tiny_bundle.read_bytes()
    assert download_bundle("hf:ann/cups") == path
    assert fetched(hub) == 1


def test_a_commit_that_is_here_needs_no_network(hub: HubDouble, tiny_bundle: Path) -> None:
    commit = hub.repository("ann/cups", {"cups.p4q": tiny_bundle.read_bytes()}).branches["main"]
    path = download_bundle(f"hf:ann/cups@{commit}/cups.p4q")
    hub.asked.clear()
    assert download_bundle(f"hf:ann/cups@{commit}/cups.p4q") == path
    assert hub.asked == []


def test_a_revision_is_the_one_that_was_named(hub: HubDouble, tiny_bundle: Path, rebundle: Callable[..., Path]) -> None:
    repository = hub.repository("ann/cups", {"cups.p4q": tiny_bundle.read_bytes()})
    newer = rebundle(seed=8).read_bytes()
    repository.commit({"cups.p4q": newer}, "next")
    assert download_bundle("hf:ann/cups@next").read_bytes() == newer
    assert download_bundle("hf:ann/cups").read_bytes() == tiny_bundle.read_bytes()


def test_a_branch_that_moved_is_asked_for_again(
    hub: HubDouble, tiny_bundle: Path, rebundle: Callable[..., Path]
) -> None:
    repository = hub.repository("ann/cups", {"cups.p4q": tiny_bundle.read_bytes()})
    download_bundle("hf:ann/cups")
    newer = rebundle(seed=8).read_bytes()
    repository.commit({"cups.p4q": newer})
    assert download_bundle("hf:ann/cups").read_bytes() == newer


def test_one_of_several_must_be_named(hub: HubDouble, tiny_bundle: Path) -> None:
    data = tiny_bundle.read_bytes()
    hub.repository("ann/two", {"a.p4q": data, "small/b.p4q": data})
    with pytest.raises(InputError, match=r"holds 2 bundles: a\.p4q, small/b\.p4q\. Name one: hf:ann/two/a\.p4q"):
        download_bundle("hf:ann/two")
    assert download_bundle("hf:ann/two/small/b.p4q").name == "b.p4q"
    with pytest.raises(InputError, match=r"has no file c\.p4q; it has a\.p4q, small/b\.p4q"):
        download_bundle("hf:ann/two/c.p4q")


def test_a_repository_without_a_bundle(hub: HubDouble) -> None:
    hub.repository("ann/other", {"model.safetensors": b"x", "../up.p4q": b"x", "a b.p4q": b"x"})
    with pytest.raises(InputError, match=r"does not hold a bundle \(\.p4q\)\. Name a repository that `p4q"):
        download_bundle("hf:ann/other")


def test_what_is_not_there(hub: HubDouble, tiny_bundle: Path) -> None:
    hub.repository("ann/cups", {"cups.p4q": tiny_bundle.read_bytes()})
    with pytest.raises(InputError, match=r"hf:ann/none is not there, or is private and this login may not see it"):
        download_bundle("hf:ann/none")
    with pytest.raises(InputError, match=r"hf:ann/cups has no revision 'v9'\. Name a branch, a tag or a commit"):
        download_bundle("hf:ann/cups@v9")


def test_a_private_one_needs_the_login(
    hub: HubDouble, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    hub.repository("ann/own", {"cups.p4q": tiny_bundle.read_bytes()}, private=True)
    with pytest.raises(InputError, match=r"Log in with `hf auth login`, or set HF_TOKEN for a private one"):
        download_bundle("hf:ann/own")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert download_bundle("hf:ann/own").is_file()


def test_a_login_that_is_not_valid_is_told(hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    hub.refusal = "Invalid credentials in Authorization header"
    with pytest.raises(UsageError, match=r"does not accept this login for hf:ann/own \(Invalid credentials"):
        download_bundle("hf:ann/own")


def test_a_branch_that_moves_meanwhile_is_told(
    hub: HubDouble, tiny_bundle: Path, rebundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.repository("ann/cups", {"cups.p4q": tiny_bundle.read_bytes()})
    api = pytest.importorskip("huggingface_hub").HfApi
    info = api.model_info

    def then_moves(*args: object, **keywords: object) -> object:
        found = info(*args, **keywords)
        repository.commit({"cups.p4q": rebundle(seed=8).read_bytes()})
        return found

    monkeypatch.setattr(api, "model_info", then_moves)
    with pytest.raises(P4QEdgeError, match=r"hf:ann/cups was changed while it was fetched\. Run this again"):
        download_bundle("hf:ann/cups")


def test_a_gated_one_says_so(hub: HubDouble, tiny_bundle: Path) -> None:
    hub.repository("ann/gated", {"cups.p4q": tiny_bundle.read_bytes()}, gated=True)
    with pytest.raises(UsageError, match=r"is given only to those who accept its terms"):
        download_bundle("hf:ann/gated")


def test_the_token_is_never_shown(
    hub: HubDouble, monkeypatch: pytest.MonkeyPatch, run: Run, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret_word")
    caplog.set_level(logging.DEBUG)
    code, out, err = run("build", "hf:ann/none", "--engine", tmp_path / "o.onnx", "-vv")
    assert code == InputError.exit_code
    assert "Traceback" in err
    assert "hf_a_secret_word" not in out + err + caplog.text


def test_a_download_that_breaks_goes_on_where_it_was(hub: HubDouble, tiny_bundle: Path) -> None:
    hub.repository("ann/cups", {"cups.p4q": tiny_bundle.read_bytes()})
    hub.break_after, hub.breaks = 5000, 1
    assert download_bundle("hf:ann/cups").read_bytes() == tiny_bundle.read_bytes()
    assert fetched(hub) == 2


def test_a_download_that_breaks_for_good_leaves_no_bundle(hub: HubDouble, tiny_bundle: Path, tmp_path: Path) -> None:
    hub.repository("ann/cups", {"cups.p4q": tiny_bundle.read_bytes()})
    hub.break_after, hub.breaks = 5000, 100
    with pytest.raises(
        EnvironmentNotAbleError, match=r"cannot be reached for hf:ann/cups, or the connection broke \(.*Try again"
    ):
        download_bundle("hf:ann/cups")
    assert list((tmp_path / "hub").rglob("*.p4q")) == []
    hub.breaks = 0
    assert download_bundle("hf:ann/cups").read_bytes() == tiny_bundle.read_bytes()


def test_what_was_damaged_on_its_way_is_not_kept(hub: HubDouble, tiny_bundle: Path, tmp_path: Path) -> None:
    hub.repository("ann/cups", {"cups.p4q": tiny_bundle.read_bytes()})
    hub.damage = True
    with pytest.raises(CorruptArtifactError, match=r"its digest is not the one that the Hub states.*was removed"):
        download_bundle("hf:ann/cups")
    hub.damage = False
    assert download_bundle("hf:ann/cups").read_bytes() == tiny_bundle.read_bytes()


def test_a_strangers_file_is_checked_as_any_bundle(hub: HubDouble, tiny_bundle: Path) -> None:
    data = bytearray(tiny_bundle.read_bytes())
    data[len(data) // 2] ^= 1
    hub.repository("ann/bad", {"cups.p4q": bytes(data), "notes.p4q": b"no zip"})
    with pytest.raises(CorruptArtifactError, match=r"ann/bad/cups\.p4q is not a usable bundle: .* The copy lies at "):
        download_bundle("hf:ann/bad/cups.p4q")
    with pytest.raises(CorruptArtifactError, match=r"hf:ann/bad/notes\.p4q is not a usable bundle: "):
        download_bundle("hf:ann/bad/notes.p4q")


def test_one_that_is_too_large_is_not_fetched(
    hub: HubDouble, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repository("ann/cups", {"cups.p4q": tiny_bundle.read_bytes()})
    monkeypatch.setattr(download, "MAX_BUNDLE_BYTES", 1000)
    with pytest.raises(InputError, match=rf"has {tiny_bundle.stat().st_size} bytes; a bundle that is fetched has at"):
        download_bundle("hf:ann/cups")
    assert fetched(hub) == 0


def test_signatures_are_asked_for_as_of_any_file(
    hub: HubDouble,
    tiny_bundle: Path,
    tmp_path: Path,
    keys_of_a_maker: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    private, public = keys_of_a_maker
    signed = tmp_path / "cups.p4q"
    signed.write_bytes(tiny_bundle.read_bytes())
    write_signature(signed, *deciding_bytes(signed), key=private)
    files = {"cups.p4q": signed.read_bytes(), "cups.p4q.sig": signature_path(signed).read_bytes()}
    hub.repository("ann/signed", files)
    hub.repository("ann/unsigned", {"cups.p4q": signed.read_bytes()})
    monkeypatch.setenv("P4Q_EDGE_TRUSTED_KEYS", str(public))
    assert download_bundle("hf:ann/signed").is_file()
    with pytest.raises(ArtifactError, match="is not signed: "):
        download_bundle("hf:ann/unsigned")


def test_offline_takes_what_is_here_and_says_what_is_not(
    hub: HubDouble, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repository("ann/cups", {"cups.p4q": tiny_bundle.read_bytes()})
    path = download_bundle("hf:ann/cups")
    hub.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert download_bundle("hf:ann/cups") == path
    with pytest.raises(
        EnvironmentNotAbleError, match=r"hf:ann/other is not in this user's cache, and HF_HUB_OFFLINE is set"
    ):
        download_bundle("hf:ann/other")
    assert hub.asked == []


def test_without_a_network_it_ends_at_once_in_a_process_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    main = (
        "import os, sys, time\n"
        "time.sleep = lambda seconds: (print(f'it waits {seconds} s', file=sys.stderr), os._exit(9))\n"
        "from p4q_edge.runtime.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", main, "build", "hf:ann/cups", "--engine", str(tmp_path / "o.onnx")]
    with socket.socket() as taken:  # bound and not listened at, so that every connection is refused
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        closed = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        done = subprocess.run(command, env=closed, capture_output=True, text=True, timeout=300, check=False)
    assert "it waits" not in done.stderr, done.stderr
    assert done.returncode == EnvironmentNotAbleError.exit_code
    assert "the Hub cannot be reached for hf:ann/cups" in done.stderr
    assert "HF_HUB_OFFLINE=1 takes what was downloaded before" in done.stderr
    assert done.stderr.count("\n") == 1
