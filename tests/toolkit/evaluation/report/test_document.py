"""The report as JSON, Markdown and HTML text: complete, stable, and safe with hostile names."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from p4q_edge.evaluation.report import html
from p4q_edge.runtime.errors import CorruptArtifactError, EnvironmentNotAbleError, InputError
from p4q_edge.runtime.evaluation.report import document
from p4q_edge.runtime.evaluation.report import formatting as words
from p4q_edge.runtime.evaluation.report.markdown import render_markdown
from p4q_edge.runtime.statistics.metrics import Estimate


def test_json_reads_back_and_is_stable(report: Any) -> None:
    data = document.encode(report)
    assert document.decode(data, source="x") == report
    assert document.encode(document.decode(data, source="x")) == data
    parsed = msgspec.json.decode(data)
    assert (parsed["schema_version"], parsed["kind"]) == (2, "p4q-edge report")


def test_a_report_of_schema_1_is_read(report: Any) -> None:
    values = msgspec.json.decode(document.encode(report))
    built = values["built"]
    flat = {name: value for name, value in built.pop("precision").items() if name != "linear_mac_share"}
    old = msgspec.json.encode({**values, "schema_version": 1, "built": {**built, **flat}})
    assert document.decode(old, source="r.json") == report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 3}, "of schema 3; expected 'p4q-edge report' of schema 2. Write it again"),
        ({"kind": "shopping list"}, "is 'shopping list' of schema 2; expected"),
        ({"built": 3}, "is not a report that this version reads: .*built"),
    ],
)
def test_another_document_is_refused(report: Any, change: dict[str, Any], message: str) -> None:
    parsed = msgspec.json.decode(document.encode(report))
    with pytest.raises(CorruptArtifactError, match=message):
        document.decode(msgspec.json.encode({**parsed, **change}), source="r.json")


def test_broken_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(InputError, match=r"cannot read the report .*`p4q-edge validate ENGINE` writes one"):
        document.read_report(path)
    path.write_bytes(b"{")
    with pytest.raises(CorruptArtifactError, match="Write it again: p4q-edge validate ENGINE"):
        document.read_report(path)


def test_only_our_own_files_count_as_reports(report: Any, tmp_path: Path) -> None:
    written = {
        "r.json": document.encode(report).decode(),
        "r.html": html.render_html(report),
        "r.md": render_markdown(report),
    }
    for name, text in written.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert document.is_report(tmp_path / name), name
    for name in ("other.json", "other.html", "list.json"):
        (tmp_path / name).write_text("[1]" if name == "list.json" else '{"a": 1}')
        assert not document.is_report(tmp_path / name), name


def test_baseline_rows_carry_mean_spread_and_interval() -> None:
    row = document.baseline("P4Q", [0.8, 0.9], n=1000)
    assert row.mean == pytest.approx(0.85)
    assert row.std == pytest.approx(np.std([0.8, 0.9], ddof=1))
    assert row.low < row.mean < row.high
    assert document.baseline("once", [1.0], n=10).std is None
    with pytest.raises(ValueError, match=r"at least one share in \[0, 1\]"):
        document.baseline("percent by mistake", [83.0], n=10)


def test_every_figure_of_the_chain_stands_in_the_page_and_in_the_text(report: Any) -> None:
    page, text = html.render_html(report), render_markdown(report)
    for stage in report.chain.stages:
        for output in (page, text):
            assert words.percent(stage.top1.value) in output
            assert words.interval(stage.top1) in output
    for hop in report.chain.hops:
        assert words.cosine(hop.cosine.p1.value) in page
    assert "p4q-edge validate build/demo.onnx --max-top1-drop 1.0" in page
    assert "p4q-edge validate build/demo.onnx --max-top1-drop 1.0" in text
    assert "W8A8 executed" in page
    assert "18 linears and the products of 3 attentions" in page
    assert "other processes used 1.00 of 2 cores" in page
    assert "other processes used 1.00 of 2 cores" in text


def test_the_page_holds_everything_itself(report: Any) -> None:
    shown = html.shown_images(report.chain)
    thumbnails = html.make_thumbnails(np.zeros((400, 3, 8, 8), np.uint8), shown)
    page = html.render_html(report, thumbnails=thumbnails)
    assert (
        {int(index) for index in re.findall(r'<img src="data:[^"]+" alt="image (\d+)">', page)} == set(shown) != set()
    )
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    assert "<script" not in page
    assert "@import" not in page
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_page_is_the_same_every_time(report: Any) -> None:
    assert html.render_html(report) == html.render_html(report)


def test_hostile_names_are_text(report: Any) -> None:
    names = ("<script>alert(1)</script>", "$x_{$", 'a"b', "c|d", "日本", "&amp;", "'", "x" * 200)
    chain = replace(report.chain, class_names=names)
    page_report = msgspec.structs.replace(report, chain=chain, title="<b>|title|</b>")
    page = html.render_html(page_report)
    assert "<script" not in page
    assert "<b>|title|" not in page
    assert render_markdown(page_report).startswith("<!-- p4q-edge report -->\n\n# &lt;b&gt;\\|title\\|&lt;/b&gt;")


def test_the_page_shows_mistakes_and_changed_answers_and_few_of_each(report: Any) -> None:
    chain = report.chain
    answers, labels = np.array(chain.predictions["engine"]), np.array(chain.labels)
    shown = html.shown_images(chain)
    wrong = set(np.flatnonzero(answers != labels))
    assert len(wrong) > html.MAX_THUMBNAILS == len(shown[: html.MAX_THUMBNAILS])
    assert set(shown[: html.MAX_THUMBNAILS]) <= wrong
    assert set(shown) - wrong <= set(chain.changed("float", "engine"))
    page = html.render_html(report)
    assert f"{len(wrong)} of 400 images got another answer than their label" in page
    first = shown[0]
    assert f"<b>{chain.class_names[labels[first]]}</b><br>taken for {chain.class_names[answers[first]]}" in page
    counts = np.zeros((len(chain.class_names),) * 2, dtype=int)
    np.add.at(counts, (labels, answers), 1)
    np.fill_diagonal(counts, 0)
    assert counts[labels[first], answers[first]] == counts.max()


def test_the_page_shows_images_that_are_called_unknown(report: Any) -> None:
    chain = report.chain
    right = np.flatnonzero(np.array(chain.predictions["engine"]) == np.array(chain.labels))[:30]
    unknown = tuple(int(index) for index in right)
    page = html.render_html(msgspec.structs.replace(report, unknown=unknown))
    assert "Called unknown by engine" in page
    assert "30 of 400 labelled images stay below the threshold of their best class; the first 24 are shown" in page
    assert page.count("<br>nearest: ") == html.MAX_THUMBNAILS
    assert set(unknown[: html.MAX_THUMBNAILS]) <= set(html.shown_images(chain, unknown))
    assert "Called unknown" not in html.render_html(report)


def test_tables_that_scroll_are_reached_with_the_keyboard(report: Any) -> None:
    page = html.render_html(report)
    assert page.count('<div class="scroll" tabindex="0" role="group" aria-label="') == page.count('class="scroll"') > 4


def test_thumbnails_keep_their_index() -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 200, 100), dtype=np.uint8)
    assert list(html.make_thumbnails(images, (7, 5, 59))) == [7, 5, 59]


def test_the_page_tells_the_prompts(report: Any) -> None:
    assert "<h2>Prompts</h2>" not in html.render_html(report)
    page = html.render_html(msgspec.structs.replace(report, prompts={"cup": "a photo of a <cup>."}))
    assert '<tr><th>cup</th><td class="wrap">a photo of a &lt;cup&gt;.</td></tr>' in page


def test_limits_are_folded_until_one_fails(report: Any) -> None:
    chain = replace(report.chain, gates=(replace(report.chain.gates[0], passed=True),))
    golden = replace(report.golden, gates=())
    page = html.render_html(msgspec.structs.replace(report, chain=chain, golden=golden, debug=None))
    assert '<details>\n<summary class="good">1 of 1 limit holds</summary>' in page
    failing = replace(chain, gates=(*chain.gates, replace(chain.gates[0], passed=False)))
    page = html.render_html(msgspec.structs.replace(report, chain=failing, golden=golden, debug=None))
    assert '<details open>\n<summary class="bad">1 of 2 limits hold</summary>' in page


def test_html_without_the_extra_says_what_to_install(report: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(EnvironmentNotAbleError, match=r"needs jinja2, .*pip install 'p4q-edge\[report\]'"):
        html.render_html(report)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (words.percent(0.83123), "83.12 %"),
        (words.cosine(0.9998449), "0.99984"),
        (words.p_value(0.0004), "p < 0.001"),
        (words.p_value(0.0432), "p = 0.043"),
        (words.megabytes(351_000_000), "351.00 MB"),
        (words.megabytes(1_500), "1.5 kB"),
        (words.milliseconds(3.214), "3.21 ms"),
        (words.milliseconds(321.4), "321 ms"),
        (words.share(Estimate(value=0.5, n=4, low=0.15, high=0.85, method="wilson")), "50.00 % [15.00, 85.00], n = 4"),
        (words.points(Estimate(value=-0.01, n=4, low=-0.02, high=0.0, method="bootstrap")), "-1.00 [-2.00, +0.00]"),
    ],
)
def test_figures_are_written_with_unit_and_interval(written: str, expected: str) -> None:
    assert written == expected
