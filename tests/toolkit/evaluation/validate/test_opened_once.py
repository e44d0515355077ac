"""`validate` opens and checks every artifact once; a report holds its request, and `reproduce` passes it on."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from p4q_edge.cli.reproduce import request_of
from p4q_edge.runtime.artifacts import bundle as bundles
from p4q_edge.runtime.artifacts import card as cards
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.evaluation.report import document
from p4q_edge.runtime.evaluation.report.document import read_report
from p4q_edge.runtime.evaluation.request import ValidateRequest


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What was opened and checked, by the member or the kind of file."""
    counts: Counter[str] = Counter()
    digest, decode = bundles._digest, cards.decode_sealed

    def count_member(archive: object, name: str) -> str:
        counts[name] += 1
        return digest(archive, name)

    def count_card(data: bytes, struct: type, **options: object) -> object:
        counts[struct.__name__] += 1
        return decode(data, struct, **options)

    monkeypatch.setattr(bundles, "_digest", count_member)
    monkeypatch.setattr(cards, "decode_sealed", count_card)
    return counts


@pytest.mark.parametrize("flags", [[], ["--debug"]])
def test_validate_checks_the_bundle_and_the_card_once(engine: Path, opened: Counter[str], flags: list[str]) -> None:
    # The graphs are digested where their very bytes are looked through.
    graphs = {bundles.GRAPH_FP16, bundles.GRAPH_FP32}
    members = set(bundles.read_bundle(engine.with_suffix(".p4q")).manifest.members) - graphs
    opened.clear()
    assert main(["validate", str(engine), "--limit", "20", "-q", *flags]) == 0
    assert opened == Counter({**dict.fromkeys(members, 1), "Card": 1})


def test_a_report_holds_what_was_asked_for(engine: Path) -> None:
    page = engine.with_name("x.md")
    words = ["validate", str(engine), "--limit", "20", "--seed", "4", "--batch", "7", "--report", str(page), "-q"]
    assert main(words) == 0
    report = read_report(engine.with_name("demo.report.json"))
    request = ValidateRequest(engine=engine, limit=20, seed=4, batch_size=7, reports=(page,))
    assert report.provenance.request == request
    assert report.provenance.command == ("validate", str(engine), "--limit", "20", "--batch", "7", "--seed", "4")
    assert request_of(report, source="r") == replace(request, reports=())
    # A report of an older version has the typed words alone.
    older = msgspec.structs.replace(report, provenance=replace(report.provenance, request=None))
    assert document.decode(document.encode(older), source="r") == older
    assert request_of(older, source="r") == replace(request, reports=())
