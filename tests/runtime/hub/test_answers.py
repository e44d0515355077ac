"""What the Hub, or what stands in its place, answers otherwise than it should: an error each that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p4q_edge.runtime.errors import CorruptArtifactError, EnvironmentNotAbleError, P4QEdgeError, UsageError
from p4q_edge.runtime.hub import PushOptions, download_bundle, push_bundle

from doubles.hub import HubDouble

Run = Callable[..., tuple[int, str, str]]
INFO, FILE = r"^/api/models/", "/resolve/"
LOGIN_PAGE = (200, b"<html>Welcome to this hotel</html>")
NO_ANSWER = r"is no answer of the Hub \(.*Is it a page of the network that asks for a login\?.*check HF_ENDPOINT"


@pytest.fixture
def cups(hub: HubDouble, tiny_bundle: Path) -> HubDouble:
    """A server with a repository of one bundle."""
    hub.repository("ann/cups", {"cups.p4q": tiny_bundle.read_bytes()})
    return hub


@pytest.fixture
def forced(logged_in: HubDouble, tiny_bundle: Path) -> Callable[[], object]:
    """Push over a repository that is there, logged in."""
    logged_in.repository("ann/cups", {"a.txt": b"a"})
    return lambda: push_bundle(tiny_bundle, "hf:ann/cups/cups.p4q", options=PushOptions(force=True))


@pytest.mark.parametrize("pattern", [INFO, FILE])
@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (
            400,
            P4QEdgeError,
            r"answers with error 400 for hf:ann/cups.*will do so again\. Look at the page of hf:ann/cups",
        ),
        (403, UsageError, r"this login may not read hf:ann/cups.*with a token that may\."),
        (404, P4QEdgeError, r"error 404 for hf:ann/cups.*is not there, or no longer\. Check the name and HF_ENDPOINT"),
        (408, P4QEdgeError, r"answers with error 408 for hf:ann/cups.*Try again later"),
        (429, P4QEdgeError, r"takes no more requests from here for now.*Wait some minutes and run this again"),
        (503, P4QEdgeError, r"answers with error 503 for hf:ann/cups.*Try again later"),
    ],
)
def test_a_refusal_says_whether_another_try_helps(
    cups: HubDouble, pattern: str, status: int, kind: type[P4QEdgeError], message: str
) -> None:
    cups.instead[pattern] = (status, b'{"error": "no"}')
    with pytest.raises(P4QEdgeError, match=message) as caught:
        download_bundle("hf:ann/cups")
    assert type(caught.value) is kind


@pytest.mark.parametrize("body", [LOGIN_PAGE[1], b"[]", b"null", b"{}", b'{"id": "a", "siblings": [{}]}'])
def test_a_page_in_place_of_the_hub_is_told(cups: HubDouble, body: bytes) -> None:
    cups.instead[INFO] = (200, body)
    with pytest.raises(P4QEdgeError, match="is not what a repository looks like .*or look at HF_ENDPOINT"):
        download_bundle("hf:ann/cups")


def test_a_file_of_another_size_than_stated_is_not_kept(cups: HubDouble, tmp_path: Path) -> None:
    cups.info = {"siblings": {"size": 17, "lfs": None}}
    with pytest.raises(CorruptArtifactError, match=r"damaged on its way.*The copy was removed"):
        download_bundle("hf:ann/cups")
    assert not any(path.is_file() for path in (tmp_path / "hub").rglob("*.p4q"))


@pytest.mark.parametrize("tag", ["../../../../outside", "{folder}/outside", "..", "a" * 300])
def test_an_answer_names_no_file_outside_of_the_cache(cups: HubDouble, tmp_path: Path, tag: str) -> None:
    """The library writes a file to the path that its tag is, and would replace one that is there."""
    outside = tmp_path / "outside"
    cups.tag = tag.format(folder=tmp_path)
    with pytest.raises(P4QEdgeError, match=r"is no answer of the Hub \(ETag is .*check HF_ENDPOINT"):
        download_bundle("hf:ann/cups")
    assert not outside.exists()
    outside.write_text("mine")
    with pytest.raises(P4QEdgeError, match="ETag is "):
        download_bundle("hf:ann/cups")
    assert outside.read_text() == "mine"
    cups.tag = None
    assert download_bundle("hf:ann/cups").is_file()


@pytest.mark.parametrize("tag", ['"{folder}/outside"', "W..", "W"])
def test_an_answer_from_where_a_file_was_moved_to_names_none_either(cups: HubDouble, tmp_path: Path, tag: str) -> None:
    """The library follows the server to another path, and takes the tag from there."""
    outside, commit = tmp_path / "outside", cups.repositories["ann/cups"].branches["main"]
    cups.instead[FILE] = (307, b"", {"Location": "/moved"})
    cups.instead["^/moved"] = (200, b"mine", {"ETag": tag.format(folder=tmp_path), "X-Repo-Commit": commit})
    with pytest.raises(P4QEdgeError, match=r"is no answer of the Hub \(ETag is .*check HF_ENDPOINT"):
        download_bundle("hf:ann/cups")
    assert not outside.exists()


@pytest.mark.parametrize("refused", range(4))
def test_an_answer_after_refused_connections_names_none_either(
    cups: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """The library makes itself another session then, and asks again."""
    http = pytest.importorskip("httpx2", reason="the HTTP library of huggingface_hub from version 2")
    left, whole = [refused], http.HTTPTransport.handle_request

    def refusing(self: Any, request: Any) -> Any:
        if FILE in request.url.path and left[0]:
            left[0] -= 1
            raise http.ConnectError("refused")
        return whole(self, request)

    monkeypatch.setattr(http.HTTPTransport, "handle_request", refusing)
    cups.tag = str(tmp_path / "outside")
    with pytest.raises(P4QEdgeError, match=r"is no answer of the Hub \(ETag is .*check HF_ENDPOINT"):
        download_bundle("hf:ann/cups")
    assert (left[0], (tmp_path / "outside").exists()) == (0, False)


@pytest.mark.parametrize(("status", "headers"), [(404, {"X-Error-Code": "EntryNotFound"}), (200, {"ETag": '"01"'})])
@pytest.mark.parametrize("commit", ["{folder}/outside", "../../../../outside", ".."])
def test_an_answer_names_no_commit_outside_of_the_cache(
    cups: HubDouble, tmp_path: Path, status: int, headers: dict[str, str], commit: str
) -> None:
    """The library notes by an empty file that one is absent, in a folder of the commit's name."""
    before = sorted(tmp_path.iterdir())
    cups.instead[FILE] = (status, b"", {**headers, "X-Repo-Commit": commit.format(folder=tmp_path)})
    with pytest.raises(P4QEdgeError, match=r"is no answer of the Hub \(X-Repo-Commit is .*check HF_ENDPOINT"):
        download_bundle("hf:ann/cups")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("code", ["GatedRepo", "EntryNotFound"])
