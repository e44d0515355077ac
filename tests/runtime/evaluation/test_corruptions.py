"""Images made worse: always the same, stronger by strength, and by their own place alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.evaluation.trials.corruptions import (
    CHANGES,
    STRENGTHS,
    Compared,
    Corrupted,
    CorruptionKind,
    corruption_rows,
    darken,
)
from p4q_edge.runtime.stage import Images, Outputs, Stage

KINDS: tuple[CorruptionKind, ...] = tuple(STRENGTHS)


@pytest.fixture
def images() -> np.ndarray:
    """Six smooth images with an edge, uint8 (6, 3, 48, 40)."""
    rows, columns = np.mgrid[0:48, 0:40]
    base = np.stack([rows * 4 + 30, columns * 5, 200 - rows * 3]).clip(0, 255)
    base[:, 20:, 10:30] = 255 - base[:, 20:, 10:30]
    return np.stack([np.roll(base, shift, axis=2) for shift in range(6)]).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_each_image_is_decided_by_the_seed_and_its_place(kind: CorruptionKind, images: np.ndarray) -> None:
    amount = STRENGTHS[kind][1]
    worse = Corrupted(images, kind, amount, seed=5)
    assert len(worse) == 6
    whole = worse[0:6]
    assert (whole.dtype, whole.shape) == (np.uint8, images.shape)
    assert (whole == Corrupted(images, kind, amount, seed=5)[0:6]).all()
    parts = np.concatenate([worse[start : start + 2] for start in (0, 2, 4)])
    assert (parts == whole).all()
    assert (Corrupted(images, kind, amount, seed=6)[0:6] != whole).any() == (kind == "noise")
    assert images.max() > 200  # what was given is unchanged


@pytest.mark.parametrize("kind", KINDS)
def test_a_stronger_corruption_is_further_from_the_image(kind: CorruptionKind, images: np.ndarray) -> None:
    errors = [
        float(np.abs(Corrupted(images, kind, amount, seed=0)[0:6].astype(int) - images).mean())
        for amount in STRENGTHS[kind]
    ]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_noise_has_the_deviation_that_it_says() -> None:
    grey = np.full((3, 64, 64), 128, np.uint8)
    worse = CHANGES["noise"](grey, 20.0, (0, 0)).astype(float)
    assert worse.std() == pytest.approx(20.0, rel=0.05)
    assert worse.mean() == pytest.approx(128, abs=1)


def test_a_blur_means_the_same_for_every_size() -> None:
    small, large = (np.zeros((3, side, side), np.uint8) for side in (64, 256))
    for image in (small, large):
        image[:, :, image.shape[1] // 2 :] = 255

    def width(image: np.ndarray) -> float:
        row = CHANGES["blur"](image, 3.0, (0, 0))[0, image.shape[1] // 2]
        return float(((row > 25) & (row < 230)).mean())

    assert width(small) == pytest.approx(width(large), rel=0.3)


@given(st.integers(0, 255), st.sampled_from(STRENGTHS["dark"]))
def test_darkness_leaves_a_share_of_the_light(value: int, amount: float) -> None:
    assert darken(np.full((3, 2, 2), value, np.uint8), amount, (0, 0)).max() == round(value * amount)


def _brightness(batch: np.ndarray) -> Outputs:
    return {"logits": batch.mean(axis=(1, 2, 3))[:, None]}


def test_a_row_for_each_kind_and_strength_of_both_stages(images: np.ndarray) -> None:
    labels = np.zeros(6, np.int64)

    def answers(stage: Stage, changed: Images, name: str) -> np.ndarray:
        bright = stage(changed[0:6])["logits"][:, 0]
        return (bright < 60).astype(np.int64)  # class 1 where it is dark

    compared = Compared(stages={"onnx": _brightness, "engine": _brightness}, answers=answers)
    rows = corruption_rows(compared, images, labels, seed=0)
    assert [(row.kind, row.strength) for row in rows] == [
        ("none", 0),
        *((kind, strength) for kind in KINDS for strength in (1, 2, 3)),
    ]
    assert rows[0].engine_top1.value == 1.0
    assert rows[-1].engine_top1.value == 0.0  # dark 3
    assert all(row.reference == "onnx" and row.difference is not None and row.difference.value == 0 for row in rows)
    alone = corruption_rows(Compared(stages={"engine": _brightness}, answers=answers), images, labels, seed=0)
    assert [row.engine_top1 for row in alone] == [row.engine_top1 for row in rows]
    assert {(row.reference, row.reference_top1, row.difference) for row in alone} == {(None, None, None)}
