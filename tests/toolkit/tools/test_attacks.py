"""The attacks of tools/attack, each with a small budget: none may find anything."""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _attacks(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the attacks importable, in a cache of their own."""
    monkeypatch.setenv("P4Q_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(repository / "tools" / "attack"))
    yield
    for name in (
        "concurrency",
        "kill",
        "kill_place",
        "kill_server",
        "kill_trials",
        "soak",
        "fuzz",
        "fuzz_data",
        "fuzz_runs",
        "fuzz_tables",
        "fuzz_targets",
        "mutator",
        "tamper",
    ):
        sys.modules.pop(name, None)


@pytest.fixture
def bundle(repository: Path) -> Path:
    return repository / "tests" / "runtime" / "data" / "tiny.p4q"


@pytest.mark.parametrize("share", [25, pytest.param(100, marks=pytest.mark.slow)])
def test_no_reader_raises_what_is_not_documented(tmp_path: Path, share: int) -> None:
    import fuzz

    names = ["card", "head", "csv", "npz", "tar", "toml", "words", "onnx", "captions", "rtx", "run", "manifest"]
    found = fuzz.fuzz(names, inputs=share * len(names), seed=0, out=tmp_path / "out", share=share)
    assert {name: dict(one.problems) for name, one in found.items() if one.problems} == {}
    assert sum(one.inputs for one in found.values()) == 12 * share
    assert all(one.accepted < one.inputs for one in found.values())
    assert sum(one.accepted for one in found.values()) > share // 2


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("parquet", "pyarrow"),
        ("dataset", "pyarrow"),
        ("embeddings", "pyarrow"),
        ("request", "starlette"),
        ("hub", "huggingface_hub"),
    ],
)
def test_no_reader_of_an_extra_raises_what_is_not_documented(tmp_path: Path, name: str, library: str) -> None:
    pytest.importorskip(library)
    import fuzz

    (found,) = fuzz.fuzz([name], inputs=100, seed=0, out=tmp_path / "out", share=100).values()
    assert dict(found.problems) == {}
    assert found.inputs == 100
    assert found.accepted


def test_the_fuzzer_finds_what_is_planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: an undocumented error, one of two lines, too much memory, and a loop."""
    import fuzz
    import fuzz_targets

    from p4q_edge.runtime.errors import InputError

    def use(data: bytes, folder: Path) -> None:
        kind = len(data) % 4
        if kind == 0:
            raise InputError("two\nlines")
        if kind == 1:
            raise MemoryError
        if kind == 2:
            raise ZeroDivisionError
        while True:
            pass

    target = fuzz_targets.Target(seeds=lambda: [b"x"], mutators=(lambda data, _: data,), use=use)
    monkeypatch.setitem(fuzz_targets.TARGETS, "planted", target)
    monkeypatch.setattr(fuzz, "HANG_S", 0.2)
    fuzz._raise_on_alarm()
    fuzzed = fuzz.Slice("planted", 0, tmp_path)
    for size in range(4):
        fuzzed.try_one(b"x" * size)
    fuzzed.save(finished=True)
    fuzzed.close()
    found = json.loads((tmp_path / "found.json").read_text())
    kinds = sorted(problem.split(" at ")[0] for problem in found["problems"])
    assert kinds == ["ZeroDivisionError", "hang: Hang", "message of InputError", "over 1024 MiB"]
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("planted-")]) == 4


def test_what_once_led_to_a_problem_leads_to_none(tmp_path: Path) -> None:
    import fuzz
    import fuzz_targets

    from p4q_edge.runtime.errors import P4QEdgeError

    kept = [(name, path) for name in fuzz_targets.TARGETS for path in fuzz.regressions(name)]
    assert kept
    for name, path in kept:
        if name in ("dataset", "parquet", "embeddings"):
            pytest.importorskip("pyarrow")
        if name == "request":
            pytest.importorskip("httpx2")
        if name == "hub":
            pytest.importorskip("huggingface_hub")
        said = ""
        try:
            fuzz_targets.TARGETS[name].use(path.read_bytes(), tmp_path)
        except P4QEdgeError as error:
            said = str(error)
        assert said.isprintable(), path.name


