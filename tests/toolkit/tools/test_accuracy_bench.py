"""The bench that compares accuracies: a whole run on tiny data, its tables, and what it says of what is missing."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from p4q_edge.quant.linear import quant_linears
from p4q_edge.runtime.errors import InputError

BENCH = Path(__file__).parents[3] / "tools" / "bench"
MODULES = ("accuracy", "accuracy_cache", "accuracy_recipes", "accuracy_rows", "accuracy_table", "accuracy_tools")
COLOURS = {"orange": (240, 140, 30), "sea": (60, 120, 190), "forest": (30, 90, 40)}
RUN = ("--sets", "cifar100", "--shots", "4", "--seeds", "0,1", "--widths", "W8A8", "--epochs", "1")


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, ModuleType]]:
    sys.path.insert(0, str(BENCH))  # the tools import their neighbours, as they do when run as scripts
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(BENCH))
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "cifar100").mkdir()
    generator = np.random.default_rng(0)
    for name, per_class in (("train", 6), ("test", 5)):
        labels = np.repeat(np.arange(3), per_class)
        noise = generator.integers(-60, 60, (len(labels), 32, 32, 3))
        images = (np.array(list(COLOURS.values()))[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8)
        np.savez(folder / "cifar100" / name, images=images, labels=labels, class_names=np.array(list(COLOURS)))
    return folder


def rows_of(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    (result,) = folder.glob("accuracy-cifar100-*.json")
    return {(row["method"], row["width"]): row for row in json.loads(result.read_text())["rows"]}


@pytest.mark.slow
def test_a_run_is_written_and_goes_on_where_it_stopped(
    bench: dict[str, ModuleType], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = bench["accuracy"]
    real = importlib.import_module

    def without_nncf(name: str, *args: Any) -> ModuleType:
        if name == "nncf":
            raise ImportError("no module named nncf")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without_nncf)
    words = [*RUN, "--data", str(data), "--work", str(tmp_path / "work"), "--output", str(tmp_path)]
    words += ["--rows", "zero-shot,PTQ,P4Q,NNCF,as-released (image"]
    assert tool.main(words) == 0
    rows = rows_of(tmp_path)
    assert rows["NNCF", "W8A8"]["missing"] == "not installed: nncf (no module named nncf)"
    zero_shot, ptq, ours = rows["zero-shot", "FP32"], rows["PTQ", "W8A8"], rows["P4Q", "W8A8"]
    assert zero_shot["n"] == ptq["n"] == 15
    assert zero_shot["agreement"]["seeds"] == [1.0, 1.0]
    assert ptq["agrees_with"] == "full-precision zero-shot"
    assert ours["agrees_with"] == "the same learned head on the full-precision encoder"
    assert (ptq["execution"], rows["as-released (image tower)", "W8A8"]["execution"]) == ("executed", "simulated")
    assert rows["P4Q", "FP32"]["execution"] == "FP32, adapter W8A8"
    assert all(len(row["top1"]["seeds"]) == 2 for row in rows.values() if "top1" in row)
    monkeypatch.setattr(tool, "ask", lambda *_: pytest.fail("measured again"))
    assert tool.main(words) == 0
    assert rows_of(tmp_path) == rows
    assert tool.main([*words, "--seeds", "1"]) == 0  # each seed's figures stand by themselves


def test_features_are_kept_under_their_key(bench: dict[str, ModuleType], data: Path, tmp_path: Path) -> None:
    rows = bench["accuracy_rows"]
    choice = rows.Choice(data="cifar100", folder=data, shots=4, features=tmp_path)
    train, test = rows.Scene(choice, 0).encoded("W8A8")
    again = rows.Scene(choice, 0)
    again._encode = lambda *_: pytest.fail("encoded again")
    assert torch.equal(again.encoded("W8A8")[1], test)
    assert torch.equal(again.encoded("W8A8")[0].student, train.student)
    views = rows.Scene(replace(choice, learn={"views": 2}), 0)
    assert len(views.encoded("W8A8")[0].student) == 2


def test_a_row_is_taken_by_its_whole_name_or_by_how_names_begin(bench: dict[str, ModuleType], data: Path) -> None:
    choice = bench["accuracy_rows"].Choice(data="cifar100", folder=data)
    rows = bench["accuracy_rows"].all_rows(bench["accuracy_rows"].recipe_of(choice, "int8").learn)
    chosen = bench["accuracy"].chosen_rows
    assert [row.name for row in chosen(rows, "P4Q,zero")] == ["zero-shot", "P4Q"]
    assert {"P4Q", "P4Q, prompts and adapter only"} <= {row.name for row in chosen(rows, "P4")}
    assert chosen(rows, "") == list(rows)


def test_other_code_starts_again(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    finished = bench["accuracy"].Finished(tmp_path / "figures.json", {"code": "a"})
    finished.keep("PTQ|W8A8|0", {"top1": 0.5})
    again, other = (bench["accuracy"].Finished(tmp_path / "figures.json", {"code": code}) for code in "ab")
    assert again.figures == {"PTQ|W8A8|0": {"top1": 0.5}}
    assert other.figures == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sets", "mnist"], "--sets knows cifar100, digits, caltech101; got 'mnist'"),
        (["--widths", "W2A2"], "--widths knows W8A8, W6A6, W4A8, W4A4; got 'W2A2'"),
        (["--rows", "magic"], "--rows: no row begins with 'magic'; there are zero-shot; "),
        (["--data", "nowhere"], "does not exist"),
    ],
)
def test_options_that_cannot_be(
    bench: dict[str, ModuleType], data: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert bench["accuracy"].main([*RUN, "--data", str(data), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_tools_quantize_the_linears_that_we_quantize(bench: dict[str, ModuleType], data: Path) -> None:
    scene = bench["accuracy_rows"].Scene(bench["accuracy_rows"].Choice(data="cifar100", folder=data, shots=4), 0)
    section = scene.recipe("W8A8").quantization
    plain = bench["accuracy_tools"].plain_linears(scene.source.model, section)
    ours = bench["accuracy_rows"].calibrate_encoder(scene.source.model, scene.classifier.train, section.scheme())
    found = {name for name, module in plain.named_modules() if type(module) is torch.nn.Linear}
    assert found == set(quant_linears(ours.encoder))
    assert len(bench["accuracy_tools"].linear_nodes(scene.classifier.graph().graph)) == len(found)
    exact = scene.encoded("FP32")[1]
    torch.testing.assert_close(scene.test_features(plain), exact, atol=1e-4, rtol=1e-4)


def test_widths_that_a_tool_lacks_have_their_reason(bench: dict[str, ModuleType], data: Path) -> None:
    scene = bench["accuracy_rows"].Scene(bench["accuracy_rows"].Choice(data="cifar100", folder=data, shots=4), 0)
    (row,) = [row for row in bench["accuracy_rows"]._tool_rows() if row.name == "ONNX Runtime (min-max)"]
    assert bench["accuracy"].ask(row, scene, "W6A6") == {"missing": "ONNX Runtime has no 6-bit type"}


def document(**top1: float) -> dict[str, Any]:
    names = {
        "zero_shot": ("zero-shot", "FP32", "full precision"),
        "prompts": ("learned prompts (CoOp)", "FP32", "full precision"),
        "nncf": ("NNCF", "W8A8", "other tools"),
        "p4q": ("P4Q", "W8A8", "P4Q Edge"),
        "w4a8": ("P4Q", "W4A8", "P4Q Edge"),
        "released": ("as-released (image tower)", "W4A8", "published code"),
    }
    rows = []
    for key, value in top1.items():
        method, width, group = names[key]
        figure = {"seeds": [value], "mean": value, "std": None}
        rows.append(
            {
                "method": method,
                "width": width,
                "group": group,
                "execution": "x",
                "n": 10,
                "interval": [0, 1],
                **dict.fromkeys(("top1", "top5", "agreement"), figure),
            }
        )
    return {
        "data": "digits",
        "created": "2026-01-02T03:04:05+00:00",
        "classes": 10,
        "shots": 16,
        "n": 10,
        "seeds": [0],
        "model": {"name": "demo"},
        "rows": rows,
    }


def test_claims_hold_or_are_missed(bench: dict[str, ModuleType]) -> None:
    table = bench["accuracy_table"]
    good = document(zero_shot=0.5, prompts=0.6, nncf=0.5, p4q=0.63, w4a8=0.55, released=0.4)
    assert [(claim, round(lead, 6)) for claim, lead, _ in table.claims(good)] == [
        ("P4Q, W8A8, over full-precision learned prompts", 3.0),
        ("P4Q, W8A8, over the best baseline row", 3.0),
        ("P4Q, W4A8, over full-precision zero-shot", 5.0),
        ("P4Q, W4A8, over the published code", 15.0),
    ]
    assert "**missed**" not in table.markdown(good)
    assert table.markdown(document(prompts=0.6, p4q=0.62)).count("**missed**") == 1


def test_a_row_without_figures_says_why(bench: dict[str, ModuleType]) -> None:
    row = next(row for row in bench["accuracy_rows"]._tool_rows() if row.name == "NNCF")
    entry = bench["accuracy_table"].summarize(row, "W8A8", {"NNCF|W8A8|0": {"missing": "not installed: nncf"}}, [0])
    whole = {**document(zero_shot=0.5), "rows": [entry]}
    assert "| NNCF | W8A8 | executed | - | not installed: nncf | - | - |" in bench["accuracy_table"].markdown(whole)
    assert "NNCF" not in bench["accuracy_table"].readme_table({"digits": whole})
    shown = bench["accuracy_table"].readme_table({"digits": document(zero_shot=0.5)})
    assert "| zero-shot | 50.0 |  |  |  |  |\n" in shown
    assert "[digits](tools/bench/results/accuracy-digits-2026-01-02.md)" in shown


def test_the_table_goes_between_its_marks(bench: dict[str, ModuleType]) -> None:
    table = bench["accuracy_table"]
    text = f"a\n{table.BEGIN}old\n{table.END}b\n"
    assert table.with_table(text, "new\n") == f"a\n{table.BEGIN}new\n{table.END}b\n"
    with pytest.raises(InputError, match=r"README\.md lacks the marks"):
        table.with_table("a\n", "new\n")


def test_every_nth_class_is_copied(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    for name in "abcde":
        (tmp_path / "data" / "caltech101" / name).mkdir(parents=True)
        (tmp_path / "data" / "caltech101" / name / "1.jpg").write_bytes(b"x")
    some = bench["accuracy"].every_nth_class(tmp_path / "data", 2, into=tmp_path / "work")
    assert sorted(path.parent.name for path in some.rglob("*.jpg")) == ["a", "c", "e"]
    assert bench["accuracy"].every_nth_class(tmp_path / "data", 1, into=tmp_path) == tmp_path / "data"


def test_the_headline_has_what_was_measured(bench: dict[str, ModuleType]) -> None:
    whole = {**document(zero_shot=0.463, p4q=0.9), "data": "caltech101", "command": ["python", "bench.py"], "n": 1461}
    lines = bench["accuracy_table"].headline(whole).splitlines()
    assert lines[0] == "| top-1, % | FP32 | W8A8 |"
    assert lines[2:4] == ["| zero-shot | 46.3 |  |", "| **P4Q** |  | 90.0 |"]
    assert "n = 1,461 others," in lines[5]
    assert "others, 1 seed, 2026-01-02; " in lines[5]


def test_without_results_the_table_names_the_bench(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"python tools/bench/accuracy\.py --data DIR writes them"):
        bench["accuracy_table"].newest(tmp_path)
