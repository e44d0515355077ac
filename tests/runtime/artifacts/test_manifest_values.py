"""Manifests of other versions and of other hands: values that no bundle has are refused where it is opened."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p4q_edge.runtime.artifacts import bundle as bundles
from p4q_edge.runtime.artifacts.bundle import read_bundle
from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.storage import encode_json

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def changed(tiny_bundle: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """The tiny bundle with another manifest."""

    def write(change: Change) -> Path:
        source = read_bundle(tiny_bundle)
        manifest = msgspec.to_builtins(source.manifest)
        change(manifest)
        path = tmp_path / "changed.p4q"
        with zipfile.ZipFile(path, "w") as archive:
            for name in source.manifest.members:
                archive.writestr(name, source.read(name))
            archive.writestr(bundles.MANIFEST, encode_json(manifest))
        return path

    return write


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"narrowest_bits": -1}, "narrowest_bits must be positive, got .* and -1"),
        ({"narrowest_bits": 0}, "narrowest_bits must be positive, got .* and 0"),
        ({"embedding_dim": -1}, "embedding_dim, image_size and narrowest_bits must be positive, got -1"),
        ({"image_size": [0, 8]}, r"must be positive, got \d+, \(0, 8\)"),
        ({"narrowest_bits": 1}, "narrowest_bits: expected at least the 8 bits of the precision, got 1"),
    ],
)
def test_sizes_that_no_model_has_are_refused(
    changed: Callable[[Change], Path], values: dict[str, Any], message: str
) -> None:
    path = changed(lambda manifest: manifest.update(values))
    with pytest.raises(CorruptArtifactError, match=f"{message}.*Get the file again, or build it again"):
        read_bundle(path)


def test_an_adapter_may_have_fewer_bits_than_the_tower(changed: Callable[[Change], Path]) -> None:
    four = {"narrowest_bits": 4, "recipe": {"quantization": {"adapter_bits": 4}}}
    assert read_bundle(changed(lambda manifest: manifest.update(four))).manifest.rounding_bits == 4
    path = changed(lambda manifest: manifest.update(four, narrowest_bits=3))
    with pytest.raises(CorruptArtifactError, match="expected at least the 4 bits of the precision, got 3"):
        read_bundle(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"activation_bits": 99}, r"bits must be from 1 to 32, got \(8, 99, None\)"),
        ({"weight_bits": 0}, r"bits must be from 1 to 32, got \(0, 8, None\)"),
        ({"attention_bits": -3}, r"bits must be from 1 to 32, got \(8, 8, -3\)"),
        ({"int8_mac_share": 1e300}, r"shares of multiply-accumulates must be from 0 to 1, got \(1e\+300, None\)"),
        ({"linear_mac_share": -0.5}, r"shares of multiply-accumulates must be from 0 to 1, got \(.*, -0\.5\)"),
        ({"quantized_linears": -1}, "numbers of quantized layers must not be negative"),
        ({"mean_weight_bits": -3.0}, "mean_weight_bits must be from weight_bits to 32, got -3 with weight_bits = 8"),
        ({"mean_weight_bits": 4.5}, "mean_weight_bits must be from weight_bits to 32, got 4.5 with weight_bits = 8"),
        ({"weight_bits": 4, "mean_weight_bits": 99.0}, "mean_weight_bits must be from weight_bits to 32, got 99"),
    ],
)
def test_bits_that_no_engine_has_are_refused(
    changed: Callable[[Change], Path], values: dict[str, Any], message: str
) -> None:
    path = changed(lambda manifest: manifest["precision"].update(values))
    with pytest.raises(CorruptArtifactError, match=message):
        read_bundle(path)


_FLOOR = {"worst_loss": 0.1, "median_loss": 0.1, "margin": 0.1}


@pytest.mark.parametrize(
    ("parity", "message"),
    [
        ({"noise": {"fp32": _FLOOR | {"worst_loss": 1e300}}}, r"worst_loss: expected .* from 0 to 2, got 1e\+300"),
        ({"noise": {"bf16": _FLOOR | {"median_loss": -0.1}}}, r"median_loss: expected .* from 0 to 2, got -0\.1"),
        ({"noise": {"fp16": _FLOOR | {"margin": 4.1}}}, r"margin: expected .* from 0 to 4, got 4\.1"),
        ({"median_loss": {"fp16": 3.0}}, "median_loss of fp16: expected .* from 0 to 2, got 3"),
        ({"noise_images": -1}, "expected numbers of images, got -1 and 40"),
    ],
)
def test_noise_that_no_model_has_is_refused(
    changed: Callable[[Change], Path], parity: dict[str, Any], message: str
) -> None:
    path = changed(lambda manifest: manifest["parity"].update(parity))
    with pytest.raises(CorruptArtifactError, match=f"{message}.*Get the file again, or build it again"):
        read_bundle(path)


def test_an_unknown_key_may_be_one_of_a_newer_version(changed: Callable[[Change], Path]) -> None:
    path = changed(lambda manifest: manifest["model"].update(patch_size=14))
    with pytest.raises(CorruptArtifactError, match="unknown field `patch_size`") as caught:
        read_bundle(path)
    assert str(caught.value).endswith("If a newer version wrote it, upgrade p4q-edge-runtime.")


def test_a_recipe_of_another_version_is_no_reason_to_refuse(changed: Callable[[Change], Path]) -> None:
    recipe = {"schema_version": 7, "method": "p5q", "learn": {"new_key": 1, "steps": 3}, "new_section": {}}
    manifest = read_bundle(changed(lambda manifest: manifest.update(recipe=recipe))).manifest
    assert msgspec.to_builtins(manifest.recipe) == {"schema_version": 7, "method": "p5q", "learn": {"steps": 3}}
    wrong = changed(lambda manifest: manifest.update(recipe={"quantization": {"weight_bits": "eight"}}))
    with pytest.raises(CorruptArtifactError, match=r"Expected `int`, got `str` - at `\$\.recipe\.quantization"):
        read_bundle(wrong)
