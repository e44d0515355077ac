"""What a process of `tests/runtime/classification/test_processes.py` does, which is started afresh and imports it."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from p4q_edge.runtime import RuntimeOptions, ZeroShotClassifier


def classify(engine: Path, image: Path, answers: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    """Put what an engine answers to an image into a queue."""
    with ZeroShotClassifier(engine, options=RuntimeOptions(threads=1)) as classifier:
        answers.put(classifier.classify(image))
