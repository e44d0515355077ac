"""Bundles and cards of schema 1, written by version 0.1 and kept in `data/schema-1`: they stay usable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from p4q_edge.runtime import CorruptArtifactError, build_engine, selftest
from p4q_edge.runtime.artifacts import (
    Agreement,
    GraphParity,
    OnnxRuntimeBuild,
    TensorRTBuild,
    TensorRTOptions,
    card_path,
    read_bundle,
    read_card,
)
from p4q_edge.runtime.artifacts.schema_one import manifest_of_schema_1
from p4q_edge.runtime.statistics import NoiseFloor
from p4q_edge.runtime.storage.sealed import SEAL

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def old(repository: Path, tmp_path: Path) -> Path:
    """A folder with `tiny.p4q`, `tiny.onnx` and `tiny.plan` with their cards, all of schema 1."""
    folder = tmp_path / "old"
    shutil.copytree(repository / "tests/runtime/data/schema-1", folder)
    return folder


def test_the_kept_files_are_of_schema_1(old: Path) -> None:
    for name in ("tiny.onnx.json", "tiny.plan.json"):
        assert json.loads((old / name).read_bytes())["schema_version"] == 1


def test_a_bundle_of_schema_1_says_what_the_same_bundle_of_schema_2_says(old: Path, tiny_bundle: Path) -> None:
    first, second = read_bundle(old / "tiny.p4q"), read_bundle(tiny_bundle)
    assert first.manifest == second.manifest
    assert first.manifest.parity.loss_images == 40
    assert set(first.manifest.parity.median_loss) == {"fp32", "fp16"}
    np.testing.assert_array_equal(first.golden().logits, second.golden().logits)


def test_a_bundle_of_schema_1_builds_an_engine_with_a_card_of_schema_2(old: Path, tmp_path: Path) -> None:
    engine = tmp_path / "new.onnx"
    card = build_engine(old / "tiny.p4q", engine)
    assert json.loads(card_path(engine).read_bytes())["schema_version"] == 2
    assert read_card(engine) == card
    assert card.bundle_sha256 == read_card(old / "tiny.onnx").bundle_sha256


def test_an_engine_with_a_card_of_schema_1_is_tested_validated_and_used(old: Path, photo: Path, run: Run) -> None:
    engine = old / "tiny.onnx"
    card = read_card(engine)
    assert isinstance(card.build, OnnxRuntimeBuild)
    assert card.build.options.kept_profile == "exact"
    assert card.build.inspection.integer_products == 2
    assert card.measured is not None
    assert selftest(engine).problem() is None
    code, out, err = run("validate", engine, "--json", "-q")
    assert code == 0, err
    document = json.loads(out)
    assert document["passed"]
    assert document["built"]["precision"]["quantized_linears"] == 2
    assert [gate["value"] for gate in document["files"]] == [0]
    assert run("classify", engine, photo)[0] == 0


def test_the_card_of_a_plan_of_schema_1_is_read(old: Path) -> None:
    card = read_card(old / "tiny.plan")
    assert isinstance(card.build, TensorRTBuild)
    assert card.build.options == TensorRTOptions(max_batch=4)
    assert (card.backend, card.built_with["gpu"], card.built_with["batches"]) == ("tensorrt", "Orin", "1,1,4")
    inspection = card.build.inspection
    assert inspection.choice is not None
    assert inspection.choice.kept == "fp16"
    assert inspection.rows["int8"].samples == 4
    assert inspection.ratio == inspection.ratios["int8"]
    assert json.loads(msgspec.json.encode(card))["schema_version"] == 2


def test_inspect_describes_both_schemas_alike(old: Path, tiny_bundle: Path, run: Run) -> None:
    documents = []
    for path in (old / "tiny.p4q", tiny_bundle):
        code, out, _ = run("inspect", path, "--json")
        assert code == 0
        documents.append(json.loads(out))
    moved = {name for name in documents[0] if documents[0][name] != documents[1][name]}
    assert moved <= {"path", "sha256", "size_bytes"}


def test_a_changed_card_of_schema_1_is_refused_with_advice(old: Path) -> None:
    path = old / "tiny.onnx.json"
    path.write_text(path.read_text().replace('"logit_scale": 20.0', '"logit_scale": 21.0'))
    with pytest.raises(
        CorruptArtifactError, match=r"was changed after it was written: .* Get it again, or build it again"
    ):
        read_card(old / "tiny.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "abacus"}, r"Invalid value 'abacus' - at `\$\.build\.backend`\. .*build it again"),
        ({"options": {"cpu_profile": "exact"}}, r"missing required field `kept_profile` .*build it again"),
        ({"built_with": 3}, r"Expected `object`, got `int` - at `\$\.build\.built_with`"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"measured": {"embedding": 3}}, r"missing required field `golden`|Expected `array`"),
    ],
)
def test_what_schema_1_never_had_is_refused(old: Path, change: dict[str, object], message: str) -> None:
    path = old / "tiny.onnx.json"
    document = json.loads(path.read_bytes())
    del document[SEAL]
    path.write_text(json.dumps({**document, **change}))
    with pytest.raises(CorruptArtifactError, match=message):
        read_card(old / "tiny.onnx")


def test_options_that_no_build_has_are_refused(old: Path) -> None:
    path = old / "tiny.plan.json"
    document = json.loads(path.read_bytes())
    del document[SEAL]
    path.write_text(json.dumps({**document, "options": {**document["options"], "min_batch": 9}}))
    with pytest.raises(
        CorruptArtifactError,
        match=r"records options that no build has: expected 1 <= min batch .* Build the engine again",
    ):
        read_card(old / "tiny.plan")


def test_parity_of_schema_1_is_kept_by_graph() -> None:
    flat = {
        "fp32.cosine_logits": 0.9,
        "fp32.top1_agreement": 1.0,
        "placed.cosine_features": 0.8,
        "seven_bit.noise_worst_loss": 1e-3,
        "seven_bit.noise_median_loss": 1e-4,
        "seven_bit.noise_margin": 0.1,
        "fp16.noise_margin": 0.1,
        "fp16.median_loss": 2e-4,
        "noise_images": 24.0,
        "loss_images": 128.0,
    }
    parity = manifest_of_schema_1({"parity": flat})["parity"]
    assert parity == {
        "agreement": {"fp32": {"cosine_logits": 0.9, "top1_agreement": 1.0}, "placed": {"cosine_features": 0.8}},
        "noise": {"seven_bit": {"worst_loss": 1e-3, "median_loss": 1e-4, "margin": 0.1}},
        "median_loss": {"fp16": 2e-4},
        "noise_images": 24,
        "loss_images": 128,
    }


def test_flat_parity_names_every_measure() -> None:
    parity = GraphParity(
        agreement={"fp32": Agreement(cosine_logits=0.9, cosine_embedding=0.8)},
        noise={"fp16": NoiseFloor(worst_loss=1.0, median_loss=0.5, margin=3.0)},
        median_loss={"fp32": 0.25},
        loss_images=5,
    )
    assert parity.flat() == {
        "fp32.cosine_logits": 0.9,
        "fp32.cosine_embedding": 0.8,
        "fp16.noise_worst_loss": 1.0,
        "fp16.noise_median_loss": 0.5,
        "fp16.noise_margin": 3.0,
        "fp32.median_loss": 0.25,
        "loss_images": 5.0,
    }
    assert parity.least_cosine == 0.8
