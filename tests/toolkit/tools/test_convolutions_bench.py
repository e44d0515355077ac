"""The bench of INT8 convolutions: its figures, its table, and data that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from bench_modules import bench_modules


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with bench_modules(["convolutions"]) as modules:
        yield modules["convolutions"]


def test_figures_count_what_int8_loses_and_wins(bench: ModuleType) -> None:
    exact = torch.eye(4)
    found = exact[[0, 1, 3, 2]]
    row = bench.figures(found, exact, torch.tensor([0, 0, 2, 2]))
    assert (row["n"], row["agreement"], row["cosine_mean"], row["cosine_min"]) == (4, 0.5, 0.5, 0.0)
    assert (row["top1"], row["lost"], row["won"], row["mcnemar_p"]) == (0.5, 1, 1, 1.0)
    assert row["top1_interval"][0] < 0.5 < row["top1_interval"][1]
    assert "top1" not in bench.figures(found, exact, None)


def test_a_row_of_the_table_has_every_column(bench: ModuleType) -> None:
    exact = torch.eye(4)
    rows = {"caltech": bench.figures(exact, exact, None), "imagenet": bench.figures(exact, exact, torch.arange(4))}
    document = {
        "created": "2026-11-28",
        "command": ["python"],
        "versions": {"torch": "2"},
        "commit": "c",
        "images": {"calibration": 1, "caltech": 4, "imagenet": 4},
        "rows": [{"row": "FP32", "convolutions": 0, "int8_mac_share": 0.0, **rows}],
    }
    head, _, line = bench.markdown(document).splitlines()[-3:]
    assert line.count("|") == head.count("|")
    assert line.startswith("| FP32 | 0 | 0.0 | 100.0 | 1.00000 | 1.00000 | 100.0 [")


def test_missing_photographs_are_told_before_weights_are_fetched(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "load_classifier", lambda _: pytest.fail("fetched"))
    assert bench.main(["--data", str(tmp_path)]) == 2
    assert "classes.tsv does not exist; --data DIR names a folder" in capsys.readouterr().err
