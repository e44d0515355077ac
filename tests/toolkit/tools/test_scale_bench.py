"""The bench of memory and time by the number of images: its images, its bars, and the committed results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from bench_modules import BENCH, bench_modules

from p4q_edge.data.readers import read_images
from p4q_edge.stages import pipeline


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, ModuleType]]:
    with bench_modules(("scale", "scale_table", "scale_processes")) as modules:
        yield modules


def test_made_images_differ_and_their_classes_have_a_colour(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    images = read_images(str(bench["scale"].make_images(tmp_path / "a", classes=3, each=4, side=32, seed=0)))
    assert len(set(images.digests())) == 12
    other = read_images(str(bench["scale"].make_images(tmp_path / "b", classes=3, each=4, side=32, seed=1)))
    assert not set(images.digests()) & set(other.digests())
    assert images.class_names == other.class_names == ("kind 0000", "kind 0001", "kind 0002")


def row(n: int, peak: float, seconds: float) -> dict[str, object]:
    spent = {"features": seconds}
    return {"n": n, "peak_mib": peak, "tree_peak_mib": peak - 100, "seconds": spent, "processor_seconds": spent}


@pytest.mark.parametrize(
    ("peaks", "seconds", "kept"),
    [
        ((1000, 1040, 1049), (10, 40, 160), ["yes", "yes"]),
        ((1000, 1040, 1060), (10, 40, 160), ["no", "yes"]),
        ((1000, 1000, 1000), (10, 40, 200), ["yes", "no"]),
    ],
)
def test_the_bars_can_be_missed(
    bench: dict[str, ModuleType], peaks: tuple[int, ...], seconds: tuple[int, ...], kept: list[str]
) -> None:
    rows = [row(n, peak, spent) for n, peak, spent in zip((1000, 4000, 16000), peaks, seconds, strict=True)]
    found = bench["scale_table"].bars({"features": rows})
    assert [line.split("|")[-2].strip() for line in found] == kept


def test_four_gibibytes_are_a_limit_of_the_whole_tree(bench: dict[str, ModuleType]) -> None:
    big = row(50_000, 1000, 1) | {"tree_peak_mib": 4097.0, "classes": 1000}
    (line,) = bench["scale_table"].bars({"validate": big})
    assert "4097 MiB | no" in line
    (line,) = bench["scale_table"].bars({"overlap": [{"n": 1, "share_of_the_slower_alone": 0.91}]})
    assert "0.91 | yes" in line


def test_the_committed_tables_are_of_the_committed_figures(bench: dict[str, ModuleType]) -> None:
    files = sorted((BENCH / "results").glob("scale-*.json"))
    assert files
    for path in files:
        document = json.loads(path.read_text(encoding="utf-8"))
        assert path.with_suffix(".md").read_text(encoding="utf-8") == bench["scale_table"].markdown(document)


def test_a_table_of_a_gpu_says_which_and_how_much_of_its_memory(bench: dict[str, ModuleType]) -> None:
    row = {"n": 8, "peak_mib": 1.0, "tree_peak_mib": 1.0, "seconds": {"learn": 2.0}, "classes": 2} | {
        "gpu_peak_mib": 512.4
    }
    document = {
        "model": "ViT-B-32", "side": 224, "workers": 8, "device": "NVIDIA H100", "created": "now", "commit": "c0ffee",
        "machine": {}, "note": "", "command": [], "rows": {"learn": row},
    }  # fmt: skip
    assert "Towers on NVIDIA H100, whose memory was used up to 512 MiB." in bench["scale_table"].markdown(document)
    assert "Towers on" not in bench["scale_table"].markdown(document | {"device": "cpu"})


@pytest.mark.slow
def test_features_are_timed_by_their_stage_alone(
    bench: dict[str, ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processes = bench["scale_processes"]
    args = processes.parse(["--work", str(tmp_path)])
    args.workers, args.device, args.calibration, args.steps = 0, "cpu", 4, 1
    train = bench["scale"].make_images(tmp_path / "train", classes=2, each=4, side=32, seed=0)
    text = bench["scale"].recipe_text(args, train, test=None, views=1)
    (tmp_path / "p4q.toml").write_text(text)
    monkeypatch.setattr(pipeline, "cache_features", pipeline.cache_features)  # the bench takes its place
    processes.child({"recipe": str(tmp_path / "p4q.toml"), "run": str(tmp_path / "run")})
    assert json.loads(capsys.readouterr().out)["seconds"] > 0.0
    assert len(list((tmp_path / "run" / "features").glob("*.rows"))) == 2


def test_ways_to_compute_features_are_compared_with_one_thread(bench: dict[str, ModuleType]) -> None:
    rows = [
        {"way": "2 processes", "images": 32, "seconds": [1.0, 2.0], "median": 1.5, "faster": 1.8, "load": [0.1, 0.2]}
        | {"busiest": 1.2, "faster_by_processor": 1.9}
    ]
    document = {"model": "demo", "side": 96, "note": "", "rows": rows, "commit": "c0ffee", "created": "now"}
    lines = bench["scale_processes"].markdown({**document, "machine": {"cpu": "toy"}}).splitlines()
    assert lines[-1] == "| 2 processes | 32 | 1.5 | 1.80 | 1.2 | 1.90 | 1.0, 2.0 | 0.1, 0.2 |"


def test_the_committed_table_of_processes_is_of_its_figures(bench: dict[str, ModuleType]) -> None:
    results = sorted((BENCH / "results").glob("processes-*.json"))
    assert results
    for path in results:
        text = path.with_suffix(".md").read_text()
        assert bench["scale_processes"].markdown(json.loads(path.read_text())) == text
