"""Heads stored with an engine, and `p4q-edge head`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.artifacts import head_store
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.artifacts.head import Head
from p4q_edge.runtime.artifacts.head_store import (
    MAX_VERSIONS,
    add_head,
    earlier_versions,
    find_head,
    heads_folder,
    remove_head,
    stored_heads,
    undo_head,
    write_head,
)
from p4q_edge.runtime.classification.classifier import Prediction
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.errors import ArtifactError, CorruptArtifactError, UsageError


@pytest.fixture
def night(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A head with other names for the same classes."""
    head = dataclasses.replace(read_bundle(tiny_bundle).head(), class_names=("moon", "star", "comet"))
    path = tmp_path / "night.safetensors"
    path.write_bytes(head.to_bytes())
    return path


def test_a_stored_head_is_found_by_its_name(tiny_engine: Path, night: Path, photo: Path) -> None:
    assert add_head(tiny_engine, night) == "night"
    with ZeroShotClassifier(tiny_engine) as classifier:
        assert (classifier.heads, classifier.active_head) == (("built-in", "night"), "built-in")
        classifier.use_head("night")
        prediction = classifier.classify(photo)
        assert isinstance(prediction, Prediction)
        assert prediction.label in ("moon", "star", "comet")
    with ZeroShotClassifier(tiny_engine, heads="night") as classifier:
        assert classifier.active_head == "night"
        assert classifier.classify(photo) == prediction


def test_the_head_of_a_bundle_can_be_added(tiny_engine: Path, tiny_bundle: Path) -> None:
    assert add_head(tiny_engine, tiny_bundle, name="day.2") == "day.2"
    assert find_head(tiny_engine, "day.2").class_names == ("circle", "square", "triangle")


def test_a_head_is_replaced_only_with_force(tiny_engine: Path, night: Path) -> None:
    add_head(tiny_engine, night)
    with pytest.raises(UsageError, match=r"night\.safetensors exists already; add --force"):
        add_head(tiny_engine, night)
    add_head(tiny_engine, night, force=True)


