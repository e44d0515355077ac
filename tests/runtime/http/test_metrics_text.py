"""Counters in the text format of Prometheus."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.http.metrics import Counter, Gauge, Histogram, Metrics, escaped

LINE = re.compile(r'^[a-z0-9_]+(\{[a-z]+="(?:[^"\\\n]|\\.)*"(,[a-z]+="(?:[^"\\\n]|\\.)*")*\})? -?[0-9.e+-]+$')


def test_a_counter() -> None:
    counter = Counter(name="seen_total", about="What was seen.", labels=("kind",))
    counter.add("a")
    counter.add("a", amount=2)
    counter.add("b")
    assert counter.value("a") == 3
    assert list(counter.lines()) == [
        "# HELP seen_total What was seen.",
        "# TYPE seen_total counter",
        'seen_total{kind="a"} 3',
        'seen_total{kind="b"} 1',
    ]
    assert list(Counter(name="none_total", about="None.").lines())[-1] == "none_total 0"


def test_a_gauge() -> None:
    assert list(Gauge(name="now", about="Now.", read=lambda: 1.5).lines())[-1] == "now 1.5"


@given(st.lists(st.floats(0, 20), max_size=30))
def test_buckets_count_what_is_at_most_their_bound(values: list[float]) -> None:
    histogram = Histogram(name="took", about="Time.", bounds=(0.5, 1.0, 10.0))
    for value in values:
        histogram.observe(value)
    lines = dict(line.rsplit(" ", 1) for line in histogram.lines() if not line.startswith("#"))
    if not values:
        assert lines == {}
        return
    for bound in (0.5, 1.0, 10.0):
        assert int(lines[f'took_bucket{{le="{bound}"}}']) == sum(value <= bound for value in values)
    assert int(lines['took_bucket{le="+Inf"}']) == int(lines["took_count"]) == len(values) == histogram.count()
    assert abs(float(lines["took_sum"]) - sum(values)) < 1e-6


@given(st.text())
def test_a_label_stays_on_its_line(text: str) -> None:
    assert "\n" not in escaped(text)
    unescaped = re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), escaped(text))
    assert unescaped == text


def test_the_server_is_read_by_prometheus(client: Any, photos: list[bytes]) -> None:
    for photo in photos:
        client.post("/classify", content=photo)
    client.get("/nothing")
    client.get("/heads", headers={"Host": "evil.example"})
    answer = client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = answer.text.splitlines()
    assert all(LINE.match(line) for line in lines if not line.startswith("#")), lines
    assert 'p4q_edge_requests_total{route="classify",method="POST",status="200"} 12' in lines
    assert 'p4q_edge_requests_total{route="none",method="GET",status="404"} 1' in lines
    assert 'p4q_edge_refused_total{reason="host"} 1' in lines
    assert "p4q_edge_batch_images_sum 12" in lines
    assert "p4q_edge_waiting_images 0" in lines
    assert 'p4q_edge_info{version="0.1.0",engine="tiny",backend="onnxruntime"} 1' in lines


def test_nobody_can_make_it_grow() -> None:
    metrics = Metrics()
    assert {counter.labels for counter in (metrics.requests, metrics.refused, metrics.images)} == {
        ("route", "method", "status"),
        ("reason",),
        ("outcome",),
    }


def test_paths_and_methods_of_strangers_are_no_labels(client: Any) -> None:
    for number in range(5):
        client.get(f"/stranger-{number}")
        client.request(f"STRANGE{number}", "/heads")
    text = client.get("/metrics").text
    assert "stranger" not in text
    assert "STRANGE" not in text
    assert 'method="other"' in text
