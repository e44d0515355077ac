"""The HTML report in a headless Chromium: quiet, without requests, fitting a desktop and a phone, light and dark."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p4q_edge.evaluation.report.html import render_html

WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def page(report: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_html(report), encoding="utf-8")
    return path


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_page_is_quiet_asks_for_nothing_and_fits(browser: Any, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.querySelectorAll('figure svg').length") == 9


def test_minimal_page_is_quiet_too(browser: Any, minimal_report: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_html(minimal_report), encoding="utf-8")
    browser.open(path, width=390)
    assert browser.complaints() == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize(("changes", "told"), [({}, 1), ({"number_format": "fp8"}, 0), ({"weight_block": 128}, 0)])
def test_products_in_int8_are_counted_where_there_are_to_be_any(
    minimal_report: Any, changes: dict[str, object], told: int
) -> None:
    precision = msgspec.structs.replace(minimal_report.built.precision, **changes)
    found = render_html(
        msgspec.structs.replace(minimal_report, built=replace(minimal_report.built, precision=precision))
    )
    assert found.count("<th>matrix products in INT8</th>") == told
    assert precision.computed in found


def test_dark_pictures_are_drawn_in_light_ink(browser: Any, page: Path) -> None:
    colors = []
    for dark in (False, True):
        browser.open(page, width=1280, dark=dark)
        colors.append(browser.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill"))
    assert colors == ["rgb(26, 29, 33)", "rgb(232, 234, 237)"]


def test_a_noisy_page_with_requests_would_be_noticed(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('broken')</script>", encoding="utf-8")
    browser.open(path, width=1280)
    assert any("broken" in line for line in browser.complaints())
    assert browser.requests() == ["http://127.0.0.1:9/x.png"]
