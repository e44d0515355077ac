"""The one rule for "unchanged": what counts, and that changed files are not taken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from p4q_edge.runtime.artifacts.card import read_card
from p4q_edge.runtime.artifacts.head import Calibration
from p4q_edge.runtime.artifacts.head_store import BUILT_IN
from p4q_edge.runtime.builders import build as builds
from p4q_edge.runtime.builders.build import BuildOptions
from p4q_edge.runtime.builders.current import build_unless_current, require_replaceable
from p4q_edge.runtime.classification.head_calibration import write_calibration
from p4q_edge.runtime.errors import EnvironmentNotAbleError, UsageError
from p4q_edge.runtime.storage import unchanged
from p4q_edge.runtime.storage.unchanged import (
    StageCode,
    contents_digest,
    is_outdated,
    is_unchanged,
    replaced,
    stage_key,
    write_record,
)

STATISTICS = "p4q_edge.runtime.statistics"


def edit(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the source of a package look changed in one line."""
    original = unchanged.package_sources

    def edited(name: str) -> dict[str, bytes]:
        sources = original(name)
        return {path: text + b"\nx = 4\n" for path, text in sources.items()} if name == package else sources

    monkeypatch.setattr(unchanged, "package_sources", edited)


def test_rooms_that_a_room_imports_count_and_others_do_not() -> None:
    used = unchanged.rooms_used(["p4q_edge.runtime.verification"])
    assert {"p4q_edge.runtime.verification", "p4q_edge.runtime.engines", STATISTICS} <= set(used)
    assert "p4q_edge.runtime.cli" not in used
    assert "p4q_edge.runtime.builders" not in used


