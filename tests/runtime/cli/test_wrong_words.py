"""Words that a command does not know are told with what they may mean."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest

from p4q_edge.runtime.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("validate e.onnx labelled/", "labelled/ (takes ENGINE alone; did you mean --data labelled/?)"),
        ("validate e.onnx 'my photos/'", "'my photos/' (takes ENGINE alone; did you mean --data 'my photos/'?)"),
        ("serve e.onnx 8000", "8000 (takes ENGINE alone; did you mean --port 8000?)"),
        ("bench e.onnx 1,8", "1,8 (takes ENGINE alone; did you mean --batch 1,8?)"),
        ("bench e.onnx --batchsize 8", "--batchsize 8 (did you mean --batch?)"),
        ("classify e.onnx a.png --top_k=3", "--top_k=3 (did you mean --top-k?)"),
        ("classify e.onnx a.png --name night", "--name night (did you mean --head?)"),
        ("build m.p4q e.onnx --engine e", "e.onnx (takes [BUNDLE] alone; did you mean --engine e.onnx?)"),
        ("doctor m.p4q", "m.p4q (takes options alone; did you mean --bundle m.p4q?)"),
        ("selftest e.onnx m.p4q", "m.p4q (takes ENGINE alone)"),
        ("export-triton e.onnx models --head night", "--head night"),
    ],
)
def test_a_word_too_many_is_told_with_what_it_may_mean(
    capsys: pytest.CaptureFixture[str], arguments: str, line: str
) -> None:
    words = shlex.split(arguments)
    assert main(words) == 2
    expected = f"error: unrecognized arguments: {line}. Run: p4q-edge {words[0]} --help\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: ACTION. Run: p4q-edge head --help"),
        (["swap", "a.onnx"], "invalid choice: 'swap'"),
        (["remove", "a.onnx"], "the following arguments are required: name. Run: p4q-edge head remove --help"),
        (["undo", "a.onnx"], "the following arguments are required: name. Run: p4q-edge head undo --help"),
        (["add", "a.onnx"], "the following arguments are required: source. Run: p4q-edge head add --help"),
        (["list", "a.onnx", "b.safetensors"], "unrecognized arguments: b.safetensors (takes ENGINE alone). Run: "),
        (["list", "a.onnx", "-o", "b.safetensors"], "unrecognized arguments: -o b.safetensors"),
        (["export", "a.onnx"], "the following arguments are required: -o/--output. Run: p4q-edge head export --help"),
        (["list", "a.onnx", "--name", "b"], "unrecognized arguments: --name b"),
        (["add", "a.onnx", "b.safetensors", "--per-class"], "unrecognized arguments: --per-class"),
        (
            ["calibrate", "a.onnx", "--data", "b"],
            "arguments: --data (named without an option: p4q-edge head calibrate ENGINE DATA). Run: p4q-edge head "
            "calibrate --help",
        ),
        (
            ["calibrate", "a.onnx", "b", "night"],
            "arguments: night (takes ENGINE DATA alone; did you mean --name night?). Run: p4q-edge head calibrate ",
        ),
        (["add", "a.onnx", "b.p4q", "night"], "(takes ENGINE SOURCE alone; did you mean --name night?)"),
        (["remove", "a.onnx", "night", "other"], "unrecognized arguments: other (takes ENGINE [NAME] alone). Run: "),
        (["reset", "a.onnx", "--head", "night"], "unrecognized arguments: --head night (did you mean --name?)"),
        (
            ["reset", "a.onnx", "night", "--name", "other"],
            "expected the name of one head, got 'night' and --name 'other'. Leave one out. Run: p4q-edge head reset",
        ),
        (["reset", "a.onnx", "night"], "a.onnx does not exist. Build it from a bundle: p4q-edge build model.p4q"),
        (["remove", "a.onnx", "night"], "a.onnx does not exist. Build it from a bundle: p4q-edge build model.p4q"),
        (["calibrate", "a.onnx", "b", "--appply"], "(did you mean --apply?). Run: p4q-edge head calibrate --help"),
    ],
)
def test_wrong_arguments_of_head(arguments: list[str], message: str, run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run("head", *arguments)
    assert code == 2
    assert message in err
