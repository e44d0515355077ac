"""`max_top1_drop`: judged on labelled images alone, by heads that did not see them, and it holds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from p4q_edge.calibration import CalibratedEncoder, calibrate_encoder
from p4q_edge.cli.common import choose_recipe
from p4q_edge.learning import Student
from p4q_edge.models import Batches, LoadedModel
from p4q_edge.quant import Phase, QuantScheme, quant_linears, running_in
from p4q_edge.recipe import Recipe, demo_recipe
from p4q_edge.runtime.builders import RecipeRequest
from p4q_edge.runtime.errors import QualityGateError, UsageError
from p4q_edge.stages import RunFiles, learn_stage, open_source, pipeline, prepare
from p4q_edge.stages.export import precision_of
from p4q_edge.stages.top1_limit import Judge, limit_top1

LABELS = torch.arange(4).repeat_interleave(6)


def head(model: LoadedModel, images: Tensor) -> Student:
    """Classes as far apart as the float features of the first image of each."""
    with torch.no_grad():
        features = model.clip.encode_image(images[::6].float() / 255)
    text = torch.nn.functional.normalize(features - features.mean(0), dim=-1)
    return Student(prompts=None, adapter=None, hand_written=text, logit_scale=10.0)


def judge_of(model: LoadedModel, images: Tensor, seen: list[Tensor]) -> Judge:
    def learn_on(chosen: Tensor) -> Student:
        seen.append(chosen)
        return head(model, images)

    return Judge.of(Batches(images=images, spec=model.preprocess, size=8), LABELS, learn_on, seed=0)


def test_no_head_is_asked_about_an_image_that_it_saw(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    seen: list[Tensor] = []
    judge = judge_of(toy_clip, toy_pixels, seen)
    assert len(judge.heads) == len(seen) > 1
    for index in range(len(LABELS)):
        assert index not in seen[int(judge.head[index])].tolist()
        assert all(index in other.tolist() for number, other in enumerate(seen) if number != int(judge.head[index]))


def test_a_judge_counts_right_answers(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    judge = judge_of(toy_clip, toy_pixels, [])
    student = judge.heads[0][0]

    class Fixed(torch.nn.Module):
        """Gives each image the embedding of its own class, but for the first three."""

        def forward(self, x: Tensor) -> Tensor:
            index = torch.arange(self.start, self.start + len(x))
            self.start += len(x)
            return student.hand_written[(LABELS[index] + (index < 3)) % 4]

    encoder = Fixed()
    encoder.start = 0
    assert judge.right(encoder) == len(LABELS) - 3


def demo(**quantization: object) -> Recipe:
    recipe = demo_recipe()
    return msgspec.structs.replace(
        recipe,
        data=msgspec.structs.replace(recipe.data, shots=8, test_limit=40),
        quantization=msgspec.structs.replace(recipe.quantization, **quantization),
        learn=msgspec.structs.replace(recipe.learn, epochs=6, views=1, prompts=False),
    )


def test_the_limit_holds_without_a_look_at_test_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two bits lose much; with a limit some layers, not all, are in float, and a second run restores them."""
    source = open_source(demo(weight_bits=2, activation_bits=3, max_top1_drop=2.5))
    unread = replace(source.split.test, open_image=lambda _: pytest.fail("a test image was opened"))
    source = replace(source, split=replace(source.split, test=unread))
    judges: list[Judge] = []

    def watched(*args: Any) -> CalibratedEncoder:
        judges.append(args[2])
        return limit_top1(*args)

    monkeypatch.setattr(pipeline, "limit_top1", watched)
    with caplog.at_level("INFO", logger="p4q_edge"):
        prepared = prepare(source, RunFiles(folder=tmp_path))
    (judge,) = judges
    calibrated, reference = prepared.calibrated, source.model.clip.visual
    linears = quant_linears(calibrated.encoder)
    assert 0 < len(calibrated.in_float) < len(linears)
    assert judge.right(reference) - judge.right(calibrated.encoder) <= 0.025 * len(judge.labels)
    plain = calibrate_encoder(source.model, judge.batches.images, source.recipe.quantization.scheme()).encoder
    assert judge.right(reference) - judge.right(plain) > 0.025 * len(judge.labels)
    assert f"with {len(calibrated.in_float)} of {len(linears)} layers in float" in caplog.text
    batch = next(iter(judge.batches))
    torch.testing.assert_close(prepared.features.student[0, : len(batch)], calibrated.encoder(batch).cpu())
    learned = learn_stage(prepared, None)
    assert precision_of(learned).in_float == calibrated.in_float
    again = prepare(source, RunFiles(folder=tmp_path))
    assert len(judges) == 1
    assert again.calibrated.in_float == calibrated.in_float
    assert torch.equal(again.calibrated.encoder(batch), calibrated.encoder(batch))


def test_nothing_stays_in_float_where_nothing_is_lost(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    calibrated = calibrate_encoder(toy_clip, toy_pixels, QuantScheme())
    judge = judge_of(toy_clip, toy_pixels, [])
    assert limit_top1(calibrated, toy_clip.clip.visual, judge, 50.0) is calibrated


def test_a_limit_that_float_layers_cannot_keep_is_refused(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    calibrated = calibrate_encoder(toy_clip, toy_pixels, QuantScheme())

    class Lossy(torch.nn.Module):
        """Answers worse than its parts, whatever is in float."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = calibrated.encoder

        def forward(self, x: Tensor) -> Tensor:
            return -self.encoder(x)

    judge = judge_of(toy_clip, toy_pixels, [])
    with running_in(calibrated.encoder, Phase.FLOAT):
        assert judge.right(calibrated.encoder) > judge.right(Lossy())
    lossy = replace(calibrated, encoder=Lossy())
    with pytest.raises(QualityGateError, match=r"max_top1_drop = 1 cannot be kept: .* with every layer in float"):
        limit_top1(lossy, toy_clip.clip.visual, judge, 1.0)


@pytest.mark.parametrize("wrong", [-1.0, 100.0])
def test_limits_out_of_range_are_refused(wrong: float) -> None:
    with pytest.raises(UsageError, match=r"max_top1_drop must be in \[0, 100\) points, got .*p4q-edge build --help"):
        choose_recipe(RecipeRequest(max_top1_drop=wrong))
    assert choose_recipe(RecipeRequest(max_top1_drop=1.5)).quantization.max_top1_drop == 1.5


def test_layers_by_name_are_added_to_those_of_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "p4q.toml"
    recipe.write_text(
        '[model]\nname = "demo"\n[data]\ntrain = "demo:digits"\n[quantization]\nkeep_float = ["*.mlp.*"]\n'
    )
    kept = choose_recipe(RecipeRequest(path=recipe, keep_float=("trunk.a", "*.mlp.*"))).quantization.keep_float
    assert kept == ("*.mlp.*", "trunk.a")
