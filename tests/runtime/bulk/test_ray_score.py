"""`examples/07_ray/ray_score.py` on a Ray of this machine: what one process of `p4q-edge classify` answers."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tarfile
import types
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime.cli.main import main

pq = pytest.importorskip("pyarrow.parquet", reason="the extra `parquet` is not installed")
pytestmark = pytest.mark.slow

# More processors than there are: the two actors take two.
DRIVER = """
import runpy, sys
sys.argv = sys.argv[1:]
import ray
ray.init(num_cpus=4, include_dashboard=False, logging_level="error", log_to_driver=False)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def score(repository: Path) -> object:
    """Runs the example with arguments; returns its exit code, stdout and stderr."""
    pytest.importorskip("ray", reason="Ray is not installed")

    def run(*words: object) -> tuple[int, str, str]:
        command = [sys.executable, "-c", DRIVER, str(repository / "examples/07_ray/ray_score.py"), *map(str, words)]
        environment = {**os.environ, "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
        return done.returncode, done.stdout, done.stderr

    return run


def _photos(folder: Path, count: int) -> list[Path]:
    generator = np.random.default_rng(0)
    folder.mkdir()
    paths = [folder / f"{number:03d}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(path)
    return paths


def _answers(tables: Sequence[Path]) -> dict[str, list[object]]:
    rows = [pq.read_table(table).to_pydict() for table in tables]
    return {name: [value for row in rows for value in row[name]] for name in rows[0]}


def _one_machine(engine: Path, paths: Sequence[Path], table: Path) -> dict[str, list[object]]:
    words = ["classify", str(engine), *map(str, paths), "--output", str(table), "--embeddings", "--skip-errors"]
    assert main(words) == 0
    return _answers([table])


def test_a_manifest_gives_the_table_of_one_machine_and_goes_on(
    score: object, tiny_engine: Path, tmp_path: Path
) -> None:
    import pyarrow as pa

    paths = _photos(tmp_path / "photos", 45)
    paths[20].write_bytes(b"no image")
    pq.write_table(pa.table({"path": [str(path) for path in paths]}), tmp_path / "manifest.parquet")
    words = (tiny_engine, tmp_path / "manifest.parquet", tmp_path / "answers", "--part", 16, "--retries", 1)
    code, out, err = score(*words)  # type: ignore[operator]
    assert code == 1, err
    assert "45 images in 3 parts, 1 of them not usable" in out
    parts = sorted((tmp_path / "answers").glob("part-*.parquet"))
    assert [pq.read_metadata(part).num_rows for part in parts] == [16, 16, 13]
    assert _answers(parts) == _one_machine(tiny_engine, paths, tmp_path / "one.parquet")
    parts[1].unlink()
    times = [parts[0].stat().st_mtime_ns, parts[2].stat().st_mtime_ns]
    code, out, err = score(*words)  # type: ignore[operator]
    assert "parts: 3, there already: 2" in err
    assert "images: 16, not usable: 0, parts: 1" in out
    assert [parts[0].stat().st_mtime_ns, parts[2].stat().st_mtime_ns] == times
    assert _answers(parts) == _answers([tmp_path / "one.parquet"])
    code, _, err = score(tiny_engine, tmp_path / "manifest.parquet", tmp_path / "answers", "--part", 8)  # type: ignore[operator]
    assert code == 2
    assert "holds answers of another engine or to other images" in err


def test_shards_that_fail_are_told_of_and_named_again(score: object, tiny_engine: Path, tmp_path: Path) -> None:
    paths = _photos(tmp_path / "photos", 24)
    for number in range(2):
        with tarfile.open(tmp_path / f"shard-{number}.tar", "w") as archive:
            for path in paths[12 * number : 12 * number + 12]:
                archive.add(path, path.name)
    whole = (tmp_path / "shard-1.tar").read_bytes()
    (tmp_path / "shard-1.tar").write_bytes(b"no archive" * 100)
    words = (tiny_engine, tmp_path / "shard-{0..1}.tar", tmp_path / "answers", "--retries", 1)
    code, out, err = score(*words)  # type: ignore[operator]
    assert code == 1
    assert "images: 12, not usable: 0, parts: 1" in out
    assert f"error: {tmp_path / 'shard-1.tar'}: ReadError" in err
    assert "parts that are missing: 1. Run the same command again to go on" in err
    (tmp_path / "shard-1.tar").write_bytes(whole)
    code, out, err = score(*words)  # type: ignore[operator]
    assert code == 0, err
    found = _answers(sorted((tmp_path / "answers").glob("part-*.parquet")))
    expected = _one_machine(tiny_engine, paths, tmp_path / "one.parquet")
    assert found.pop("path") == [f"{tmp_path}/shard-{i // 12}.tar/{path.name}" for i, path in enumerate(paths)]
    expected.pop("path")
    assert found == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no.onnx", "no.parquet", "answers"], "no.parquet does not exist; expected a Parquet file"),
        (["no.onnx", "s-{3..1}.tar", "answers"], "names no image; expected shards such as s-{000..009}.tar"),
        (["no.onnx", "s-{0..1}.tar", "answers"], "that do not exist: 2 of 2"),
        (["no.onnx", "some.parquet", "answers"], "has no card no.onnx.json beside it; expected an engine"),
        (["no.onnx", "some.parquet", "answers", "--part", "0"], "--part must be at least 1, got 0"),
        (["no.onnx", "some.parquet", "answers", "--retries", "-1"], "--retries must be at least 0, got -1"),
    ],
)
def test_wrong_words_are_told_of_before_ray_starts(
    words: list[str],
    message: str,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    pyarrow = pytest.importorskip("pyarrow")
    pq.write_table(pyarrow.table({"path": ["a.png"]}), "some.parquet")
    example = runpy.run_path(str(repository / "examples/07_ray/ray_score.py"))
    try:
        code = example["main"](words)
    except SystemExit as ended:  # of the parser
        code = ended.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "answers" / "part-000000.parquet").exists()
