"""What `validate` compares an engine with: the run that it was built from, as it lies there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from p4q_edge.learning import read_tensors, write_tensors
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.evaluation.report.document import read_report
from p4q_edge.runtime.storage import unchanged
from p4q_edge.stages import RunFiles


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage counts as changed, as after an update of a library."""
    monkeypatch.setattr(unchanged, "library_versions", lambda names: dict.fromkeys(names, "another"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as the run was learned with: with others its sums have another order, and other last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("other_versions")
def test_a_run_of_other_versions_is_compared_as_it_is_and_left_alone(engine: Path) -> None:
    folder = engine.with_suffix(".run")
    before = contents(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # built with one: sums of another order, other scales if they were fitted again
    try:
        assert main(["validate", str(engine), "--limit", "40", "-q"]) == 0
    finally:
        torch.set_num_threads(threads)
    assert contents(folder) == before
    report = read_report(engine.with_name("demo.report.json"))
    assert any(gate.name.startswith("linears of the bundle") and gate.value == 0 for gate in report.files)


@pytest.mark.usefixtures("one_thread")
def test_what_was_learned_on_another_encoder_is_made_again(engine: Path) -> None:
    files = RunFiles(folder=engine.with_suffix(".run"))
    stored = read_tensors(files.learned)
    assert stored is not None
    tensors, metadata = stored
    wrong = {name: torch.zeros_like(value) for name, value in tensors.items()}
    write_tensors(files.learned, wrong, key="other", metadata={"calibrated": "other"})
    assert main(["validate", str(engine), "--limit", "40", "-q"]) == 0
    again = read_tensors(files.learned)
    assert again is not None
    assert again[1] == metadata
    assert all(torch.equal(again[0][name], value) for name, value in tensors.items())


def test_a_run_that_this_version_cannot_restore_is_said_and_made_again(
    engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = RunFiles(folder=engine.with_suffix(".run"))
    stored = read_tensors(files.learned)
    assert stored is not None
    tensors, metadata = stored
    renamed = {f"older.{name}": value for name, value in tensors.items()}
    write_tensors(files.learned, renamed, key="older", metadata={"calibrated": metadata["calibrated"]})
    assert main(["validate", str(engine), "--limit", "40", "-q"]) == 0
    assert "demo.run holds a run that this version cannot restore (" in capsys.readouterr().err
