"""The comparison of methods: its rows, its folds, its command."""

import json
from pathlib import Path

import msgspec
import pytest
import torch
from PIL import Image

from p4q_edge.data import FOLDS, folds
from p4q_edge.evaluation import ablation
from p4q_edge.evaluation.ablation import ablate, ablation_key, open_seed, parts_of
from p4q_edge.evaluation.variants import (
    PROMPTS_ALONE,
    PTQ,
    UNCHANGED,
    Variant,
    method_variants,
)
from p4q_edge.recipe.defaults import demo_recipe
from p4q_edge.recipe.schema import Method, Recipe
from p4q_edge.runtime.cli import main as cli
from p4q_edge.stages import students

from doubles.second_device import second_device


def small_recipe() -> Recipe:
    recipe = demo_recipe()
    return msgspec.structs.replace(
        recipe,
        data=msgspec.structs.replace(recipe.data, shots=4, test_limit=60),
        learn=msgspec.structs.replace(recipe.learn, epochs=4, views=1),
    )


def test_folds_are_disjoint_complete_and_even() -> None:
    labels = torch.arange(3).repeat_interleave(8)
    parts = folds(labels, seed=1)
    assert len(parts) == FOLDS
    assert torch.cat(parts).sort().values.tolist() == list(range(24))
    assert all(torch.bincount(labels[part]).tolist() == [2, 2, 2] for part in parts)


@pytest.mark.slow
def test_methods_on_the_demo_in_small() -> None:
    recipe = small_recipe()
    results = ablate(recipe, (0, 1), method_variants(recipe.learn), "tested")
    assert next(iter(results)) == "zero-shot"
    for name, (shares, count) in results.items():
        assert len(shares) == 2, name
        assert count == 60
    zero_shot, ptq = results["zero-shot"][0], results["PTQ"][0]
    assert max(abs(a - b) for a, b in zip(zero_shot, ptq, strict=True)) < 0.05
    assert min(zero_shot) > 0.4


def test_cross_validation_scores_labelled_images_that_took_no_part_in_calibration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calibrated: list[torch.Tensor] = []
    original = ablation.calibrate_encoder
    monkeypatch.setattr(
        ablation,
        "calibrate_encoder",
        lambda model, images, scheme: (calibrated.append(images), original(model, images, scheme))[1],
    )
    recipe = small_recipe()
    variants = [
        Variant(name="as it is"),
        Variant(name="no adapter", learn={"adapter": False}),
        Variant(name="two bits", quantization={"activation_bits": 2}),
    ]
    data = open_seed(recipe, variants, tested=False)
    results = ablate(recipe, (0,), variants, "cross_validated")
    assert [n for _, n in results.values()] == [40, 40, 40]
    assert results["two bits"][0][0] < results["as it is"][0][0]
    assert len(calibrated) == 2 * FOLDS  # once for each distinct quantization and fold
    for part, images in zip(parts_of(data, "cross_validated") * 2, calibrated, strict=True):
        seen = {image.numpy().tobytes() for image in images}
        assert len(images) == 30
        assert not seen & {image.numpy().tobytes() for image in part.images}


def test_fewer_views_are_the_first_of_more() -> None:
    recipe = small_recipe()
    variants = [
        Variant(name="1"),
        Variant(name="3", learn={"views": 3}),
        Variant(name="2", learn={"views": 2, "flip": True}),
    ]
    data = open_seed(recipe, variants, tested=False)
    assert {flip: len(views) for flip, views in data.views.items()} == {False: 3, True: 2}
    two = open_seed(recipe, [Variant(name="2", learn={"views": 2})], tested=False)
    assert torch.equal(two.views[False], data.views[False][:2])
    assert torch.equal(data.views[True][0], data.views[False][0])


@pytest.mark.slow
def test_the_command_writes_its_table_and_takes_it_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("p4q_edge.cli.learn.choose_recipe", lambda _: small_recipe())
    arguments = ["learn", "--ablate", "methods", "--seeds", "0", "-o", str(tmp_path), "--json"]
    assert cli.main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in first["rows"]} >= {"zero-shot", "PTQ", "P4Q"}
    assert (tmp_path / "baselines.md").read_text().startswith("|")
    monkeypatch.setattr("p4q_edge.evaluation.ablation.ablate", lambda *_, **__: pytest.fail("computed again"))
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == first


@pytest.mark.parametrize(
    ("seeds", "message"), [("0,x", "takes whole numbers"), ("0,-1", "of 0 and more"), ("1,1", "names a seed twice")]
)
def test_seeds_that_make_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str], seeds: str, message: str) -> None:
    assert cli.main(["learn", "--ablate", "methods", "--seeds", seeds, "-o", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("full_precision", [True, False])
def test_full_precision_leaves_the_text_tower_of_the_papers_track_in_float(
    monkeypatch: pytest.MonkeyPatch, full_precision: bool
) -> None:
    recipe = small_recipe()
    recipe = msgspec.structs.replace(recipe, quantization=msgspec.structs.replace(recipe.quantization, text=True))
    quantized: list[object] = []
    monkeypatch.setattr(students, "calibrate_text", lambda tower, prompts: quantized.append(tower))
    variant = Variant(name="prompts", full_precision=full_precision, learn=PROMPTS_ALONE)
    ablate(recipe, (0,), (variant,), "tested")
    assert (quantized == []) == full_precision


@pytest.mark.parametrize("method", ["p4q", "as-released"])
def test_another_device_answers_as_the_cpu_does(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = msgspec.structs.replace(small_recipe(), method=method)
    variants = [Variant(name="zero-shot", full_precision=True, learn=PTQ), Variant(name="PTQ", learn=PTQ), UNCHANGED]
    expected = ablate(recipe, (0,), variants, "tested")
    with second_device() as device:
        monkeypatch.setattr("p4q_edge.models.compute.choose_device", lambda _: device)
        found = ablate(recipe, (0,), variants, "tested")
    assert found == expected


def test_other_images_without_labels_are_another_ablation(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Image.new("RGB", (40, 40), (len(name), 200, 0 if name == "one" else 90)).save(tmp_path / f"{name}.png")
    recipe = small_recipe()
    recipe = msgspec.structs.replace(
        recipe,
        data=msgspec.structs.replace(recipe.data, unlabelled=str(tmp_path)),
        learn=msgspec.structs.replace(recipe.learn, teacher="learned"),
    )
    key = ablation_key(recipe, (0,), (UNCHANGED,), "tested")
    assert ablation_key(recipe, (0,), (UNCHANGED,), "tested") == key
    (tmp_path / "two.png").unlink()
    assert ablation_key(recipe, (0,), (UNCHANGED,), "tested") != key
