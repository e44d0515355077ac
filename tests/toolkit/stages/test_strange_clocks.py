"""Stages go by contents: clocks and the times of files decide nothing."""

import itertools
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from p4q_edge.data.few_shot import make_split
from p4q_edge.models.load import LoadedModel
from p4q_edge.recipe.schema import DataSection, LearnSection, ModelSection, QuantizationSection, Recipe
from p4q_edge.runtime.images.image_set import ImageSet
from p4q_edge.stages.export import export_unless_current
from p4q_edge.stages.pipeline import learn_stage, prepare
from p4q_edge.stages.run_files import RunFiles
from p4q_edge.stages.source import Source

YEAR_2100 = 4_102_444_800
TIMES = {"1970": 0, "future": YEAR_2100}


@pytest.fixture
def source_of(toy_clip: LoadedModel, toy_images: Callable[[int], ImageSet]) -> Callable[[int], Source]:
    """A source that learns for so many epochs."""

    def make(epochs: int) -> Source:
        recipe = Recipe(
            seed=3,
            model=ModelSection(name="toy"),
            data=DataSection(train="toy", shots=4),
            quantization=QuantizationSection(observer="minmax"),
            learn=LearnSection(epochs=epochs, views=1),
        )
        split = make_split(toy_images(6), None, shots=4, seed=3, test_limit=0)
        digests = tuple(split.train.digests())
        return Source(
            recipe=recipe, model=toy_clip, split=split, templates=("{}",), class_prompts={}, train_digests=digests
        )

    return make


@pytest.fixture
def run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[[Source], set[str]]:
    """Runs all stages and returns those that were unchanged."""

    def stages(source: Source) -> set[str]:
        caplog.clear()
        files = RunFiles(folder=tmp_path / "out.run")
        with caplog.at_level(logging.INFO, logger="p4q_edge"):
            learned = learn_stage(prepare(source, files), files)
            export_unless_current(learned, tmp_path / "out.p4q", files.folder)
        said = (record.getMessage() for record in caplog.records)
        return {text.partition(":")[0] for text in said if "unchanged" in text}

    return stages


def set_times(folder: Path, when: int) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (when, when))


@pytest.mark.parametrize("when", TIMES.values(), ids=TIMES)
def test_times_of_files_decide_nothing(
    when: int, source_of: Callable[[int], Source], run: Callable[[Source], set[str]], tmp_path: Path
) -> None:
    assert run(source_of(2)) == set()
    set_times(tmp_path, when)
    assert run(source_of(2)) == {"calibrate", "learn", "export"}
    assert run(source_of(3)) == {"calibrate"}


def test_a_clock_that_runs_backwards_skips_nothing(
    source_of: Callable[[int], Source], run: Callable[[Source], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day back at each look, from far in the future."""
    days = itertools.count()
    monkeypatch.setattr(time, "time", lambda: YEAR_2100 - 86_400.0 * next(days))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * time.time()))
    assert run(source_of(2)) == set()
    assert run(source_of(2)) == {"calibrate", "learn", "export"}
    assert run(source_of(3)) == {"calibrate"}


def test_a_bundle_does_not_depend_on_the_clock(
    source_of: Callable[[int], Source],
    run: Callable[[Source], set[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundles = []
    for now in (1.0, float(YEAR_2100)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        (tmp_path / "out.p4q").unlink(missing_ok=True)
        run(source_of(2))
        bundles.append((tmp_path / "out.p4q").read_bytes())
    assert bundles[0] == bundles[1]
