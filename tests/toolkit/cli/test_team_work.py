"""Commands under torchrun, in two processes: what they compute is what one computes, and what happens is said once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from team_processes import Ended, alone, start_pair, torchrun

from p4q_edge.cli import team_work
from p4q_edge.learning import read_tensors
from p4q_edge.recipe import Recipe, demo_recipe, to_toml
from p4q_edge.runtime.cli import main as cli

VARIABLES = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def _recipe(*, shots: int = 30, steps: int = 6, **data: object) -> Recipe:
    """Two shards of features."""
    recipe = demo_recipe()
    return msgspec.structs.replace(
        recipe,
        data=msgspec.structs.replace(recipe.data, shots=shots, test_limit=8, **data),
        quantization=msgspec.structs.replace(recipe.quantization, calibration_images=20),
        learn=msgspec.structs.replace(recipe.learn, steps=steps, views=2, batch_size=63, prompt_pull=0.1),
    )


def _words(recipe: Recipe, folder: Path, run: str = "run") -> list[str]:
    (folder / "p4q.toml").write_text(to_toml(recipe))
    return ["learn", "--recipe", str(folder / "p4q.toml"), "-o", str(folder / run), "--json"]


def _files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


@dataclass(frozen=True)
class Both:
    """One recipe in one process and in two."""

    one: Ended
    two: Ended
    folder: Path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("both")
    one = alone(_words(_recipe(), folder, "one"))
    two, _ = torchrun(_words(_recipe(), folder, "two"))
    assert (one.code, two.code) == (0, 0), one.err + two.err
    return Both(one=one, two=two, folder=folder)


@pytest.mark.slow
def test_features_of_two_processes_are_those_of_one_bit_by_bit(both: Both) -> None:
    one, two = _files(both.folder / "one"), _files(both.folder / "two")
    assert one.keys() == two.keys()
    features = [name for name in one if name.startswith("features/")]
    assert len(features) == 6
    assert len(one[next(name for name in features if name.endswith(".digests"))]) == 2 * 32
    assert [name for name in [*features, "recipe.toml"] if one[name] != two[name]] == []


@pytest.mark.slow
def test_what_two_processes_learn_is_what_one_learns_bit_by_bit(both: Both) -> None:
    one, two = (read_tensors(both.folder / name / "learned.safetensors") for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert one[0].keys() == two[0].keys()
    assert [name for name, value in one[0].items() if not value.equal(two[0][name])] == []


@pytest.mark.slow
def test_two_processes_say_what_one_says(both: Both) -> None:
    one, two = json.loads(both.one.out), json.loads(both.two.out)
    assert two == {**one, "run": str(both.folder / "two")}
    said = [
        [line for line in ended.err.splitlines() if "quantized 17 linears" in line] for ended in (both.one, both.two)
    ]
    assert len(said[0]) == len(said[1]) == 1
    again, _ = torchrun(_words(_recipe(), both.folder, "two")[:-1])
    assert again.code == 0, again.err
    assert "calibrate: unchanged" in again.err
    assert "learn: unchanged" in again.err


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_all_with_one_error_and_the_run_goes_on(killed: int, tmp_path: Path) -> None:
    words = _words(_recipe(steps=600), tmp_path)
    checkpoint = tmp_path / "run" / "learning.safetensors"
    ended, seconds = torchrun(words, killed=killed, when=checkpoint.is_file)
    assert ended.code == 1
    assert seconds < 60  # of waiting for each other there would be no end
    # A machine that is too busy to say so within its grace is content with one word.
    (told,) = ended.errors or [line for line in ended.err.splitlines() if line == "interrupted"]
    assert told == "interrupted" or "run the same command again to go on" in told
    assert not (tmp_path / "run" / "learned.safetensors").exists()
    again, _ = torchrun([*words[:-1], "-v"])
    assert again.code == 0, again.err
    assert "calibrate: unchanged" in again.err
    assert "resuming after epoch" in again.err
    assert (tmp_path / "run" / "learned.safetensors").exists()


def _photos(folder: Path, *, broken: str) -> Path:
    generator = np.random.default_rng(0)
    for label in ("ants", "bees"):
        (folder / label).mkdir(parents=True)
        for number in range(150):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number:03d}.png")
    (folder / broken).write_bytes(b"no image")
    return folder


@pytest.mark.slow
def test_what_another_process_finds_is_told_by_the_first(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos", broken="bees/149.png")
    recipe = _recipe(shots=0, train=str(photos), templates=["a photo of {}."])
    first, second = start_pair(["-m", "p4q_edge", *_words(recipe, tmp_path)])
    assert (first.code, second.code) == (2, 2)
    (error,) = first.errors
    assert "149.png" in error
    assert json.loads(first.out)["error"]["type"] == "InputError"
    assert (second.out, second.err) == ("", "")


@pytest.mark.slow
def test_what_is_not_divided_runs_once() -> None:
    first, second = start_pair(["-m", "p4q_edge", "models", "--none"])
    assert (first.code, second.code) == (2, 0)
    assert first.errors == ["error: unrecognized arguments: --none. Run: p4q-edge models --help"]
    assert (second.out, second.err) == ("", "")


@pytest.mark.parametrize("missing", [*VARIABLES, None])
def test_without_all_of_torchruns_variables_there_is_one_process(
    missing: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    if missing is None:
        monkeypatch.setenv("WORLD_SIZE", "1")
    else:
        monkeypatch.delenv(missing)
    monkeypatch.setattr(team_work, "joined_team", lambda: pytest.fail("waits for others"))
    assert cli.main(["--version"]) == 0
    assert "p4q-edge-runtime" in capsys.readouterr().out


@pytest.mark.parametrize("missing", [("LOCAL_RANK",), ("MASTER_ADDR", "MASTER_PORT"), ("MASTER_PORT",)])
@pytest.mark.parametrize("empty", [False, True])
def test_processes_that_cannot_find_each_other_do_not_run_side_by_side(
    missing: tuple[str, ...], empty: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, "" if empty and name in missing else value)
        if not empty and name in missing:
            monkeypatch.delenv(name)
    monkeypatch.setattr(cli, "parse", lambda _: pytest.fail("runs alone"))
    assert cli.main(["learn"]) == 2
    said = capsys.readouterr().err
    assert f"one of 2 processes, each of which, without {' '.join(missing)}, would write" in said
    assert said.endswith("Start the processes with torchrun, or alone: unset RANK WORLD_SIZE\n")


def test_a_number_of_processes_alone_is_of_something_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert cli.main(["models", "--none"]) == 2
    assert "unrecognized arguments: --none" in capsys.readouterr().err


def test_several_processes_need_the_toolkit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [])
    assert cli.main(["classify"]) == 3
    assert "Start one process without torchrun, or run" in capsys.readouterr().err
