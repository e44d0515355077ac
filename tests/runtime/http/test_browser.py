"""The page in a headless Chromium with a fake camera: look, teach, see it live, save, without a complaint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from chromium import Chromium, find_chromium, write_video

from p4q_edge.runtime.artifacts.head import load_head

pytestmark = [pytest.mark.chromium, pytest.mark.slow]
SIDE = 64
BLUE, YELLOW = (20, 40, 200), (230, 220, 30)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    """A browser whose camera shows blue for eight seconds, then yellow, with noise, so that no frame comes twice."""
    program = find_chromium()
    if program is None:
        pytest.skip("needs a Chromium on PATH, as of Debian's package chromium")
    random = np.random.default_rng(0)
    noise = random.integers(-12, 13, (160, SIDE, SIDE, 3))
    colours = np.array([BLUE] * 80 + [YELLOW] * 80)[:, np.newaxis, np.newaxis, :]
    video = tmp_path / "camera.y4m"
    write_video(video, np.clip(colours + noise, 0, 255).astype(np.uint8))
    folder = tmp_path / "browser"
    folder.mkdir()
    with Chromium(program, folder, video=video) as opened:
        yield opened


def take(browser: Chromium, number: int, colour: str, photos: int) -> None:
    """Hold the button of a class while the camera shows a colour, until it has photographs enough."""
    entry = f"#classes li:nth-child({number})"
    browser.wait(f"{_is(colour)}")
    browser.mouse("mousePressed", f"{entry} .hold")
    browser.wait(f"document.querySelectorAll({entry!r} + ' .thumbs img').length >= {photos}", seconds=30)
    browser.mouse("mouseReleased", f"{entry} .hold")


def _is(colour: str) -> str:
    return (
        "(() => { const c = document.createElement('canvas'); c.width = c.height = 1; const x = c.getContext('2d');"
        "x.drawImage(document.querySelector('#video'), 0, 0, 1, 1); const d = x.getImageData(0, 0, 1, 1).data;"
        f"return (d[2] > d[0] ? 'blue' : 'yellow') === {colour!r}; }})()"
    )


def test_look_teach_see_it_and_save(browser: Chromium, child: Callable[..., Any], tiny_engine: Path) -> None:
    server = child()
    browser.open(server.url, width=390, height=844)
    browser.wait("!document.querySelector('#head').disabled")
    assert browser.run("document.querySelector('#engine').textContent").startswith("tiny · version")

    browser.run("document.querySelector('#camera').click()")
    browser.wait("document.querySelectorAll('#bars li').length === 3")
    browser.wait("parseFloat(document.querySelector('#fps').textContent) > 0")
    assert browser.run("document.querySelector('#latency').textContent").endswith("ms")

    browser.run("document.querySelector('#learn').click()")
    browser.wait("document.querySelector('#lesson-result').textContent.startsWith('Take photos of two classes')")
    for number, name in ((1, "sea"), (2, "sun")):
        browser.run(
            f"(() => {{ const e = document.querySelectorAll('.class-name')[{number - 1}]; e.value = {name!r};"
            "e.dispatchEvent(new Event('input')); })()"
        )
    take(browser, 1, "blue", 4)
    take(browser, 2, "yellow", 4)
    browser.run("document.querySelector('#learn').click()")
    browser.wait("document.querySelector('#lesson-result').textContent.startsWith('Learned “mine” with 2 classes')")

    # Live, and right: what the camera shows is what the page says.
    for colour, name in (("blue", "sea"), ("yellow", "sun")):
        browser.wait(f"{_is(colour)} && document.querySelector('#bars .label').textContent === {name!r}")
    browser.run("document.querySelector('#save').click()")
    browser.wait("document.querySelector('#lesson-result').textContent.startsWith('Saved as mine.safetensors')")
    stored = load_head(tiny_engine.with_name("tiny.onnx.heads") / "mine.safetensors")
    assert set(stored.class_names) == {"sea", "sun"}

    assert browser.run("document.documentElement.scrollWidth") <= 390, "nothing sticks out at the side"
    assert browser.complaints() == []
    hosts = {urlsplit(url).netloc for url in browser.requested() if url.startswith(("http", "ws"))}
    assert hosts == {urlsplit(server.url).netloc}


def test_with_the_keyboard_alone(browser: Chromium, child: Callable[..., Any]) -> None:
    browser.open(child().url, dark=True)
    browser.wait("!document.querySelector('#head').disabled")
    order = []
    for _ in range(16):
        browser.press("Tab", 9)
        order.append(browser.run("document.activeElement.id || document.activeElement.className"))
    first = ["skip", "head", "camera", "choose", "class-name", "remove quiet", "hold", "from-files"]
    order = ["class-name" if name.startswith("class-") else name for name in order]
    assert order[: len(first)] == first
    assert browser.run("document.activeElement.matches(':focus-visible')")
    browser.run("document.querySelector('#camera').focus()")
    browser.press("Enter", 13)
    browser.wait("document.querySelectorAll('#bars li').length === 3")
    assert browser.run("document.querySelector('#spoken').textContent") != ""
    browser.run("document.querySelector('.hold').focus()")
    browser.press("Enter", 13)
    browser.wait("document.querySelector('.thumbs img') !== null")
    names = browser.run(
        "[...document.querySelectorAll('button')].map((b) => b.getAttribute('aria-label') || b.innerText)"
    )
    assert all(name.strip() for name in names if name is not None)


def test_pictures_are_chosen_and_a_damaged_one_is_told(
    browser: Chromium, child: Callable[..., Any], tmp_path: Path, photos: list[bytes]
) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(photos[0])
    bad.write_bytes(b"no picture")
    browser.open(child().url)
    browser.wait("!document.querySelector('#head').disabled")
    root = browser.send("DOM.getDocument")["root"]["nodeId"]
    field = browser.send("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
    browser.send("DOM.setFileInputFiles", files=[str(good), str(bad)], nodeId=field)
    browser.wait("document.querySelectorAll('#gallery button').length === 2")
    browser.wait("document.querySelectorAll('#bars li').length === 3")
    browser.wait("document.querySelectorAll('#gallery span')[1].textContent === 'cannot be read'")
    assert browser.run("document.querySelectorAll('#gallery span')[0].textContent").endswith("%")
    # What is said of the one is not shown beside the other.
    browser.run("document.querySelectorAll('#gallery button')[1].click()")
    browser.wait("document.querySelector('#best').textContent === 'No answer'")
    assert browser.run("document.querySelectorAll('#bars li').length") == 0
    assert browser.run("document.querySelector('#latency').textContent") == "\N{EN DASH}"
    browser.wait("document.querySelector('#unshown').textContent === 'This browser cannot show bad.png.'")
    assert browser.run("document.querySelector('#picture').hidden")
    named = "document.querySelectorAll('#gallery button')[1].getAttribute('aria-label')"
    assert browser.run(named) == "bad.png: cannot be read"
    browser.run("document.querySelectorAll('#gallery button')[0].click()")
    browser.wait("document.querySelectorAll('#bars li').length === 3 && !document.querySelector('#picture').hidden")
    assert browser.run("document.querySelector('#unshown').hidden && document.querySelector('#problem').hidden")


def test_what_was_learned_is_saved_after_a_visit_too(
    browser: Chromium, child: Callable[..., Any], tiny_engine: Path, tmp_path: Path, photos: list[bytes]
) -> None:
    """And photographs of something else are not left out in silence where classes are added."""
    files = [str(tmp_path / f"{number}.png") for number in range(12)]
    assert all(Path(file).is_file() for file in files), "the fixture wrote them"
    browser.open(child().url)
    browser.wait("!document.querySelector('#head').disabled")

    def choose(number: int, chosen: list[str]) -> None:
        root = browser.send("DOM.getDocument")["root"]["nodeId"]
        place = f"#classes li:nth-child({number})"
        field = browser.send("DOM.querySelector", nodeId=root, selector=f"{place} .class-files")["nodeId"]
        browser.send("DOM.setFileInputFiles", files=chosen, nodeId=field)
        browser.wait(f"document.querySelectorAll('{place} .thumbs img').length === {len(chosen)}")

    name = "(() => { const e = document.querySelector('.class-name'); e.value = 'sea'; })()"
    browser.run(name)
    choose(1, files[:3])
    choose(3, files[3:6])
    browser.run("document.querySelector('#keep').click()")
    browser.run("document.querySelector('#learn').click()")
    browser.wait("document.querySelector('#lesson-result').textContent.startsWith('Photos of something else decide')")
    browser.run("document.querySelector('.strangers .remove').click()")
    assert browser.run("document.querySelectorAll('.strangers .thumbs img').length") == 0
    browser.run("document.querySelector('#learn').click()")
    browser.wait("document.querySelector('#lesson-result').textContent.startsWith('Learned “mine” with 4 classes')")

    browser.send("Page.reload")
    browser.wait("document.readyState === 'complete' && document.querySelector('#head')?.disabled === false")
    assert browser.run("document.querySelector('#save').hidden"), "the built-in one is a part of the engine"
    browser.run("document.querySelector('#head').value = 'mine'")
    browser.run("document.querySelector('#head').dispatchEvent(new Event('change'))")
    browser.run("document.querySelector('#save').click()")
    browser.wait("document.querySelector('#lesson-result').textContent.startsWith('Saved as mine.safetensors')")
    browser.wait("document.querySelector('#save').hidden")
    assert (tiny_engine.with_name("tiny.onnx.heads") / "mine.safetensors").is_file()


def test_the_page_asks_for_the_token(browser: Chromium, child: Callable[..., Any]) -> None:
    token = "a-token-of-thirty-two-characters"
    browser.open(child(P4Q_EDGE_TOKEN=token).url)
    browser.wait("document.querySelector('#token-dialog').open")
    assert browser.run("document.activeElement.id") == "token"
    browser.run(f"document.querySelector('#token').value = {token!r}")
    browser.run("document.querySelector('#token-form button').click()")
    browser.wait("!document.querySelector('#head').disabled")
