"""The bench of levers: gains over the recipe on the same images, with intervals."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCH = Path(__file__).parents[3] / "tools" / "bench"


@pytest.fixture(scope="module")
def levers() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module("levers")
    sys.path.remove(str(BENCH))
    del sys.modules["levers"]


def test_gains_are_paired_over_the_images_of_all_seeds(levers: ModuleType) -> None:
    right = {
        "as the recipe": [torch.tensor([True, False, False, False]), torch.tensor([True, True])],
        "better": [torch.tensor([True, True, True, True]), torch.tensor([True, True])],
        "same": [torch.tensor([False, True, False, False]), torch.tensor([True, True])],
    }
    gains = levers.gains_over(right, "as the recipe")
    assert list(gains) == ["better", "same"]
    assert (gains["better"]["value"], gains["better"]["n"], gains["better"]["excludes_0"]) == (50.0, 6, True)
    assert gains["same"]["value"] == 0.0
    assert gains["same"]["low"] < 0 < gains["same"]["high"]
    assert not gains["same"]["excludes_0"]
    table = levers.gain_table(gains)
    assert "| better | **+50.00** | [" in table
    assert "| same | +0.00 | [" in table


@pytest.mark.slow
def test_a_run_tells_each_row_above_the_recipe(
    levers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "levers.json"
    words = ["levers", "digits", "--seeds", "0", "--only", "^label_smoothing", "--no-prompts", "--output", str(target)]
    monkeypatch.setattr(sys, "argv", ["levers.py", *words])
    levers.main()
    rows = {row["name"]: row for row in json.loads(target.read_text())["rows"]}
    assert rows["as the recipe"]["gain"] is None
    assert rows["label_smoothing = 0.1"]["gain"]["n"] == 160
    assert "| label_smoothing = 0.1 |" in capsys.readouterr().out