def test_mutations_repeat_by_their_seed() -> None:
    import fuzz_targets
    import mutator

    data = fuzz_targets.tiny_members()["head.safetensors"]
    for edit in (mutator.edit_bytes, mutator.edit_safetensors):
        first, second = (
            [edit(data, generator) for _ in range(50)] for generator in (random.Random(1), random.Random(1))
        )
        assert first == second
        assert len(set(first)) > 40


def test_nothing_unverified_answers_while_files_are_replaced(bundle: Path) -> None:
    import tamper

    found = tamper.against_flipper(bundle, loads=40)
    assert set(found) <= {"same", "refused"}
    assert sum(found.values()) == 40


def test_no_flipped_bit_answers_otherwise(bundle: Path) -> None:
    import tamper

    found = tamper.flipped_bits(bundle, flips=30)
    assert set(found) <= {"same", "refused"}
    assert found["refused"] > 20


def test_the_flipper_is_noticed_where_nothing_is_verified(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack itself works: without the check of digests the other engine is loaded."""
    import tamper

    from p4q_edge.runtime.engines import kept_copies
    from p4q_edge.runtime.engines.onnxruntime import engine

    monkeypatch.setattr(engine, "verify_digest", lambda *_: None)
    monkeypatch.setattr(kept_copies, "verify_engine", lambda *_: None)
    for reader in (engine, kept_copies):
        monkeypatch.setattr(reader, "sha256_bytes", lambda _: _Anything())
    assert set(tamper.against_flipper(bundle, loads=60)) - {"same", "refused"}


class _Anything(str):
    """Equals every digest."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


def test_threads_get_the_answers_of_one_head_while_files_come_and_go(bundle: Path) -> None:
    import concurrency

    found = concurrency.attack(bundle, seconds=2.0)
    assert set(found) <= concurrency.EXPECTED
    assert found["classified"]


@pytest.mark.slow  # each kill is followed by up to three commands
@pytest.mark.skipif(sys.platform != "linux", reason="counts what is left running")
def test_no_kill_leaves_an_unusable_deployment(bundle: Path) -> None:
    _kill(bundle, toolkit=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts what is left running")
def test_no_kill_leaves_an_unusable_run(bundle: Path) -> None:
    _kill(bundle, toolkit=True)


def _kill(bundle: Path, *, toolkit: bool) -> None:
    import kill

    names = tuple(trial.name for trial in kill.TRIALS if trial.toolkit is toolkit)
    found = dict(kill.attack(bundle, kills=2 * len(names), names=names))
    assert {name: dict(row.outcomes) for name, row in found.items()} == {name: {"ok": 2} for name in names}
    assert all(row.at_boundaries == 1 for row in found.values())
    # It unlinks an earlier version and the head, each with a signature that is not there.
    assert all(row.boundaries == 6 if name == "head remove" else row.boundaries > 10 for name, row in found.items())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts by /proc")
def test_a_short_soak_leaves_nothing_over(bundle: Path) -> None:
    import soak

    found = soak.attack(bundle, opens=60, classifications=2000)
    assert {name: part.problems for name, part in found.items()} == {"open and close": [], "classify": []}
    assert found["open and close"].outcomes == {"opened": 60}
    assert found["classify"].outcomes.keys() >= {"classified", "classified file", "switched", "moved", "opened"}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts by /proc")
def test_a_part_of_the_soak_may_be_left_out(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import soak

    monkeypatch.setattr("sys.argv", ["soak.py", str(bundle), "--opens", "0", "--classifications", "0"])
    assert soak.main() == 0
    assert [*soak.attack(bundle, opens=2, classifications=0)] == ["open and close"]
    monkeypatch.setattr("sys.argv", ["soak.py", str(bundle), "--opens", "-1"])
    with pytest.raises(SystemExit, match="2"):
        soak.main()
    assert "--opens and --classifications: expected 0, which leaves that part out, or more" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts by /proc")
def test_the_soak_notices_what_is_left_over(bundle: Path, tmp_path: Path) -> None:
    import soak

    kept = []

    class Leaking(soak.Deployment):
        def open_and_close(self, generator: random.Random) -> str:
            kept.append((tmp_path / str(len(kept))).open("wb"))
            return "opened" if len(kept) % 2 else "WRONG"

    deployment = Leaking(bundle, tmp_path)
    try:
        problems = soak.open_often(deployment, 20).problems
    finally:
        for stream in kept:
            stream.close()
        deployment.shared.close()
    assert problems == ["10 x WRONG", "20 more open files"]
