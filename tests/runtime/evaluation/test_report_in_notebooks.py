"""A report at the prompt and in a notebook: short, and no name in it is markup."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.evaluation.report.document import Report, read_report


@pytest.fixture
def report(engine: Path, validated: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [])
    assert main(["validate", str(engine), "--data", str(validated), "--corruptions", "-q"]) == 0
    return read_report(engine.with_name("tiny.report.json"))


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tags_of(html: str) -> set[str]:
    """The names of all elements, each of which is closed."""
    parser = _Tags()
    parser.feed(html)
    assert parser.open == []
    return set(parser.tags)


def test_a_report_is_a_line_at_the_prompt(report: Report) -> None:
    assert repr(report) == "<Report tiny.onnx: 3 classes, tiny: passed, top-1 of engine 80.0 %, n = 40>"
    without = msgspec.structs.replace(report, chain=None, passed=False)
    assert repr(without).endswith("FAILED, no labelled images>")


def test_a_notebook_shows_tables_and_no_markup_of_names(report: Report) -> None:
    nasty = "<img src=x onerror=alert(1)>\x1b[2J"
    html = msgspec.structs.replace(report, title=nasty, data=nasty, not_checked=(nasty,))._repr_html_()
    allowed = {"p", "b", "table", "thead", "tbody", "tr", "th", "td"}
    assert tags_of(html) <= allowed
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "\x1b" not in html
    assert "<td>engine</td><td>80.00 %" in html
    assert "noise 1: 8 of 255" in html


def test_a_limit_that_breaks_is_shown(report: Report) -> None:
    assert report.golden is not None
    broken = replace(report.golden, gates=(replace(report.golden.gates[0], passed=False),))
    html = msgspec.structs.replace(report, golden=broken, passed=False)._repr_html_()
    assert html.startswith("<p><b>FAILED</b> tiny.onnx")
    assert html.count("<b>FAILED</b>") == 2