@pytest.mark.parametrize(
    ("package", "changes"),
    [("p4q_edge.runtime.verification", True), (STATISTICS, True), ("p4q_edge.runtime.cli", False)],
)
def test_a_change_of_code_changes_the_key_of_those_who_use_it(
    package: str, changes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = StageCode(rooms=("p4q_edge.runtime.verification",))
    before = stage_key(code, inputs=[1], recipe=None)
    edit(package, monkeypatch)
    assert (stage_key(code, inputs=[1], recipe=None) != before) == changes


def test_inputs_recipe_and_versions_change_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    code = StageCode(rooms=(STATISTICS,))
    keys = {
        stage_key(code, inputs=inputs, recipe=recipe)
        for inputs, recipe in (({"a": 1, "b": 2}, "x"), ({"a": 1, "b": 3}, "x"), ({"a": 1, "b": 2}, "y"))
    }
    assert stage_key(code, inputs={"b": 2, "a": 1}, recipe="x") in keys
    for name in unchanged.LIBRARIES:
        versions = {**unchanged.library_versions(unchanged.LIBRARIES), name: "99.0"}
        monkeypatch.setattr(unchanged, "library_versions", lambda _, versions=versions: versions)
        keys.add(stage_key(code, inputs={"a": 1, "b": 2}, recipe="x"))
    assert len(keys) == 3 + len(unchanged.LIBRARIES)


def test_nothing_heavy_is_imported_to_decide() -> None:
    program = (
        "import sys; from p4q_edge.runtime.storage import StageCode, stage_key;"
        "stage_key(StageCode(rooms=('p4q_edge.runtime.verification',)), inputs=1, recipe=None);"
        "assert not {'numpy', 'torch', 'open_clip', 'timm', 'p4q_edge.runtime.engines'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_library_that_is_missing_has_no_version() -> None:
    assert unchanged.library_versions(["no-such-distribution"]) == {"no-such-distribution": ""}


def test_code_without_source_is_said_so() -> None:
    with pytest.raises(EnvironmentNotAbleError, match="source of p4q_edge is not installed.*pip install"):
        unchanged.package_sources("p4q_edge")


def test_a_record_holds_until_a_file_or_the_key_changes(tmp_path: Path) -> None:
    one, two, record = tmp_path / "one", tmp_path / "two", tmp_path / "record.json"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    assert not is_unchanged(record, "k", [one, two])
    write_record(record, "k", [one, two])
    assert is_unchanged(record, "k", [one, two])
    assert not is_unchanged(record, "other", [one, two])
    assert not is_unchanged(record, "k", [one])
    two.write_bytes(b"3")
    assert not is_unchanged(record, "k", [one, two])
    two.unlink()
    assert not is_unchanged(record, "k", [one, two])
    two.write_bytes(b"2")
    record.write_bytes(b"{}")
    assert not is_unchanged(record, "k", [one, two])


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"a": np.array([1.0, 3.0], np.float32)}, {"x": "1"}),
        ({"b": np.array([1.0, 2.0], np.float32)}, {"x": "1"}),
        ({"a": np.array([[1.0], [2.0]], np.float32)}, {"x": "1"}),
        ({"a": np.array([1.0, 2.0], np.float32).view(np.int32)}, {"x": "1"}),
        ({"a": np.array([1.0, 2.0], np.float32)}, {"x": "2"}),
    ],
)
def test_contents_differ_by_name_type_shape_value_and_text(
    tensors: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
    assert contents_digest(tensors, metadata) != contents_digest({"a": np.array([1, 2], np.float32)}, {"x": "1"})


def test_an_engine_is_built_again_only_after_a_change(
    tiny_bundle: Path, rebundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, options, built = tmp_path / "out.onnx", BuildOptions(), []
    original = builds.build_engine
    monkeypatch.setattr(
        "p4q_edge.runtime.builders.current.build_engine",
        lambda *args, **keywords: (built.append(args), original(*args, **keywords))[1],
    )
    card = build_unless_current(tiny_bundle, engine, options=options)
    assert build_unless_current(tiny_bundle, engine, options=options) == card
    assert len(built) == 1
    with pytest.raises(UsageError, match="exists already"):
        build_unless_current(tiny_bundle, engine, options=BuildOptions(cpu_profile="fast"))
    other = build_unless_current(rebundle(created_by="another"), engine, options=options)
    assert other.bundle_sha256 != card.bundle_sha256
    assert read_card(engine) == other
    build_unless_current(tiny_bundle, engine, options=options, force=True)
    assert len(built) == 3
    engine.write_bytes(engine.read_bytes() + b"\0")
    with pytest.raises(UsageError, match="exists already"):
        build_unless_current(tiny_bundle, engine, options=options)
    build_unless_current(tiny_bundle, engine, options=options, force=True)
    edit("p4q_edge.runtime.builders", monkeypatch)
    build_unless_current(tiny_bundle, engine, options=options)
    assert len(built) == 5


def test_a_card_that_was_calibrated_since_is_not_replaced_unasked(
    tiny_bundle: Path, rebundle: Callable[..., Path], tmp_path: Path
) -> None:
    engine = tmp_path / "out.onnx"
    build_unless_current(tiny_bundle, engine, options=BuildOptions())
    write_calibration(engine, BUILT_IN, Calibration(temperature=2.0))
    with pytest.raises(UsageError, match="exists already"):
        build_unless_current(rebundle(created_by="another"), engine, options=BuildOptions())
    assert read_card(engine).calibration.temperature == 2.0


def test_files_are_outdated_only_as_they_were_written_for_the_same_request(tmp_path: Path) -> None:
    path, record = tmp_path / "one", tmp_path / "record.json"
    path.write_bytes(b"1")
    assert not is_outdated(record, [path])
    write_record(record, "k", [path], asked="a")
    assert is_outdated(record, [path], asked="a")
    assert not is_outdated(record, [path], asked="b")
    path.write_bytes(b"2")
    assert not is_outdated(record, [path], asked="a")


@pytest.mark.parametrize("written", [True, False])
def test_what_a_killed_writer_left_is_its_own(tmp_path: Path, written: bool) -> None:
    path, record = tmp_path / "one", tmp_path / "record.json"
    path.write_bytes(b"0")
    write_record(record, "k", [path], asked="a")
    writer = replaced(record, "new", [path], asked="a")
    writer.__enter__()  # and never left
    if written:
        path.write_bytes(b"1")
    assert is_outdated(record, [path], asked="a")
    assert not is_outdated(record, [path], asked="b")
    assert not any(is_unchanged(record, key, [path]) for key in ("", "k", "new"))


def test_a_writer_that_fails_leaves_the_record_as_it_was(tmp_path: Path) -> None:
    path, record = tmp_path / "one", tmp_path / "record.json"
    with pytest.raises(UsageError), replaced(record, "k", [path]):
        raise UsageError("no room")
    assert not record.exists()
    with replaced(record, "k", [path]):
        path.write_bytes(b"1")
    assert is_unchanged(record, "k", [path])
    with pytest.raises(UsageError), replaced(record, "other", [path]):
        raise UsageError("no room")
    assert is_unchanged(record, "k", [path])


def test_an_engine_that_would_be_refused_is_refused_before_its_bundle_is_made(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    engine, options = tmp_path / "out.onnx", BuildOptions()
    require_replaceable(engine, backend=None, options=options)
    build_unless_current(tiny_bundle, engine, options=options)
    require_replaceable(engine, backend=None, options=options)
    with pytest.raises(UsageError, match="was built with other options, or was changed since; add --force"):
        require_replaceable(engine, backend=None, options=BuildOptions(cpu_profile="fast"))
    engine.write_bytes(engine.read_bytes() + b" ")
    with pytest.raises(UsageError, match="was changed since; add --force to replace it, or name another --engine"):
        require_replaceable(engine, backend=None, options=options)
