"""Images at addresses: fetched where the user says so, within bounds, and from nowhere else."""

from __future__ import annotations

import io
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.bulk import FetchedImage, fetching
from p4q_edge.runtime.classification import RuntimeOptions
from p4q_edge.runtime.errors import InputError

Run = Callable[..., tuple[int, str, str]]
MOST = 1 << 20


def png() -> bytes:
    """A picture."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (20, 30, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


RAW = {
    "/endless": (b"HTTP/1.1 302 Found\r\nLocation: /a.png\r\n\r\n", bytes(1 << 16)),
    "/headers": (b"HTTP/1.1 200 OK\r\nX: ", b"0"),
    "/continues": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "/digits": (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n" + png(), b""),
    "/says.png": (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n", b""),
    "/words": (b"HTTP/1.1 404 " + b"no " * 9000 + b"\r\n\r\n", b""),
}
"""What no honest server sends, by path: once, and again and again."""


class Web(BaseHTTPRequestHandler):
    """Some addresses: pictures, and what else comes."""

    asked: ClassVar[list[str]] = []
    until: ClassVar[threading.Event]
    muted: ClassVar[threading.Event]
    dead: ClassVar[str] = ""

    def do_GET(self) -> None:
        self.asked.append(self.path)
        leads = {"/moved": "/a%20b.png", "/file": "file:///etc/hostname", "/ftp": "ftp://a/b", "/loop": "/loop"}
        if self.path == "/once" and self.asked.count("/once") == 1:
            leads["/once"] = "/gone.png"
        leads |= {"/to/dead": f"{self.dead}/a.png?key=secret", "/to/gone": "/gone.png", "/to/page": "/page.png"}
        if self.path in RAW:
            self._raw(*RAW[self.path])
        elif self.path in leads:
            self.send_response(302)
            self.send_header("Location", leads[self.path])
            self.end_headers()
        elif self.path[1:].isdigit():
            self.send_error(int(self.path[1:]))
        elif self.path == "/gone.png":
            self.send_error(404)
        elif "/mute" in self.path:
            self.muted.set()
            self.until.wait()
        else:
            self._bytes()

    def _raw(self, once: bytes, again: bytes) -> None:
        """Send some bytes, and then others until nobody takes them."""
        with suppress(OSError):
            self.wfile.write(once)
            while again and not self.until.wait(0.01):
                self.wfile.write(again)

    def _bytes(self) -> None:
        data = {"/page.png": b"<html>", "/large.png": b"0" * MOST}.get(self.path, png())
        self.send_response(200)
        self.send_header("Content-Length", str(len(data) + (self.path == "/cut.png")))
        self.end_headers()
        if self.path != "/slow.png":
            self.wfile.write(data)
        while self.path == "/slow.png" and not self.until.wait(0.02):
            with suppress(OSError):
                self.wfile.write(b"0")

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture(autouse=True)
def _no_proxy_and_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of this user is asked, nor whoever answers for names that nobody has."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    found = socket.getaddrinfo

    def known(host: str, *words: Any, **options: Any) -> Any:
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found(host, *words, **options)

    monkeypatch.setattr(socket, "getaddrinfo", known)


@pytest.fixture
def dead() -> Iterator[str]:
    """The address of a machine where nobody listens: the port is taken, so that no other program may."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def impatient(seconds: float = 0.1) -> Iterator[None]:
    """Wait no longer for a machine that says nothing; one that answers has the time of every day."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "WAIT_SECONDS", seconds)
        yield


@pytest.fixture
def web() -> Iterator[str]:
    """The address of a server on this machine."""
    Web.asked, Web.until, Web.muted = [], threading.Event(), threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Web.until.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_image_is_named_as_its_file_is(run: Run, tiny_engine: Path, web: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with ZeroShotClassifier(tiny_engine) as classifier:
        expected = classifier.classify(tmp_path / "a.png")
    words = [tiny_engine, f"{web}/a b.png", tmp_path / "a.png", f"{web}/gone.png", f"{web}/page.png", "--allow-url"]
    code, out, err = run("classify", *words, "--json")
    assert code == 1
    answers = json.loads(out)["predictions"]
    assert [answer["source"] for answer in answers] == list(map(str, words[1:5]))
    assert answers[0] | {"source": ""} == answers[1] | {"source": ""}
    assert answers[0]["label"] == expected.label  # type: ignore[union-attr]
    assert answers[2]["error"]["message"] == f"{web}/gone.png: 404 Not Found. Check the address"
    assert answers[3]["error"]["message"].startswith(f"{web}/page.png: image of 6 bytes is not one of JPEG")
    assert err.count(web) == 2
    code, out, _ = run("classify", tiny_engine, f"{web}/moved", "--allow-url")
    assert (code, out.startswith(f"{web}/moved: ")) == (0, True)
    assert run("classify", tiny_engine, f"{web}/gone.png", "--allow-url")[0] == 2


def test_nothing_is_asked_unless_it_is_allowed(run: Run, tiny_engine: Path, web: str, tmp_path: Path) -> None:
    code, _, err = run("classify", tiny_engine, f"{web}/a.png")
    assert code == 2
    assert err.endswith(f"curl -O {web}/a.png, or let images be fetched: --allow-url\n")
    for words, said in (
        ([f"{web}/a.png", "--sort-into", str(tmp_path / "sorted")], "is no file to put into a folder"),
        ([f"{web}/film.mp4"], "is an address, and nothing is fetched from networks"),
        (["s3://bucket/a.png"], "expected an address http://MACHINE/... or https://MACHINE/..., got s3://bucket/a.png"),
    ):
        code, _, err = run("classify", tiny_engine, *words, "--allow-url")
        assert (code, said in err) == (2, True), err
    assert Web.asked == []


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/file", "'file:///etc/hostname' is not allowed"),
        ("/ftp", "leads to ftp://a, where nothing is fetched from"),
        ("/loop", "infinite loop"),
        ("/large.png", "has 1048576 bytes or more. Use a smaller copy of it"),
        ("/cut.png", r"ended after \d+ of \d+ bytes. Try again"),
        ("/slow.png", "took more than 0 s"),
        ("/headers", "took more than 0 s"),
        ("/continues", "took more than 0 s"),
        ("/says.png", "has 1048576 bytes or more. Use a smaller copy of it"),
        ("/words", "404 no no .{280,300}Check the address"),
        ("/429", "429 Too Many Requests. Try again later"),
        ("/503", "503 Service Unavailable. Try again later"),
        ("/403", "403 Forbidden. Check the address"),
    ],
)
def test_what_does_not_come_is_told(web: str, path: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if said.startswith("took"):
        monkeypatch.setattr(fetching, "WHOLE_SECONDS", 0.2)
    with pytest.raises(InputError, match=said):
        FetchedImage(web + path).read(MOST)


def test_a_second_read_tells_nothing_of_where_the_first_one_led(web: str) -> None:
    image = FetchedImage(f"{web}/once")
    with pytest.raises(InputError, match=rf"^{web}/once, which leads to {web}/gone\.png: 404"):
        image.read(MOST)
    assert image.read(MOST) == png()
    assert image.told == f"{web}/once"


def test_what_comes_with_a_redirect_is_not_read(web: str) -> None:
    """It may be endless, and would fill the memory."""
    assert FetchedImage(f"{web}/endless").read(MOST) == png()
    assert Web.asked == ["/endless", "/a.png"]


def test_a_length_of_thousands_of_digits_is_none(web: str) -> None:
    assert FetchedImage(f"{web}/digits").read(MOST) == png()


def test_bytes_that_are_no_text_and_names_in_other_letters(web: str) -> None:
    assert FetchedImage(f"{web}/\udcff-ü.png").read(MOST) == png()
    assert Web.asked == ["/%FF-%C3%BC.png"]
    assert FetchedImage("http://bücher.example:80/ü.png")._asked == "http://xn--bcher-kva.example:80/%C3%BC.png"


def test_a_machine_that_is_not_there(dead: str) -> None:
    with pytest.raises(InputError, match=rf"^{dead}/a\.png cannot be fetched: .*refused\. Try again later"):
        FetchedImage(f"{dead}/a.png").read(MOST)
    with pytest.raises(InputError, match=r"cannot be fetched: .*\. Check the address and the network"):
        FetchedImage("http://no-such-machine.invalid/a.png").read(MOST)


def test_a_machine_that_does_not_answer_is_waited_for_once(web: str) -> None:
    """Else a hundred images of a machine that is off would take fifty minutes; others are asked all the same."""
    silent: dict[str, OSError | None] = {}
    images = [FetchedImage(f"{web}/{name}", silent) for name in ("says.png", "mute/1", "mute/2", "a.png")]
    others = FetchedImage(f"{web.replace('127.0.0.1', 'localhost')}/a.png", silent)
    with pytest.raises(InputError, match="has 1048576 bytes or more"):  # an answer, if a bad one
        images[0].read(MOST)
    said = r"mute/1 cannot be fetched: (timed out|The read operation timed out)\. Try again"
    with impatient(), pytest.raises(InputError, match=said):
        images[1].read(MOST)
    assert Web.muted.wait(120)
    for image in images[2:]:
        with pytest.raises(
            InputError, match=rf"{web[7:]} did not answer before, and is not asked again\. Try again later"
        ):
            image.read(MOST)
    assert others.read(MOST) == png()
    assert Web.asked == ["/says.png", "/mute/1", "/a.png"]


def test_where_an_address_leads_is_told_with_what_is_wrong_there(
    run: Run, tiny_engine: Path, web: str, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine that does not answer is not the one that was named."""
    silent: fetching.Silent = {}
    monkeypatch.setattr(Web, "dead", dead)
    led = rf"^{web}/to/dead, which leads to {dead}/a\.png"
    for said in ("cannot be fetched: .*refused", f"cannot be fetched: {dead[7:]} did not answer before"):
        with pytest.raises(InputError, match=f"{led} {said}") as raised:
            FetchedImage(f"{web}/to/dead", silent).read(MOST)
        assert "secret" not in str(raised.value)
    with pytest.raises(InputError, match=rf"^{web}/to/gone, which leads to {web}/gone\.png: 404 Not Found\. Check"):
        FetchedImage(f"{web}/to/gone", silent).read(MOST)
    code, out, _ = run("classify", tiny_engine, f"{web}/to/page", "--allow-url", "--json", "--skip-errors")
    (answer,) = json.loads(out)["predictions"]
    assert (code, answer["source"]) == (0, f"{web}/to/page")
    assert answer["error"]["message"].startswith(f"{web}/to/page, which leads to {web}/page.png: image of 6 bytes")