def test_the_tag_of_a_refusal_is_not_looked_at(cups: HubDouble, code: str) -> None:
    """Servers make tags of any body, in base64."""
    cups.instead[FILE] = (403, b"", {"ETag": 'W/"f-mY2/VvLx+"', "X-Error-Code": code})
    with pytest.raises(UsageError, match=r"terms|may not read hf:ann/cups"):
        download_bundle("hf:ann/cups")


def test_a_damaged_copy_names_the_file_that_is_to_be_removed(cups: HubDouble, tiny_bundle: Path) -> None:
    commit = cups.repositories["ann/cups"].branches["main"]
    address = f"hf:ann/cups@{commit}/cups.p4q"
    blob = download_bundle(address).resolve()
    blob.write_bytes(blob.read_bytes()[:-9])
    with pytest.raises(CorruptArtifactError, match=rf"The copy lies at {blob}; remove it to fetch it again"):
        download_bundle(address)
    blob.unlink()
    assert download_bundle(address).read_bytes() == tiny_bundle.read_bytes()


def test_a_cache_that_cannot_be_written_is_told(cups: HubDouble, tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("no folder")
    with pytest.raises(P4QEdgeError, match=r"cannot be kept in the cache of huggingface_hub .*or set HF_HOME"):
        download_bundle("hf:ann/cups")


def test_offline_a_file_that_is_gone_is_not_called_no_bundle(cups: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = download_bundle("hf:ann/cups").resolve()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentNotAbleError, match=r"hf:ann/cups/other\.p4q is not in this user's cache"):
        download_bundle("hf:ann/cups/other.p4q")
    blob.unlink()
    with pytest.raises(
        EnvironmentNotAbleError, match=r"hf:ann/cups is not in this user's cache, and HF_HUB_OFFLINE is set"
    ):
        download_bundle("hf:ann/cups")


@pytest.mark.parametrize("pattern", ["/validate-yaml", "/preupload/", "/objects/batch", "/commit/"])
def test_a_push_to_what_is_not_the_hub(logged_in: HubDouble, forced: Callable[[], object], pattern: str) -> None:
    logged_in.instead[pattern] = LOGIN_PAGE
    with pytest.raises(P4QEdgeError, match=NO_ANSWER):
        forced()


@pytest.mark.parametrize(
    ("status", "message"),
    [(403, "this login may not do that with hf:ann/cups"), (500, "answers with error 500 for hf:ann/cups")],
)
def test_an_upload_that_is_refused_says_by_what(
    logged_in: HubDouble, forced: Callable[[], object], status: int, message: str
) -> None:
    """The library wraps what happens to the bytes in an error that says nothing of it."""
    logged_in.instead["^/upload/"] = (status, b"{}")
    with pytest.raises(P4QEdgeError, match=message):
        forced()


def test_an_upload_that_breaks_is_of_the_network(
    logged_in: HubDouble, forced: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "actions": {"upload": {"href": "http://127.0.0.1:9/upload", "header": {}}}}

    monkeypatch.setattr(logged_in._server.RequestHandlerClass, "_upload", lambda _, one: closed(one))
    with pytest.raises(P4QEdgeError, match=r"cannot be reached for hf:ann/cups/cups\.p4q, or the connection broke"):
        forced()


def test_what_the_hub_passes_over_was_not_pushed(logged_in: HubDouble, forced: Callable[[], object]) -> None:
    logged_in.ignored = {"cups.p4q"}
    with pytest.raises(
        P4QEdgeError, match=r"the Hub did not take cups\.p4q: \.gitignore of hf:ann/cups names it\. Remove"
    ):
        forced()


def test_no_bar_of_progress_where_nobody_looks(
    logged_in: HubDouble, forced: Callable[[], object], capfd: pytest.CaptureFixture[str]
) -> None:
    forced()
    assert capfd.readouterr().err == ""
