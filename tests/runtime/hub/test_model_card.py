"""The model card: metadata that the Hub reads, figures with n and interval, and nothing that a name could break."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from p4q_edge.runtime.artifacts import Bundle, read_bundle
from p4q_edge.runtime.artifacts.manifest import CrossValidated, DataIndex, ModelInfo
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.evaluation.report import read_report
from p4q_edge.runtime.hub import HubAddress, card_text
from p4q_edge.runtime.statistics import wilson_interval

ADDRESS = HubAddress(repo="ann/cups")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def parsed() -> Callable[[str], Any]:
    """Read a card as the Hub's own library does."""
    library = pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    return lambda text: library.ModelCard(text).data


def of_model(bundle: Bundle, **values: str) -> Bundle:
    """Return an opened bundle of another model."""
    model: ModelInfo = msgspec.structs.replace(bundle.manifest.model, **values)
    return Bundle(
        path=bundle.path,
        manifest=msgspec.structs.replace(bundle.manifest, model=model),
        deciding_bytes=bundle.deciding_bytes,
    )


@pytest.mark.parametrize(
    ("changes", "tag", "told"),
    [
        ({}, "w8a8", ""),
        ({"number_format": "fp8"}, "fp8", "need compute capability 8.9 or later, which Jetson Orin has not"),
        (
            {"weight_bits": 4, "activation_bits": 16, "weight_block": 128},
            "w4a16",
            "need TensorRT 10.13 or later, which JetPack 6 has not",
        ),
    ],
)
def test_a_card_says_which_machines_have_engines(
    tiny_bundle: Path, changes: dict[str, object], tag: str, told: str
) -> None:
    bundle = read_bundle(tiny_bundle)
    precision = msgspec.structs.replace(bundle.manifest.precision, **changes)
    manifest = msgspec.structs.replace(bundle.manifest, precision=precision)
    text = card_text(Bundle(path=bundle.path, manifest=manifest, deciding_bytes=bundle.deciding_bytes), ADDRESS)
    assert f'"{tag}"' in text
    assert told in text
    assert ("Engines for GPUs need" in text) is bool(told)


def test_the_metadata_is_what_the_hub_reads(tiny_bundle: Path, parsed: Callable[[str], Any]) -> None:
    bundle = read_bundle(tiny_bundle)
    data = parsed(card_text(bundle, ADDRESS))
    assert data.license == "apache-2.0"
    assert data.library_name == "p4q-edge"
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert {"clip", "quantization", "w8a8"} <= set(data.tags)
    results = bundle.reference()
    assert results is not None
    right = int((bundle.head().logits(results.embedding).argmax(axis=1) == results.label).sum())
    low, high = (round(100 * bound, 2) for bound in wilson_interval(right, len(results)))
    (accuracy,) = data.eval_results
    assert accuracy.metric_value == round(100 * right / len(results), 2)
    assert accuracy.metric_args == {"n": len(results), "low": low, "high": high}
    assert f"n = {len(results)}, 95 % interval {low} to {high}" in accuracy.metric_name


@pytest.mark.parametrize(
    ("stated", "licence", "name"),
    [
        ("MIT", "mit", None),
        ("unknown", "unknown", None),
        ("", "unknown", None),
        ("apple-ascl", "other", "apple-ascl"),
        ('by: "hand"\n- x', "other", 'by: "hand"\n- x'),
    ],
)
def test_the_licence_of_the_weights_is_stated(
    tiny_bundle: Path, parsed: Callable[[str], Any], stated: str, licence: str, name: str | None
) -> None:
    data = parsed(card_text(of_model(read_bundle(tiny_bundle), license=stated), ADDRESS))
    assert data.license == licence
    assert data.to_dict().get("license_name") == name


def test_a_model_of_the_hub_is_named_as_the_base(tiny_bundle: Path, parsed: Callable[[str], Any]) -> None:
    bundle = read_bundle(tiny_bundle)
    assert parsed(card_text(of_model(bundle, name="hf-hub:timm/x"), ADDRESS)).base_model == "timm/x"
    assert "base_model" not in parsed(card_text(bundle, ADDRESS)).to_dict()


def test_figures_of_a_report_are_those_of_the_engine(
    tiny_engine: Path, tiny_bundle: Path, tmp_path: Path, run: Run, parsed: Callable[[str], Any]
) -> None:
    photos = tmp_path / "of somebody" / "shapes"
    for index, name in enumerate(("circle", "square", "triangle")):
        (photos / name).mkdir(parents=True)
        for image in range(3):
            pixels = np.random.default_rng(9 * index + image).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / name / f"{image}.png")
    bundle = tmp_path / "tiny.p4q"
    bundle.write_bytes(tiny_bundle.read_bytes())
    code, _, _ = run("validate", tiny_engine, "--data", photos)
    assert code in (0, 5)
    report = read_report(tiny_engine.with_name("tiny.report.json"))
    text = card_text(read_bundle(bundle), ADDRESS, report=report)
    assert "| the engine (onnxruntime) |" in text
    assert "On 9 images of shapes." in text
    assert "of somebody" not in text
    (accuracy,) = parsed(text).eval_results
    assert report.chain is not None
    assert accuracy.metric_value == round(100 * report.chain.stages[-1].top1.value, 2)


def test_a_report_of_another_bundle_is_refused(tiny_engine: Path, rebundle: Callable[..., Path], run: Run) -> None:
    run("validate", tiny_engine)
    report = read_report(tiny_engine.with_name("tiny.report.json"))
    with pytest.raises(UsageError, match="the report is not about .*changed.p4q, but about another bundle"):
        card_text(read_bundle(rebundle(seed=8)), ADDRESS, report=report)


def test_without_test_images_the_cross_validation_is_told(
    tiny_bundle: Path, parsed: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = read_bundle(tiny_bundle)
    monkeypatch.setattr(Bundle, "reference", lambda _: None)
    assert "Not known: no labelled image was seen." in card_text(bundle, ADDRESS)
    assert parsed(card_text(bundle, ADDRESS)).eval_results is None
    counts = CrossValidated(n=40, folds=4, zero_shot=20, learned_float=30, learned_quantized=29)
    manifest = msgspec.structs.replace(bundle.manifest, data_index=DataIndex(cross_validated=counts))
    text = card_text(Bundle(path=bundle.path, manifest=manifest, deciding_bytes=bundle.deciding_bytes), ADDRESS)
    assert "On 40 images, cross-validated in 4 parts." in text
    assert parsed(text).eval_results[0].metric_value == 72.5


@pytest.mark.parametrize("name", ["<script>x</script>", "a | b", "[x](http://y)", "`rm`", "---\nlicense: mit", "ü 猫"])
def test_a_name_cannot_break_the_card(tiny_bundle: Path, parsed: Callable[[str], Any], name: str) -> None:
    bundle = read_bundle(tiny_bundle)
    manifest = msgspec.structs.replace(bundle.manifest, class_names=(name, "b", "c"), created_by=name)
    changed = Bundle(path=bundle.path, manifest=manifest, deciding_bytes=bundle.deciding_bytes)
    text = card_text(of_model(changed, name=name), ADDRESS)
    assert parsed(text).license == "apache-2.0"
    for harmful in ("<script", "](http", "\nlicense: mit"):
        assert harmful not in text.partition("\n---\n")[2].replace(r"\]", "")
    assert len({line.count(" | ") - line.count(r"\| ") for line in text.splitlines() if line.startswith("| made")}) == 1
