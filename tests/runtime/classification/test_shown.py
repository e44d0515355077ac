"""Classifiers and predictions in a notebook and at the prompt."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.classification.predictions import Prediction


class Parsed(HTMLParser):
    """Collects texts, and refuses elements that stay open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "col":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def prediction(**changes: object) -> Prediction:
    fields: dict[str, object] = {
        "label": "<b>cup</b>",
        "score": 0.75,
        "index": 0,
        "known": True,
        "topk": (("<b>cup</b>", 0.75), ("plate & bowl", 0.25)),
        "accepted": ("<b>cup</b>",),
        "source": "a<i>.jpg",
    }
    return Prediction(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_prediction_shows_its_classes_as_text() -> None:
    texts = Parsed(prediction()._repr_html_()).texts
    assert texts == ["<b>cup</b>", " ", "a<i>.jpg", "<b>cup</b>", "75.0%", "plate & bowl", "25.0%"]


def test_an_unknown_one_says_so() -> None:
    shown = Parsed(prediction(known=False, accepted=(), source=None)._repr_html_()).texts
    assert shown[0] == "unknown; nearest: <b>cup</b>"


def test_a_classifier_tells_what_it_is(classifier: ZeroShotClassifier) -> None:
    assert repr(classifier) == (
        f"<ZeroShotClassifier {classifier.card.model.name} on onnxruntime, head 'built-in' of 1, 3 classes: "
        "circle, square, triangle>"
    )
    shown = Parsed(classifier._repr_html_()).texts
    assert shown[0] == "ZeroShotClassifier"
    assert "built-in (active)" in shown
    assert shown[-2:] == ["3 classes", "circle, square, triangle"]


def test_of_many_classes_some_are_named(classifier: ZeroShotClassifier, tiny_bundle: Path) -> None:
    head = read_bundle(tiny_bundle).head()
    rows = np.repeat(head.text_embedding, 4, axis=0)
    names = tuple(f"class {number}" for number in range(len(rows)))
    classifier.keep_head("many", replace(head, class_names=names, text_embedding=rows))
    classifier.use_head("many")
    assert "head 'many' of 2, 12 classes: class 0, " in repr(classifier)
    assert repr(classifier).endswith("class 7 and 4 more>")
