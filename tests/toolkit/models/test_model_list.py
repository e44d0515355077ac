"""The list of models: what is quantized in each, and how it is searched."""

import json

import pytest

from p4q_edge.models.families import list_models
from p4q_edge.runtime.cli.main import main


@pytest.mark.parametrize(
    ("name", "int8", "prompts"),
    [
        ("RN50", "linears and convolutions", True),
        ("convnext_base", "linears and convolutions", True),
        ("MobileCLIP-S1", "linears and convolutions", True),
        ("ViT-B-16-SigLIP", "all linears", True),
        ("EVA02-B-16", "all linears", True),
        ("coca_ViT-B-32", "all linears", False),
    ],
)
def test_models_say_what_is_quantized(name: str, int8: str, prompts: bool) -> None:
    row = next(row for row in list_models(name, count=False) if row.name == name)
    assert (row.int8, row.prompts) == (int8, prompts)


def test_models_can_be_searched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--search", "ViT-B-32-quickgelu", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert (row["name"], row["input"], row["dim"], row["family"]) == ("ViT-B-32-quickgelu", 224, 512, "vit")
    assert row["image_parameters"] == 87_849_216
    assert "openai" in row["tags"]
    assert main(["models", "--search", "no such model"]) == 2
    assert "no open_clip model or tag contains" in capsys.readouterr().err


def test_the_list_fits_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    header, *lines = capsys.readouterr().out.rstrip().splitlines()
    assert max(len(line) for line in (header, *lines)) <= 100
    names = [line.split()[0] for line in lines[:-1] if not line.startswith(" ")]
    rows = list_models(count=False)
    assert names == [row.name for row in rows]
    tags = {tag.strip() for line in lines if line.startswith("    ") for tag in line.split(",") if tag.strip()}
    assert tags == {tag for row in rows for tag in row.tags}
