"""What a build from a recipe ends with: zero-shot, learned and engine side by side, on images not learned from."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from p4q_edge.cli.common import choose_recipe
from p4q_edge.data import read_split
from p4q_edge.recipe import Recipe
from p4q_edge.runtime.artifacts import Bundle, Card, RecordedResults, read_bundle, read_card
from p4q_edge.runtime.builders import BuildRequest
from p4q_edge.runtime.engines import load_engine
from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.evaluation.report import columns
from p4q_edge.runtime.images import draw_subset, preprocess
from p4q_edge.runtime.statistics import wilson_interval

BUDGET_S = 20.0
"""The engine is run on as many images as it manages in this time."""
LEAST_IMAGES = 20


class SummaryRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line: share of right answers with its 95 % interval, bytes of weights, milliseconds of one image."""

    name: str
    top1: float
    low: float
    high: float
    size_bytes: int
    latency_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Measured:
    rows: np.ndarray
    """Which of the recorded images the engine was run on."""
    answers: np.ndarray
    latency_ms: float


def build_summary(request: BuildRequest, bundle_path: Path) -> tuple[dict[str, Any], str]:
    """Return the table of a build as JSON values and as text, with the next command.

    Its images are those whose results the bundle has. Without any, accuracy is not measured, and the table says so.
    """
    bundle, card = read_bundle(bundle_path), read_card(request.engine)
    recorded = bundle.reference()
    following = f"next: p4q-edge classify {request.engine} IMAGES   (p4q-edge validate {request.engine}: every step)"
    if recorded is None:
        nothing = (
            "accuracy was not measured: no image is left to test on. Name some with data.test, or compare by "
            "cross-validation: p4q-edge learn --ablate levers"
        )
        return {"n": 0, "rows": []}, f"{nothing}\n{following}"
    measured = _run_engine(request, choose_recipe(request.recipe), card, recorded)
    rows = summary_rows(bundle, card, recorded, measured)
    n = len(measured.rows)
    table = columns(
        ("", "top-1", "95 % interval", "size", "one image"),
        [
            (
                row.name,
                f"{row.top1:.1%}",
                f"{row.low:.1%} to {row.high:.1%}",
                f"{row.size_bytes / 1e6:.1f} MB",
                "-" if row.latency_ms is None else f"{row.latency_ms:.2f} ms",
            )
            for row in rows
        ],
    )
    said = f"n = {n} images that were not learned from. FP32 beside it: p4q-edge bench {request.engine} --against fp32"
    document = {"n": n, "rows": [msgspec.to_builtins(row) for row in rows]}
    return document, "\n".join([*table, said, following])


def summary_rows(bundle: Bundle, card: Card, recorded: RecordedResults, measured: _Measured) -> list[SummaryRow]:
    """The lines of the table, all on the images that the engine was run on."""
    labels = recorded.label[measured.rows]
    index = bundle.manifest.data_index
    if index.float_bytes is None or not index.zero_shot:
        raise CorruptArtifactError(f"{bundle.path} lacks what zero-shot gives. Export it again: add --force.")
    float_bytes = index.float_bytes
    scores = recorded.float_embedding[measured.rows] @ bundle.head().text_embedding.T
    answers = {
        "zero-shot, FP32": (np.asarray(index.zero_shot)[measured.rows], float_bytes, None),
        "learned, FP32": (scores.argmax(axis=1), float_bytes, None),
        f"engine, {card.precision.label}": (measured.answers, card.engine_size_bytes, measured.latency_ms),
    }
    rows = []
    for name, (found, size, latency) in answers.items():
        right, n = int(np.count_nonzero(found == labels)), len(labels)
        low, high = wilson_interval(right, n)
        rows.append(SummaryRow(name=name, top1=right / n, low=low, high=high, size_bytes=size, latency_ms=latency))
    return rows


def _run_engine(request: BuildRequest, recipe: Recipe, card: Card, recorded: RecordedResults) -> _Measured:
    """Run the engine on the recorded images one by one, as a device would, for a while."""
    test = read_split(recipe.data, seed=recipe.seed).test
    tested = test.subset(draw_subset(len(test), recipe.export.reference_images, seed=recipe.seed))
    # In an order that takes all classes alike if the time is up before the end.
    order = np.random.default_rng(recipe.seed).permutation(len(recorded))
    answers, times = [], []
    engine = load_engine(request.engine, card)
    try:
        for row in order:
            pixels = preprocess(tested.open_image(int(row)), card.preprocess)[np.newaxis]
            start = time.perf_counter()
            logits = engine.run(pixels, ("logits",))["logits"]
            times.append(time.perf_counter() - start)
            answers.append(int(logits.argmax()))
            if sum(times) > BUDGET_S and len(times) >= LEAST_IMAGES:
                break
    finally:
        engine.close()
    return _Measured(rows=order[: len(answers)], answers=np.asarray(answers), latency_ms=float(np.median(times)) * 1e3)
