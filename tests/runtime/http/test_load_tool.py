"""The load bench against a real server, shortly: it counts what is wrong, and nothing is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bench import serve_load


@pytest.mark.slow
def test_a_short_load(tiny_engine: Path, photos: list[bytes], tmp_path: Path, repository: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, photo in enumerate(photos):
        (folder / f"{number}.png").write_bytes(photo)
    command = [sys.executable, str(repository / "tools/bench/serve_load.py"), str(tiny_engine), str(folder)]
    options = ["--clients", "2", "8", "--seconds", "1", "--damaged", "4", "--threads", "1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("|") and "---" not in line]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    header, first, second = rows
    for row, clients in ((first, "2"), (second, "8")):
        found = dict(zip(header, row, strict=True))
        assert (found["clients"], found["errors"], found["wrong"]) == (clients, "0", "0")
        assert int(found["answers"]) > int(found["damaged, 422"]) > 0
    assert "asked to stop, it ended with 0." in done.stdout


def test_what_is_wrong_is_counted() -> None:
    from p4q_edge.runtime.classification.predictions import Prediction

    expected = Prediction(label="a", score=0.6, index=0, known=True, topk=(("a", 0.6), ("b", 0.4)))
    good = {"label": "a", "known": True, "topk": [{"label": "a", "score": 0.6}, {"label": "b", "score": 0.4}]}
    picture, damaged = serve_load.Picture(b"", expected), serve_load.Picture(b"", None)
    for asked, status, answer, wrong in (
        (picture, 200, good, 0),
        (picture, 200, {**good, "label": "b"}, 1),
        (picture, 200, {**good, "known": False}, 1),
        (picture, 200, {**good, "topk": [{"label": "a", "score": 0.61}]}, 1),
        (picture, 422, {"error": {}}, 1),
        (damaged, 422, {"error": {}}, 0),
        (damaged, 200, good, 1),
    ):
        seen = serve_load.Seen()
        serve_load.judge(asked, status, {"predictions": [answer]}, seen)
        assert seen.wrong == wrong, answer