def test_a_name_that_is_unknown_is_told_of_each_of_its_images_with_the_same_advice() -> None:
    silent: dict[str, OSError | None] = {}
    for name in ("a.png", "b.png"):
        with pytest.raises(InputError, match=r"cannot be fetched: .*(?<!again)\. Check the address and the network"):
            FetchedImage(f"http://no-such-machine.invalid/{name}", silent).read(MOST)
    assert [*silent] == ["no-such-machine.invalid"]


def test_a_proxy_is_asked_for_other_machines_after_one_did_not_answer(
    web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", web)
    silent: dict[str, OSError | None] = {}
    for asked, said in (("mute", "timed out"), ("a.png", "one.invalid did not answer before")):
        with impatient(), pytest.raises(InputError, match=said):
            FetchedImage(f"http://one.invalid/{asked}", silent).read(MOST)
    assert FetchedImage("http://two.invalid/a.png", silent).read(MOST) == png()


def test_a_command_shares_what_it_learned_of_machines(run: Run, tiny_engine: Path, dead: str) -> None:
    """Each thread that decodes may ask the machine once, and the image after theirs asks nobody."""
    threads = RuntimeOptions().decode_threads
    addresses = [f"{dead}/{number}.png" for number in range(threads + 1)]
    code, _, err = run("classify", tiny_engine, *addresses, "--allow-url")
    assert code == 2
    assert 1 <= err.count("Connection refused") <= threads
    assert f"{addresses[-1]} cannot be fetched: {dead[7:]} did not answer before, and is not asked again" in err
