"""Numbers of heads and cards are finite and within range when they are read, so that no answer is NaN."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.artifacts.card import card_path, read_card
from p4q_edge.runtime.artifacts.head import read_head
from p4q_edge.runtime.errors import CorruptArtifactError, QualityGateError

HUGE = ("1e308", "-1e308", "inf", "nan", "1e7")


def _head(adapter: float = 0.0, **metadata: str) -> bytes:
    text = np.eye(3, 8, dtype=np.float32)
    tensors = {"text_embedding": text}
    if adapter:
        shapes = {"down.weight": (2, 8), "down.bias": (2,), "up.weight": (8, 2), "up.bias": (8,)}
        tensors |= {f"adapter.{name}": np.full(shape, adapter, np.float32) for name, shape in shapes.items()}
    names = json.dumps(["a", "b", "c"])
    return save(tensors, {"class_names": names, "logit_scale": "100.0", "residual_ratio": "0.2"} | metadata)


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("name", ["logit_scale", "logit_bias", "residual_ratio"])
def test_heads_with_numbers_out_of_range_are_refused(name: str, value: str) -> None:
    with pytest.raises(CorruptArtifactError, match="expected a finite number up to 1e"):
        read_head(_head(adapter=0.1, **{name: value}), source="x")


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e30])
def test_adapters_with_numbers_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(CorruptArtifactError, match="must be finite float"):
        read_head(_head(adapter=value), source="x")


@pytest.mark.parametrize("value", ["1e-300", "1e300", "0"])
def test_temperatures_out_of_range_are_refused(value: str) -> None:
    with pytest.raises(CorruptArtifactError, match="temperature must be positive"):
        read_head(_head(calibration=f'{{"temperature": {value}}}'), source="x")


@pytest.mark.parametrize("extreme", ["1e6", "-1e6"])
def test_the_most_extreme_head_that_is_read_answers_in_numbers(extreme: str) -> None:
    head = read_head(_head(adapter=1e6, logit_scale=extreme, logit_bias="1e6"), source="x")
    logits, embedding = head.apply(np.full((2, 8), 1e6, np.float32))
    assert np.isfinite(logits).all()
    assert np.isfinite(embedding).all()


def _edit(engine: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(card_path(engine).read_text())
    change(document)
    card_path(engine).write_text(json.dumps(document))


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "logit_scale": lambda card: card.update(logit_scale=1e308),
    "temperature": lambda card: card["calibration"].update(temperature=1e-308),
    "std": lambda card: card["preprocess"].update(std=[1e-300] * 3),
    "mean": lambda card: card["preprocess"].update(mean=[1e300] * 3),
    "embedding_dim": lambda card: card.update(embedding_dim=0),
    "noise": lambda card: card.update(noise={"worst_loss": 1e300, "median_loss": 0.0, "margin": 0.0}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_cards_with_numbers_out_of_range_are_refused(
    tiny_engine: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    _edit(tiny_engine, change)
    with pytest.raises(CorruptArtifactError, match="must|within|from 0 to 2"):
        read_card(tiny_engine)


def test_an_answer_that_is_no_number_is_refused(
    tiny_engine: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ZeroShotClassifier(tiny_engine) as classifier:
        classes = len(classifier.class_names)
        broken = np.full((1, classes), np.nan, np.float32)
        monkeypatch.setattr(classifier, "_answer", lambda batch, head: (broken, broken))
        with pytest.raises(QualityGateError, match=r"not finite for .*photo\.png. Check it: p4q-edge selftest"):
            classifier.classify(photo)