@pytest.mark.parametrize("name", ["../night", "a/b", "", ".hidden", "built-in", "x" * 65])
def test_a_name_is_no_path(tiny_engine: Path, night: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a head; expected up to 64 letters"):
        add_head(tiny_engine, night, name=name)
    assert not heads_folder(tiny_engine).exists()


def test_a_head_of_another_model_is_not_added(tiny_engine: Path, tiny_bundle: Path, night: Path) -> None:
    other = dataclasses.replace(read_bundle(tiny_bundle).head(), weights_sha256="f" * 64)
    night.write_bytes(other.to_bytes())
    with pytest.raises(ArtifactError, match="made for another checkpoint"):
        add_head(tiny_engine, night)
    assert stored_heads(tiny_engine) == {}


def test_a_damaged_stored_head_is_named(tiny_engine: Path, night: Path) -> None:
    add_head(tiny_engine, night)
    stored_heads(tiny_engine)["night"].write_bytes(b"damaged")
    with pytest.raises(CorruptArtifactError, match=r"tiny\.onnx\.heads/night\.safetensors is not a safetensors file"):
        ZeroShotClassifier(tiny_engine)


def test_the_number_of_heads_is_bounded(tiny_engine: Path, night: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_head(tiny_engine, night, name="a")
    add_head(tiny_engine, night, name="b")
    monkeypatch.setattr(head_store, "MAX_HEADS", 1)
    with pytest.raises(UsageError, match="holds 2 heads; at most 1 are used"):
        stored_heads(tiny_engine)


def test_commands(
    tiny_engine: Path,
    tiny_bundle: Path,
    night: Path,
    photo: Path,
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],
) -> None:
    assert run("head", "add", tiny_engine, night)[0] == 0
    code, out, _ = run("head", "list", tiny_engine, "--json")
    assert code == 0
    assert [head["name"] for head in json.loads(out)["heads"]] == ["built-in", "night"]
    assert run("head", "list", tiny_engine)[1].splitlines()[1] == "night  3 classes: moon, star, comet"
    written = tmp_path / "out.safetensors"
    assert run("head", "export", tiny_engine, "--name", "night", "-o", written)[0] == 0
    assert written.read_bytes() == night.read_bytes()
    assert run("head", "export", tiny_bundle, "-o", written)[0] == 2
    assert run("head", "export", tiny_bundle, "-o", written, "--force")[0] == 0
    assert written.read_bytes() == read_bundle(tiny_bundle).read("head.safetensors")
    code, out, _ = run("classify", tiny_engine, photo, "--head", "night", "--top-k", "1")
    assert code == 0
    assert any(label in out for label in ("moon", "star", "comet"))


def test_a_head_is_removed_and_no_other(
    tiny_engine: Path, night: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    add_head(tiny_engine, night)
    add_head(tiny_engine, night, name="dusk")
    code, out, _ = run("head", "remove", tiny_engine, "night")
    assert (code, list(stored_heads(tiny_engine))) == (0, ["dusk"])
    assert "removed " in out
    code, _, err = run("head", "remove", tiny_engine, "night")
    assert code == 2
    assert "has no head 'night'; it has built-in, dusk." in err
    code, _, err = run("head", "remove", tiny_engine, "built-in")
    assert code == 2
    assert "the built-in head is part of" in err
    assert "cannot be removed. Others: dusk." in err


@pytest.mark.parametrize(
    "words",
    [
        ["classify", "{engine}", "{photo}", "--head", "dawn"],
        ["head", "calibrate", "{engine}", "{photo}", "--name", "dawn"],
        ["head", "reset", "{engine}", "--name", "dawn"],
        ["head", "export", "{engine}", "--name", "dawn", "-o", "a.safetensors"],
    ],
)
def test_an_unknown_head_lists_the_heads(
    tiny_engine: Path, night: Path, photo: Path, words: list[str], run: Callable[..., tuple[int, str, str]]
) -> None:
    add_head(tiny_engine, night)
    code, _, err = run(*[word.format(engine=tiny_engine, photo=photo) for word in words])
    assert code == 2
    assert "'dawn'" in err
    assert "built-in, night" in err


def test_the_built_in_head_can_be_named(tiny_engine: Path, night: Path, photo: Path) -> None:
    add_head(tiny_engine, night)
    with ZeroShotClassifier(tiny_engine, heads="built-in") as named, ZeroShotClassifier(tiny_engine) as plain:
        assert named.active_head == "built-in"
        assert named.classify(photo) == plain.classify(photo)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{engine}", "-o", "a.safetensors"], "the built-in head is part of"),
        (["{engine}", "--name", "q", "-o", "a.safetensors"], "has no head 'q'; it has built-in"),
        (["{engine}", "-o", "a.bin"], "must end in .safetensors"),
        (["{bundle}", "--name", "q", "-o", "a.safetensors"], "a bundle has one head"),
    ],
)
def test_wrong_exports(
    tiny_engine: Path, tiny_bundle: Path, arguments: list[str], message: str, run: Callable[..., tuple[int, str, str]]
) -> None:
    filled = [argument.format(engine=tiny_engine, bundle=tiny_bundle) for argument in arguments]
    code, _, err = run("head", "export", *filled)
    assert code == 2
    assert message in err


@pytest.mark.parametrize("named", [("night",), ("--name", "night")])
def test_every_action_takes_a_name_in_the_same_way(
    tiny_engine: Path, night: Path, tmp_path: Path, named: tuple[str, ...], run: Callable[..., tuple[int, str, str]]
) -> None:
    add_head(tiny_engine, night)
    head = dataclasses.replace(find_head(tiny_engine, "night"), class_names=("sun", "cloud", "rain"))
    write_head(tiny_engine, "night", head)
    copied = tmp_path / "copied.safetensors"
    done = {
        "reset": "night: temperature ",
        "export": f"{copied}  3 classes",
        "undo": "night is what it was before: 3 classes: moon, star, comet",
        "remove": f"removed {heads_folder(tiny_engine) / 'night.safetensors'}",
    }
    for action, line in done.items():
        options = ["-o", copied] if action == "export" else []
        code, out, err = run("head", action, tiny_engine, *named, *options)
        assert (code, out.startswith(line)) == (0, True), (action, out, err)
    assert list(stored_heads(tiny_engine)) == []


