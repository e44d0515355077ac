"""The bench of drawn images, on the demo's model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from bench_modules import bench_modules


@pytest.fixture
def bench() -> Iterator[ModuleType]:
    with bench_modules(["drawn_images"]) as modules:
        yield modules["drawn_images"]


@pytest.mark.slow
def test_a_run_writes_a_row_for_each_set(bench: ModuleType, tmp_path: Path) -> None:
    folders = ["--data", str(tmp_path), "--models-folder", str(tmp_path)]
    assert bench.main([*folders, "--models", "demo", "--output", str(tmp_path)]) == 0
    (table,) = tmp_path.glob("drawn-images-*.md")
    cells = [line.split(" | ") for line in table.read_text().splitlines() if line.startswith("| the demo")]
    assert [row[1] for row in cells] == ["48 photographs", "6 photographs", "64 drawn images"]
    means = [float(row[2]) for row in cells]
    assert means[0] == max(means)
    assert means[0] > 0.999
    assert all(row[-1] == "96 |" for row in cells)
