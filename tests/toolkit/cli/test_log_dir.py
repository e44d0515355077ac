"""`--log-dir` of `learn` and `build`: part of the request, refused where it does nothing, files where it does."""

import csv
from pathlib import Path

import msgspec
import pytest

from p4q_edge.recipe.defaults import demo_recipe
from p4q_edge.recipe.toml import to_toml
from p4q_edge.runtime.cli.main import main, parse


def test_the_folder_is_part_of_the_request() -> None:
    assert parse(["learn", "-o", "run", "--log-dir", "log"])[1].recipe.log_dir == Path("log")
    assert parse(["build", "--engine", "x.onnx", "--log-dir", "log"])[1].recipe.log_dir == Path("log")
    assert parse(["calibrate", "-o", "run"])[1].recipe.log_dir is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build", "model.p4q", "--engine", "x.onnx"], "a bundle and an option for recipes were both given"),
        (["learn", "-o", "run", "--ablate", "methods"], "--log-dir has no effect on --ablate"),
    ],
)
def test_where_nothing_is_learned_it_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--log-dir", "log"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("command", [["learn", "-o", "run"], ["build", "--engine", "x.onnx"]])
def test_a_folder_that_cannot_be_written_is_found_before_anything_is_run(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main([*command, "--log-dir", "file"]) == 2
    assert f"cannot write file/learning.csv: {tmp_path / 'file'} is not a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_learning_leaves_its_curve(tmp_path: Path) -> None:
    recipe = demo_recipe()
    section = msgspec.structs.replace(recipe.learn, steps=3)
    data = msgspec.structs.replace(recipe.data, shots=8, test_limit=4)
    (tmp_path / "p4q.toml").write_text(to_toml(msgspec.structs.replace(recipe, learn=section, data=data)))
    words = ["learn", "--recipe", str(tmp_path / "p4q.toml"), "-o", str(tmp_path / "run")]
    assert main([*words, "--log-dir", str(tmp_path / "log")]) == 0
    rows = list(csv.DictReader((tmp_path / "log" / "learning.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all(0.0 <= float(row["held_out_top1"]) <= 1.0 for row in rows)
    assert set(rows[0]) == {"epoch", "loss", "held_out_top1", "rate_context", "rate_adapter", "rate_class_residual"}
    assert len(list((tmp_path / "log").glob("*tfevents*"))) == 1
    assert (tmp_path / "run" / "curve.json").is_file()
