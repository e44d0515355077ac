"""The bench of accuracy on demand: a run on the demo's model, and its table."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[3] / "tools" / "bench"
NAME = "accuracy_on_demand"


@pytest.fixture
def bench() -> Iterator[ModuleType]:
    before = set(sys.modules)
    sys.path.insert(0, str(BENCH))  # the tools import their neighbours, as they do when run as scripts
    yield importlib.import_module(NAME)
    sys.path.remove(str(BENCH))
    for name in set(sys.modules) - before:
        if (BENCH / f"{name}.py").is_file():
            del sys.modules[name]


def test_limits_are_kept_for_ever_more_work_in_float(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bench.open_subject

    def few(*args: object, **kwargs: object) -> object:
        subject = real(*args, **kwargs)
        tower = replace(subject.tower, train=subject.tower.train[:12], test=subject.tower.test[:12])
        return replace(subject, tower=tower)

    monkeypatch.setattr(bench, "open_subject", few)
    words = ["--data", str(tmp_path), "--models-folder", str(tmp_path), "--model", "demo", "--widths", "W4A4"]
    words += ["--shares", "0.5,0.1"]
    assert bench.main([*words, "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("accuracy-on-demand-demo-*.json")
    document = json.loads(path.read_text())
    rows = document["rows"]
    assert all(row["loss"] <= row["limit"] for row in rows)
    assert [row["layers"] for row in rows] == [rows[0]["layers"]] * 3
    assert rows[0]["in_float"] == []
    assert 0 == rows[0]["back_in_float"] < rows[1]["back_in_float"] < rows[2]["back_in_float"] < 1
    assert rows[0]["int8_mac_share"] > rows[2]["int8_mac_share"]
    assert rows[0]["loss_on_others"] > rows[2]["loss_on_others"]
    table = path.with_suffix(".md").read_text()
    assert table.count("| W4A4 |") == 3
    missing = {"width": "W4A4", "limit": 1e-9, "missing": "not kept with every layer in float"}
    assert "- (not kept with every layer in float)" in bench.markdown(document | {"rows": [missing]})
