"""`p4q-edge teach` and `head undo`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime.artifacts import base_head, find_head, heads_folder
from p4q_edge.runtime.storage import sha256_file

Run = Callable[..., tuple[int, str, str]]
COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 230)}


def save(folder: Path, color: str, count: int = 5, *, seed: int = 0) -> Path:
    """Pictures of one colour with noise."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng([seed, *COLORS[color]])
    for index in range(count):
        pixels = np.clip(generator.integers(-25, 25, (16, 16, 3)) + COLORS[color], 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two classes."""
    for color in ("red", "green"):
        save(tmp_path / "photos" / color, color)
    return tmp_path / "photos"


def test_a_class_set_is_taught_used_extended_and_undone(
    tiny_engine: Path, photos: Path, tmp_path: Path, run: Run
) -> None:
    code, out, _ = run("teach", tiny_engine, photos, "--name", "shelf")
    assert code == 0
    assert "2 classes, learned from 10 photographs" in out
    assert "right on photographs that were held out: 100.0%, n = 10" in out
    assert f"use it: p4q-edge classify {tiny_engine} IMAGE --head shelf" in out
    assert "undo it" not in out
    code, out, _ = run("classify", tiny_engine, save(tmp_path / "new", "green", 1, seed=1), "--head", "shelf")
    assert (code, "0.png: green" in out) == (0, True)

    blue = save(tmp_path / "blue", "blue")
    code, out, _ = run("teach", tiny_engine, blue, "--name", "shelf", "--base", "shelf", "--add", "blue")
    assert code == 0
    assert "added blue; the logits of the other classes are unchanged" in out
    assert f"undo it: p4q-edge head undo {tiny_engine} shelf" in out
    _, out, _ = run("head", "list", tiny_engine)
    kept = f"(1 earlier, the last back by: p4q-edge head undo {tiny_engine} shelf)"
    assert out.splitlines()[1] == f"shelf  3 classes: green, red, blue  {kept}"
    assert find_head(tiny_engine, "shelf").class_names == ("green", "red", "blue")

    code, out, _ = run("head", "undo", tiny_engine, "shelf")
    assert (code, out) == (0, "shelf is what it was before: 2 classes: green, red (0 earlier versions left)\n")
    assert find_head(tiny_engine, "shelf").class_names == ("green", "red")
    code, _, err = run("teach", tiny_engine, "--name", "shelf", "--undo")
    assert (code, "has no earlier version" in err) == (2, True)


def test_a_class_is_added_from_class_folders_too(tiny_engine: Path, photos: Path, run: Run) -> None:
    (photos / "green").rename(photos / "circle")
    code, out, _ = run("teach", tiny_engine, photos, "--name", "more", "--add", "red", "--json")
    document = json.loads(out)
    assert (code, document["added"], document["known"]) == (0, ["red"], ["circle"])
    assert document["class_names"] == [*base_head(tiny_engine).class_names, "red"]
    assert document["calibration"] is None


def test_classes_called_as_parts_of_a_data_set_are(tiny_engine: Path, tmp_path: Path, run: Run) -> None:
    """Folders alone in `train` and `test` may be a data set; a name that is given, or a photograph, tells that not."""
    for name, color in (("train", "red"), ("test", "green")):
        save(tmp_path / "photos" / name / "monday", color)
    code, _, err = run("teach", tiny_engine, tmp_path / "photos", "--name", "shelf")
    assert code == 2
    assert err.strip().endswith("If these are classes, put their images into them and not deeper")
    code, out, _ = run("teach", tiny_engine, tmp_path / "photos", "--name", "both", "--add", "train", "--add", "test")
    assert (code, "added test, train;" in out) == (0, True)
    for name in ("train", "test"):
        save(tmp_path / "photos" / name, {"train": "red", "test": "green"}[name], 1, seed=1)
    assert run("teach", tiny_engine, tmp_path / "photos", "--name", "shelf")[0] == 0
    assert find_head(tiny_engine, "shelf").class_names == ("test", "train")


def test_photographs_that_the_engine_was_learned_from_are_told_of(
    tiny_engine: Path, photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out, _ = run("teach", tiny_engine, photos, "--name", "new", "--json")
    assert json.loads(out)["seen_before"] == 0
    seen = frozenset(sha256_file(path) for path in (photos / "red").iterdir())
    monkeypatch.setattr("p4q_edge.runtime.evaluation.learned_digests", lambda bundle: seen)
    _, out, _ = run("teach", tiny_engine, photos, "--name", "shelf")
    assert "the engine itself was learned from 5 of the 10 photographs: these shares and the calibration are" in out
    assert f"p4q-edge head calibrate {tiny_engine} OTHERS --name shelf" in out


def test_a_bundle_of_another_engine_does_not_stop_it(tiny_engine: Path, photos: Path, run: Run) -> None:
    tiny_engine.with_suffix(".p4q").write_bytes(b"no bundle")
    code, out, err = run("teach", tiny_engine, photos, "--name", "shelf", "--json")
    assert (code, json.loads(out)["seen_before"]) == (0, 0)
    assert "warning: whether the engine was learned from these photographs is not known: " in err


def test_photographs_of_a_class_are_not_unknown(tiny_engine: Path, photos: Path, run: Run) -> None:
    code, _, err = run("teach", tiny_engine, photos, "--name", "shelf", "--unknown", photos / "red")
    assert code == 2
    assert f"--unknown {photos / 'red'}: 5 of 5 images are labelled with a class too, the first is " in err


def test_unknown_images_are_used(tiny_engine: Path, photos: Path, tmp_path: Path, run: Run) -> None:
    other = save(tmp_path / "other", "blue", 6)
    _, out, _ = run("teach", tiny_engine, photos, "--name", "shelf", "--unknown", other, "--json")
    document = json.loads(out)
    assert document["calibration"]["unknown_samples"] == 6
    assert find_head(tiny_engine, "shelf").calibration.threshold == document["calibration"]["calibration"]["threshold"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "shelf"], "teach needs a folder of photographs"),
        (["PHOTOS", "--name", "shelf", "--undo"], "--undo puts an earlier version back, and learns nothing"),
        (["none", "--name", "shelf"], "none is not a folder; expected one with a folder of photographs for each class"),
        (["PHOTOS", "--name", "../up"], "cannot be the name of a head"),
        (["PHOTOS", "--name", "built-in"], "cannot be the name of a head"),
        (["PHOTOS", "--name", "shelf", "--base", "nope"], "has no head 'nope'; it has built-in"),
        (["PHOTOS", "--name", "shelf", "--add", "blue"], "has no folder of the class 'blue' to add; it has green, red"),
        (["PHOTOS", "--name", "shelf", "--add", "red"], "names other classes that head built-in lacks: green"),
        (["PHOTOS", "--name", "shelf", "--add", "red", "--unknown", "PHOTOS"], "--add keeps that of the base head"),
    ],
)
def test_what_cannot_be_done_is_said(
    tiny_engine: Path, photos: Path, run: Run, arguments: list[str], message: str
) -> None:
    code, out, err = run("teach", tiny_engine, *[str(photos) if word == "PHOTOS" else word for word in arguments])
    assert (code, out) == (2, "")
    assert message in err
    assert not heads_folder(tiny_engine).exists()


def test_a_failure_leaves_the_head_that_is_there(tiny_engine: Path, photos: Path, run: Run) -> None:
    run("teach", tiny_engine, photos, "--name", "shelf")
    before = find_head(tiny_engine, "shelf").to_bytes()
    (photos / "red" / "9.png").write_bytes(b"no picture")
    code, _, err = run("teach", tiny_engine, photos, "--name", "shelf")
    assert code == 2
    assert "1 photograph cannot be read" in err
    assert "9.png" in err
    assert find_head(tiny_engine, "shelf").to_bytes() == before
