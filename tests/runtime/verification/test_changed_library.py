"""Another version of ONNX Runtime: what was proved or rewritten with the old one counts for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.engines.onnxruntime import engine as engines
from p4q_edge.runtime.engines.onnxruntime import optimized_path
from p4q_edge.runtime.verification import self_test
from p4q_edge.runtime.verification.self_test import selftest

OLD, NEW = "1.0.0", "1.1.0"


class Library:
    """ONNX Runtime under another version."""

    def __init__(self, library: object) -> None:
        self._library, self.__version__ = library, NEW

    def __getattr__(self, name: str) -> object:
        return getattr(self._library, name)


@pytest.fixture
def renewed(monkeypatch: pytest.MonkeyPatch) -> Library:
    """ONNX Runtime after an update."""
    library = Library(engines.import_onnxruntime())
    monkeypatch.setattr(engines, "import_onnxruntime", lambda: library)
    return library


def test_the_proof_is_made_again_once_and_the_rewritten_copy_is_left_alone(
    tiny_engine: Path, cache_folder: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = []
    check = self_test.check_golden
    monkeypatch.setattr(self_test, "check_golden", lambda *args, **kw: checks.append(1) or check(*args, **kw))
    read: list[str] = []
    for reader in ("read_model", "read_kept_copy"):
        own = getattr(engines, reader)
        monkeypatch.setattr(
            engines, reader, lambda path, *a, own=own, **k: read.append(path.name) or own(path, *a, **k)
        )
    library = engines.import_onnxruntime()
    changed = Library(library)
    expected = {}
    for version, using in ((OLD, library), (NEW, changed), (NEW, changed), (OLD, library)):
        monkeypatch.setattr(engines, "import_onnxruntime", lambda using=using: using)
        with ZeroShotClassifier(tiny_engine) as classifier:
            expected.setdefault(version, classifier.classify(photo))
    assert len(checks) == 2
    assert len(list((cache_folder / "golden").iterdir())) == 2
    copy = optimized_path(tiny_engine).name
    assert read == [copy, tiny_engine.name, tiny_engine.name, copy]
    assert expected[OLD].index == expected[NEW].index


def test_the_selftest_compares_with_the_reference_alone(tiny_engine: Path, renewed: Library) -> None:
    result = selftest(tiny_engine)
    assert renewed.__version__ == NEW
    assert (result.problem(), result.drift) == (None, None)
