"""Classifiers and processes that are started afresh."""

from __future__ import annotations

import copy
import multiprocessing
from pathlib import Path

import pytest
from other_process import classify

from p4q_edge.runtime import RuntimeOptions, ZeroShotClassifier
from p4q_edge.runtime.errors import UsageError


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_process_of_its_own_gives_the_same_answer(method: str, tiny_engine: Path, photo: Path) -> None:
    """Beside a classifier that is open in this process."""
    with ZeroShotClassifier(tiny_engine, options=RuntimeOptions(threads=1)) as here:
        context = multiprocessing.get_context(method)
        answers = context.Queue()
        child = context.Process(target=classify, args=(tiny_engine, photo, answers))
        child.start()
        found = answers.get(timeout=60)
        child.join(timeout=60)
        assert (child.exitcode, found) == (0, here.classify(photo))


def test_a_classifier_is_not_sent(tiny_engine: Path) -> None:
    with ZeroShotClassifier(tiny_engine) as classifier:
        child = multiprocessing.get_context("spawn").Process(target=print, args=(classifier,))
        for send in (child.start, lambda: copy.copy(classifier)):
            with pytest.raises(UsageError, match=r"cannot be sent to another process\. Load .*\.onnx there instead"):
                send()
