"""The page as files: complete, in its own files alone, and usable without eyes or mouse. See also `test_browser`."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest

from p4q_edge.runtime.http.settings import PAGE_FILES


class Elements(HTMLParser):
    """Collects all elements with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def texts(client: Any) -> dict[str, str]:
    """The files of the page by path."""
    return {path: client.get(path).text for path in PAGE_FILES}


@pytest.fixture
def scripts(texts: dict[str, str]) -> dict[str, str]:
    """Those that are scripts."""
    return {path: text for path, text in texts.items() if path.endswith(".js")}


@pytest.fixture
def elements(texts: dict[str, str]) -> list[tuple[str, dict[str, str | None]]]:
    """The elements of the page."""
    return Elements(texts["/"]).found


def test_each_file_has_its_kind(client: Any) -> None:
    kinds = {
        "/": "text/html; charset=utf-8",
        "/page.css": "text/css; charset=utf-8",
        "/page.js": "text/javascript; charset=utf-8",
        "/common.js": "text/javascript; charset=utf-8",
        "/icon.svg": "image/svg+xml",
    }
    assert {path: client.get(path).headers["content-type"] for path in kinds} == kinds


def test_every_file_of_the_page_is_served_and_used(scripts: dict[str, str]) -> None:
    folder = files("p4q_edge.runtime.http") / "page"
    assert {entry.name for entry in folder.iterdir()} == set(PAGE_FILES.values())
    imported = {name for text in scripts.values() for name in re.findall(r'from "\./([\w-]+\.js)"', text)}
    assert {f"/{name}" for name in imported} | {"/page.js"} == set(scripts)


def test_what_a_script_imports_is_there(scripts: dict[str, str]) -> None:
    for path, text in scripts.items():
        for names, source in re.findall(r'import \{ ([\w, ]+) \} from "\.(/[\w-]+\.js)"', text):
            exported = re.findall(r"export (?:async )?(?:function|class) (\w+)", scripts[source])
            for line in re.findall(r"export const (.+)", scripts[source]):
                exported += re.findall(r"(\w+) = ", line)
            missing = set(names.split(", ")) - set(exported)
            assert missing == set(), f"{path} imports from {source}"


def test_nothing_is_loaded_from_elsewhere(
    texts: dict[str, str], elements: list[tuple[str, dict[str, str | None]]]
) -> None:
    for path, text in texts.items():
        assert re.findall(r"(?:https?:)?//[a-z][\w.-]+\.\w", text.replace("http://www.w3.org/2000/svg", "")) == [], path
    linked = {attributes.get("src") or attributes.get("href") for _, attributes in elements} - {None}
    assert {link for link in linked if not str(link).startswith("#")} == {"/page.css", "/page.js", "/icon.svg"}


def test_the_policy_of_the_server_permits_all_of_it(elements: list[tuple[str, dict[str, str | None]]]) -> None:
    for tag, attributes in elements:
        assert "style" not in attributes, "styles within elements are not permitted"
        assert not [name for name in attributes if name.startswith("on")], "nor are scripts"
        assert tag != "style"
        if tag == "script":
            assert attributes["src"] == "/page.js"


def test_what_the_scripts_look_for_is_there(
    scripts: dict[str, str], elements: list[tuple[str, dict[str, str | None]]]
) -> None:
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    script = "\n".join(scripts.values())
    looked_for = set(re.findall(r'byId\("([\w-]+)"\)', script))
    assert len(looked_for) > 20
    assert looked_for <= set(ids)
    classes = {name for _, attributes in elements for name in (attributes.get("class") or "").split()}
    asked = set(re.findall(r'entry\.querySelector\("\.([\w-]+)', script))
    assert asked
    assert asked <= classes


def test_every_field_has_a_label(elements: list[tuple[str, dict[str, str | None]]]) -> None:
    labelled = {attributes.get("for") for tag, attributes in elements if tag == "label"}
    for tag, attributes in elements:
        if tag in ("input", "select") and "class-" not in (attributes.get("class") or ""):
            hidden = attributes.get("aria-hidden") == "true" and attributes.get("tabindex") == "-1"
            assert attributes["id"] in labelled or hidden, attributes
    for tag, attributes in elements:
        if tag == "section":
            assert attributes["aria-labelledby"]
    assert dict(elements)["html"]["lang"] == "en"


def _luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours as WCAG 2 defines it."""
    bright, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("text", "ground"),
    [
        ("ink", "ground"),
        ("ink", "card"),
        ("soft", "card"),
        ("soft", "ground"),
        ("on-accent", "accent"),
        ("warn", "warn-soft"),
        ("bad", "bad-soft"),
        ("ink", "accent-soft"),
        ("soft", "track"),
    ],
)
def test_texts_can_be_read(texts: dict[str, str], scheme: int, text: str, ground: str) -> None:
    blocks = re.findall(r":root \{(.*?)\}", texts["/page.css"], flags=re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[scheme]))
    assert contrast(colours[text], colours[ground]) >= 4.5


def test_the_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
