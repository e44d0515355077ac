"""The comparison of methods: its rows, its folds, its command."""

import json
from pathlib import Path

import msgspec
import pytest
import torch

from p4q_edge.ablate import FOLDS, Variant, ablate, folds, lever_variants, method_variants
from p4q_edge.command.common import demo_recipe
from p4q_edge.recipe import LearnSection, Recipe
from p4q_edge.runtime import cli


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


def test_cross_validation_scores_the_labelled_images_only() -> None:
    results = ablate(small_recipe(), (0,), [Variant(name="as it is")], "cross_validated")
    assert results["as it is"][1] == 40


def test_every_lever_is_a_key_of_the_recipe() -> None:
    base = LearnSection()
    for variant in lever_variants():
        msgspec.structs.replace(base, **variant.learn)
    assert len({variant.name for variant in lever_variants()}) == len(lever_variants())


def test_distillation_is_switched_in_its_own_row() -> None:
    assert "P4Q with distillation" in [v.name for v in method_variants(LearnSection())]
    assert "P4Q without distillation" in [v.name for v in method_variants(LearnSection(distillation=1.0))]


def test_the_command_writes_its_table_and_takes_it_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("p4q_edge.command.learn.choose_recipe", lambda _: small_recipe())
    arguments = ["learn", "--ablate", "methods", "--seeds", "0", "-o", str(tmp_path), "--json"]
    assert cli.main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in first["rows"]} >= {"zero-shot", "PTQ", "P4Q"}
    assert (tmp_path / "baselines.md").read_text().startswith("|")
    monkeypatch.setattr("p4q_edge.ablate.ablate", lambda *_, **__: pytest.fail("computed again"))
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == first


@pytest.mark.parametrize(("seeds", "message"), [("0,x", "takes whole numbers"), ("1,1", "names a seed twice")])
def test_seeds_that_make_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str], seeds: str, message: str) -> None:
    assert cli.main(["learn", "--ablate", "methods", "--seeds", seeds, "-o", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
