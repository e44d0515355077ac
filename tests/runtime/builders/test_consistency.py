"""Bundles whose members contradict each other are refused before anything is built from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from p4q_edge.runtime import RuntimeOptions, ZeroShotClassifier
from p4q_edge.runtime.artifacts import read_bundle
from p4q_edge.runtime.artifacts.bundle import GOLDEN, HEAD, PREPROCESS
from p4q_edge.runtime.artifacts.card import read_card, write_card
from p4q_edge.runtime.builders.build import build_engine
from p4q_edge.runtime.builders.consistency import check_outputs
from p4q_edge.runtime.errors import CorruptArtifactError


def _preprocess(bundle: Path, **fields: Any) -> dict[str, bytes]:
    spec = msgspec.structs.replace(read_bundle(bundle).preprocess(), **fields)
    return {PREPROCESS: msgspec.json.encode(spec)}


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"class_names": ("a", "b")}, "class names of the manifest and of the head differ"),
        ({"class_names": ("triangle", "square", "circle")}, "class names of the manifest and of the head differ"),
        ({"embedding_dim": 8}, "widths of the manifest and of the head differ: 8 and 16"),
        ({"image_size": (9, 8)}, r"image sizes of the manifest and of the preprocessing differ: \(9, 8\) and \(8, 8\)"),
    ],
)
def test_a_manifest_that_describes_another_model_is_refused(
    rebundle: Callable[..., Path], tmp_path: Path, manifest: dict[str, Any], message: str
) -> None:
    engine = tmp_path / "out.onnx"
    with pytest.raises(CorruptArtifactError, match=message):
        build_engine(rebundle(**manifest), engine)
    assert not engine.exists()


def test_preprocessing_of_another_size_is_refused(
    rebundle: Callable[..., Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(CorruptArtifactError, match="image sizes of the manifest and of the preprocessing differ"):
        build_engine(rebundle(_preprocess(tiny_bundle, size=(16, 16))), tmp_path / "out.onnx")


@pytest.mark.parametrize("change", ["reversed", "scale", "bias"])
@pytest.mark.parametrize("samples_fit", [False, True])
def test_a_head_that_is_not_the_one_of_the_graph_is_refused(
    rebundle: Callable[..., Path], tiny_bundle: Path, tmp_path: Path, change: str, samples_fit: bool
) -> None:
    source = read_bundle(tiny_bundle)
    head, golden, engine = source.head(), source.golden(), tmp_path / "out.onnx"
    other = {
        "reversed": replace(head, text_embedding=head.text_embedding[::-1].copy()),
        "scale": replace(head, logit_scale=2 * head.logit_scale),
        "bias": replace(head, logit_bias=head.logit_bias + head.logit_scale),
    }[change]
    members = {HEAD: other.to_bytes()}
    if samples_fit:
        logits = other.logit_scale * golden.embedding @ other.text_embedding.T + other.logit_bias
        members[GOLDEN] = replace(golden, logits=logits.astype(np.float32)).to_bytes()
    whose = "graph" if samples_fit else "golden samples"
    with pytest.raises(CorruptArtifactError, match=f"the logits of its {whose} are not those of its head: they differ"):
        build_engine(rebundle(members), engine)
    assert not engine.exists()


def test_a_graph_of_another_model_is_refused(tiny_bundle: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    outputs = {"logits": bundle.golden().logits, "embedding": bundle.golden().embedding}
    check_outputs(bundle, outputs, input_shape=(-1, 3, 8, 8))
    with pytest.raises(CorruptArtifactError, match=r"takes images of \(9, 9\) pixels"):
        check_outputs(bundle, outputs, input_shape=(-1, 3, 9, 9))
    with pytest.raises(CorruptArtifactError, match=r"gives \{'logits': 10"):
        check_outputs(bundle, outputs | {"logits": np.zeros((1, 10))}, input_shape=(-1, 3, 8, 8))


@pytest.mark.parametrize(
    ("field", "message"),
    [("class_names", "the card names 2 classes|gives 3 logits for 2 classes"), ("size", r"takes images of \(8, 8\)")],
)
@pytest.mark.parametrize("check", ["first", "never"])
def test_a_card_that_does_not_fit_its_engine_is_refused(
    tiny_engine: Path, photo: Path, field: str, message: str, check: Any
) -> None:
    card = read_card(tiny_engine)
    changed = (
        msgspec.structs.replace(card, class_names=("a", "b"))
        if field == "class_names"
        else msgspec.structs.replace(card, preprocess=msgspec.structs.replace(card.preprocess, size=(16, 16)))
    )
    write_card(tiny_engine, changed, force=True)
    with (
        pytest.raises(CorruptArtifactError, match=message),
        ZeroShotClassifier(tiny_engine, options=RuntimeOptions(check=check)) as classifier,
    ):
        classifier.classify(photo)
