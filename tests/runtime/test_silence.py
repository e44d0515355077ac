"""The runtime asks nobody, and leaves nothing behind but its own cache; without a place for that it goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

# Prints the variable at the moment when the library is first looked for.
SPY = """
import importlib, os, sys
class Spy:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime" and name not in self.seen:
            self.seen.append(name)
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
    seen = []
sys.meta_path.insert(0, Spy())
"""


def _run(program: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {"PATH": os.environ["PATH"], "P4Q_EDGE_CACHE": "", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=kept, check=False)


CLASSIFY = SPY + "from p4q_edge.runtime.cli.main import main; sys.exit(main(['classify', *sys.argv[1:]]))"


def test_telemetry_is_off_before_the_library_is_looked_for_and_no_file_is_left(
    tiny_engine: Path, photo: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "TMPDIR": str(home)}
    result = _run(CLASSIFY, tiny_engine, photo, **places)
    assert (result.returncode, result.stdout.splitlines()[0]) == (0, "1"), result.stderr
    left = {path.relative_to(home).parts[:2] for path in home.rglob("*") if path.is_file()}
    assert left == {("cache", "p4q-edge")}


def test_telemetry_can_be_asked_for() -> None:
    program = SPY + "from p4q_edge.runtime.engines.onnxruntime import import_onnxruntime as i; i()"
    result = _run(program, ORT_DISABLE_TELEMETRY="0")
    assert result.stdout == "0\n", result.stderr


def test_without_a_home_there_is_no_cache_and_the_answer_is_the_same(tiny_engine: Path, photo: Path) -> None:
    nowhere = "import pathlib\ndef home():\n    raise RuntimeError('no home')\npathlib.Path.home = home\n"
    expected = _run(CLASSIFY, tiny_engine, photo, HOME="/nonexistent-home")
    result = _run(nowhere + CLASSIFY, tiny_engine, photo)
    assert (result.returncode, result.stdout) == (0, expected.stdout), result.stderr
    assert "checked again at the next start" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_cache_that_cannot_be_searched_is_none(
    tiny_engine: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from p4q_edge.runtime import ZeroShotClassifier

    own = os.stat

    def refused(path: object, *args: object, **kwargs: object) -> os.stat_result:
        if "golden" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return own(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", refused)
    monkeypatch.setattr(Path, "stat", lambda self, **kwargs: refused(self, **kwargs))
    with ZeroShotClassifier(tiny_engine) as classifier:
        assert classifier.classify(Image.open(photo)).topk


@pytest.mark.parametrize(
    "kept",
    [b"", b"{}", b'{"key": "other", "result": {}}', b'{"key": "\xff"}'],
    ids=["empty", "bare", "other", "no text"],
)
def test_a_kept_result_of_something_else_proves_nothing(
    tiny_engine: Path, photo: Path, cache_folder: Path, kept: bytes
) -> None:
    from p4q_edge.runtime import ZeroShotClassifier

    with ZeroShotClassifier(tiny_engine):
        pass
    (proof,) = (cache_folder / "golden").iterdir()
    whole = proof.read_bytes()
    proof.write_bytes(kept)
    with ZeroShotClassifier(tiny_engine):
        pass
    assert proof.read_bytes() == whole, "the samples were run, and the result kept again"