def test_a_path_in_place_of_a_name_removes_no_other_signature(tiny_engine: Path, tmp_path: Path) -> None:
    signature = tmp_path / "other.safetensors.sig"
    signature.write_bytes(b"of another head")
    for name in (tmp_path / "other", "../other"):
        with pytest.raises(UsageError, match="has no head"):
            remove_head(tiny_engine, str(name))
    assert signature.read_bytes() == b"of another head"


@pytest.mark.parametrize("place", [1, 2, 3])
def test_common_flags_are_taken_before_and_after_the_action(
    tiny_engine: Path, place: int, run: Callable[..., tuple[int, str, str]]
) -> None:
    words = ["head", "list", str(tiny_engine)]
    code, out, _ = run(*words[:place], "--json", *words[place:])
    assert code == 0
    assert out.startswith("{")


@pytest.mark.parametrize("action", ["list", "add", "remove", "export", "calibrate", "reset"])
def test_every_action_has_a_help_of_its_own(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["head", action, "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: p4q-edge head {action} " in out
    assert ("--per-class" in out) == (action == "calibrate")


def named(bundle: Path, word: object) -> Head:
    """A head whose first class has this name."""
    head = read_bundle(bundle).head()
    return dataclasses.replace(head, class_names=(str(word), *head.class_names[1:]))


def test_a_replaced_head_can_be_brought_back(tiny_engine: Path, tiny_bundle: Path) -> None:
    for word in ("first", "second", "third"):
        write_head(tiny_engine, "shelf", named(tiny_bundle, word))
    assert list(stored_heads(tiny_engine)) == ["shelf"]
    assert [undo_head(tiny_engine, "shelf").class_names[0] for _ in range(2)] == ["second", "first"]
    assert find_head(tiny_engine, "shelf").class_names[0] == "first"
    with pytest.raises(UsageError, match="head shelf of .* has no earlier version. Remove it: p4q-edge head remove"):
        undo_head(tiny_engine, "shelf")
    with pytest.raises(UsageError, match="has no head 'other'; it has built-in, shelf"):
        undo_head(tiny_engine, "other")


def test_the_history_is_bounded_and_goes_on_after_an_undo(tiny_engine: Path, tiny_bundle: Path) -> None:
    for word in range(MAX_VERSIONS + 5):
        write_head(tiny_engine, "shelf", named(tiny_bundle, word))
    assert len(earlier_versions(tiny_engine, "shelf")) == MAX_VERSIONS
    assert undo_head(tiny_engine, "shelf").class_names[0] == str(MAX_VERSIONS + 3)
    write_head(tiny_engine, "shelf", named(tiny_bundle, "new"))
    assert undo_head(tiny_engine, "shelf").class_names[0] == str(MAX_VERSIONS + 3)
    assert len(earlier_versions(tiny_engine, "shelf")) == MAX_VERSIONS - 1


def test_the_same_head_again_is_no_new_version(tiny_engine: Path, tiny_bundle: Path) -> None:
    for _ in range(2):
        write_head(tiny_engine, "shelf", named(tiny_bundle, "same"))
    assert earlier_versions(tiny_engine, "shelf") == ()


def test_a_removed_head_leaves_no_earlier_version(tiny_engine: Path, tiny_bundle: Path) -> None:
    for word in ("first", "second"):
        write_head(tiny_engine, "shelf", named(tiny_bundle, word))
    remove_head(tiny_engine, "shelf")
    assert earlier_versions(tiny_engine, "shelf") == ()
    write_head(tiny_engine, "shelf", named(tiny_bundle, "third"))
    assert earlier_versions(tiny_engine, "shelf") == ()


def test_an_earlier_version_that_is_damaged_replaces_nothing(tiny_engine: Path, tiny_bundle: Path) -> None:
    for word in ("first", "second"):
        write_head(tiny_engine, "shelf", named(tiny_bundle, word))
    earlier_versions(tiny_engine, "shelf")[0].write_bytes(b"damaged")
    with pytest.raises(CorruptArtifactError):
        undo_head(tiny_engine, "shelf")
    assert find_head(tiny_engine, "shelf").class_names[0] == "second"
