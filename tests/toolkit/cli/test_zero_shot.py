"""`build --class-names`: an engine without labelled images, and what it says that costs."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from p4q_edge.cli.common import choose_recipe
from p4q_edge.cli.zero_shot import costs, zero_shot_recipe
from p4q_edge.demo import MODEL_DIR, demo_images
from p4q_edge.models import encoder_of, load_model, template_embeddings
from p4q_edge.recipe import DRAWN_IMAGES, Recipe, demo_recipe, read_recipe, to_toml
from p4q_edge.recipe.toml import parse_recipe
from p4q_edge.runtime.artifacts import CalibratedOn, read_bundle, read_card
from p4q_edge.runtime.builders import RecipeRequest, ZeroShotRequest
from p4q_edge.runtime.cli.main import main
from p4q_edge.runtime.errors import UsageError

NAMES = ("digit one", "digit seven")
QUICK = """
[model]
name = "demo"
[data]
calibration = "photographs"
class_names = ["digit one", "digit seven"]
templates = ["a photo of the {}."]
[learn]
prompts = false
adapter = false
class_residual = false
[export]
golden_samples = 2
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fourteen photographs of digits without labels, and two labelled ones of each class."""
    images, labels, _ = demo_images()
    (tmp_path / "photographs").mkdir()
    for index in range(14):
        images[index].save(tmp_path / "photographs" / f"{index}.png")
    for label, name in ((1, "digit one"), (7, "digit seven")):
        (tmp_path / "labelled" / name).mkdir(parents=True)
        for index in np.flatnonzero(labels == label)[-2:]:
            images[index].save(tmp_path / "labelled" / name / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("P4Q_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"test": "labelled"}, "its data.test is not used"),
        ({"test": "labelled", "class_prompts": "p.json"}, "its data.class_prompts and data.test are not used"),
        ({}, None),
    ],
)
def test_what_a_recipe_says_of_its_own_classes_is_not_dropped_in_silence(
    keys: dict[str, str], said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    base = parse_recipe({"model": {"name": "demo"}, "data": {"train": "photos", **keys}}, source="p4q.toml")
    recipe = zero_shot_recipe(ZeroShotRequest(class_names=NAMES), base)
    assert (recipe.data.test, recipe.data.class_prompts) == ("", "")
    assert [record.getMessage() for record in caplog.records if "--class-names" in record.getMessage()] == (
        []
        if said is None
        else [
            f"--class-names names other classes than the recipe: {said}. To keep them, leave out --class-names and set "
            "data.class_names in the recipe"
        ]
    )


def test_an_engine_of_names_alone_says_what_that_costs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "p4q.toml").write_text(to_toml(demo_recipe()))
    command = ["build", "--class-names", "digit one, digit seven", "--calibration-images", "photographs"]
    assert main([*command, "--engine", "out.onnx", "-q"]) == 0
    out = capsys.readouterr().out
    assert "zero-shot, what that costs:" in out
    assert "ranges are those of 12 images of photographs; of 2 others W8A8 executed names" in out
    for said in (
        "accuracy is not known",
        "scores are not calibrated",
        "nothing was learned",
        "head calibrate out.onnx",
    ):
        assert said in out
    bundle = read_bundle(here / "out.p4q")
    index, head = bundle.manifest.data_index, bundle.head()
    assert index.learned == ()
    assert index.calibrated_on is not None
    assert (index.calibrated_on.source, index.calibrated_on.images, index.calibrated_on.held_out) == (
        "photographs",
        12,
        2,
    )
    assert head.class_names == NAMES
    assert head.adapter is None
    # The class embeddings are those of the float text tower.
    model = load_model(f"local-dir:{MODEL_DIR}")
    rows = template_embeddings(
        encoder_of(model.clip), model.tokenizer, NAMES, templates=demo_recipe().data.templates, class_prompts={}
    )
    assert np.allclose(head.text_embedding, rows.numpy(), atol=1e-6)
    assert main([*command, "--engine", "out.onnx", "-q", "--json"]) == 0  # again: nothing is in the way
    assert len(json.loads(capsys.readouterr().out)["summary"]["costs"]) == 4
    assert main(["inspect", "out.p4q"]) == 0
    assert "nothing was learned, and accuracy is not known" in " ".join(capsys.readouterr().out.split())
    assert main(["classify", "out.onnx", "labelled", "-q"]) == 0
    assert main(["validate", "out.onnx", "--data", "labelled", "-q"]) == 0  # the run folder is the reference
    assert "fake quant" in capsys.readouterr().out


def test_a_recipe_without_labels_may_name_a_test_set(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "p4q.toml").write_text(QUICK.replace("class_names", 'test = "labelled"\nclass_names'))
    assert main(["build", "--engine", "out.onnx", "-q", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert [row["name"] for row in summary["rows"]] == ["zero-shot, FP32", "engine, W8A8 executed"]
    assert summary["n"] == 4
    assert not any("accuracy is not known" in line for line in summary["costs"])
    assert main(["learn", "-o", "run", "--ablate", "levers"]) == 2
    assert "--ablate compares what is learned from labelled images" in capsys.readouterr().err


def test_without_a_recipe_the_model_and_drawn_images_are_enough() -> None:
    request = RecipeRequest(
        zero_shot=ZeroShotRequest(class_names=("cup", "plate"), model="ViT-B-32", pretrained="openai")
    )
    recipe = choose_recipe(request)
    assert (recipe.model.name, recipe.model.pretrained) == ("ViT-B-32", "openai")
    assert recipe.data.calibration == DRAWN_IMAGES
    assert recipe.zero_shot
    assert {recipe.learn.prompts, recipe.learn.adapter, recipe.learn.class_residual} == {False}
    assert parse_recipe(msgspec.to_builtins(recipe), source="again") == recipe


def test_a_recipe_gives_its_images_without_their_labels(tmp_path: Path) -> None:
    base = demo_recipe()
    found = zero_shot_recipe(ZeroShotRequest(class_names=NAMES), base)
    assert (found.data.train, found.data.calibration, found.data.test) == ("", "demo:digits", "")
    assert found.data.templates == base.data.templates
    own = zero_shot_recipe(ZeroShotRequest(class_names=tmp_path / "names.txt", calibration="mine"), base)
    assert own.data.calibration == str(Path.cwd() / "mine")
    assert own.data.class_names == str(tmp_path / "names.txt")


def test_limits_that_need_labels_are_refused() -> None:
    base = demo_recipe()
    limited = msgspec.structs.replace(base, quantization=msgspec.structs.replace(base.quantization, max_top1_drop=1.0))
    with pytest.raises(UsageError, match="max_top1_drop is judged on labelled images"):
        zero_shot_recipe(ZeroShotRequest(class_names=NAMES), limited)
    with pytest.raises(UsageError, match="max_top1_drop is judged on labelled images"):
        choose_recipe(RecipeRequest(max_top1_drop=1.0, zero_shot=ZeroShotRequest(class_names=NAMES)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('calibration = "photographs"\n', "and name data.class_names and data.calibration"),
        ('class_names = ["digit one", "digit seven"]\n', "and name data.class_names and data.calibration"),
        ("adapter = false\n", "data.train is empty; name labelled images to learn from"),
    ],
)
def test_a_recipe_without_labels_must_be_whole(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "p4q.toml"
    path.write_text(QUICK)
    assert read_recipe(path).data.calibration == str(tmp_path / "photographs")
    path.write_text(QUICK.replace(change, ""))
    with pytest.raises(UsageError, match=message):
        read_recipe(path)


def test_images_without_labels_beside_labelled_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p4q.toml"
    path.write_text('[model]\nname = "demo"\n[data]\ntrain = "a"\ncalibration = "b"\n')
    with pytest.raises(UsageError, match="data.calibration has no effect beside data.train"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (CalibratedOn(source=DRAWN_IMAGES, images=51), "ranges are those of 51 drawn images, no photographs"),
        (CalibratedOn(source="few", images=3), "3 images of few, too few to hold some out"),
    ],
)
def test_costs_of_drawn_and_of_few_images(found: CalibratedOn, said: str) -> None:
    card = read_card(Path(__file__).parents[2] / "runtime" / "data" / "schema-1" / "tiny.onnx")
    lines = costs(found, card, Path("out.onnx"), tested=False)
    assert said in lines[0]
    assert "To take your own: --calibration-images FOLDER" in lines[0]
    assert len(lines) == 4


def test_resolved_recipe_without_labels_is_toml(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    assert main(["build", "--class-names", "a,b", "--engine", "x.onnx", "--print-config"]) == 0
    captured = capsys.readouterr()
    assert "the demo's model, which knows digits alone, gets these classes" in captured.err
    (here / "again.toml").write_text(captured.out)
    recipe: Recipe = read_recipe(here / "again.toml")
    assert recipe.zero_shot
