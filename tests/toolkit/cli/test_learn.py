"""`p4q-edge learn` and `calibrate`: what they refuse before anything is loaded."""

from pathlib import Path

import pytest

from p4q_edge.recipe import demo_recipe, to_toml
from p4q_edge.runtime.cli.main import main


@pytest.mark.parametrize("command", [["learn"], ["calibrate"], ["learn", "--ablate", "levers"]])
@pytest.mark.parametrize("named", ["recipe.toml", "linked.toml"])
def test_the_recipe_is_not_replaced_by_the_resolved_one(
    command: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "recipe.toml"
    own.write_text(text := "# mine\n" + to_toml(demo_recipe()))
    (tmp_path / "linked.toml").symlink_to(own)
    assert main([*command, "--recipe", str(tmp_path / named), "-o", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert f"error: -o {tmp_path}: {own} is the recipe itself, and would be replaced by the resolved one; name" in err
    assert str(tmp_path / "model.run") in err
    assert own.read_text() == text


def test_seeds_are_of_an_ablation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["learn", "--seeds", "3", "-o", str(tmp_path / "x.run")]) == 2
    assert "--seeds 3 is for --ablate; one run has one seed: --seed. Leave it out." in capsys.readouterr().err
