"""Learning really learns, each part alone, and each lever changes the result."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from learning_runs import learned_values, source_of, with_options
from torch import Tensor

from p4q_edge.data.augmentation import augment
from p4q_edge.data.image_set import pixels
from p4q_edge.learning.cached_features import Batch
from p4q_edge.learning.training import LearningRun, batch_loss
from p4q_edge.models.load import LoadedModel, to_batch
from p4q_edge.quant.linear import Phase, running_in
from p4q_edge.recipe.schema import LearnSection
from p4q_edge.runtime.images.image_set import ImageSet
from p4q_edge.stages.pipeline import Prepared, learn_stage, prepare
from p4q_edge.stages.run_files import RunFiles
from p4q_edge.stages.students import new_student


def _accuracy(prepared: Prepared, classifier: torch.nn.Module) -> float:
    split = prepared.source.split.test
    images = torch.stack([torch.from_numpy(_array(split, i)) for i in range(len(split))])
    logits, _, _ = classifier(images)
    return float((logits.argmax(1) == torch.from_numpy(split.labels)).float().mean())


def _array(images: ImageSet, index: int) -> object:
    import numpy as np

    return np.asarray(images.open_image(index)).transpose(2, 0, 1).copy()


def test_the_student_beats_its_untrained_self_and_the_loss_falls(prepared: Prepared) -> None:
    losses: list[float] = []
    untrained = learn_stage(with_options(prepared, prompts=False, adapter=False), None)
    learned = learn_stage(prepared, None, progress=lambda epoch, loss: losses.append(loss))
    assert losses[-1] < 0.7 * losses[0]
    assert _accuracy(prepared, learned.classifier) > _accuracy(prepared, untrained.classifier) + 0.2


@pytest.mark.parametrize("part", ["prompts", "adapter"])
def test_each_part_learns_alone(prepared: Prepared, part: str) -> None:
    losses: list[float] = []
    other = {"prompts": "adapter", "adapter": "prompts"}[part]
    learned = learn_stage(with_options(prepared, **{other: False}), None, progress=lambda _, loss: losses.append(loss))
    assert getattr(learned.student, other) is None
    assert losses[-1] < losses[0]


def test_class_residuals_start_at_the_hand_written_embeddings_and_learn_alone(prepared: Prepared) -> None:
    alone = with_options(prepared, prompts=False, adapter=False, class_residual=True)
    student, _ = new_student(alone.source)
    torch.testing.assert_close(student.text_embedding(), student.hand_written)
    losses: list[float] = []
    learned = learn_stage(alone, None, progress=lambda _, loss: losses.append(loss))
    assert losses[-1] < losses[0]
    assert learned.student.class_residual is not None
    assert not learned.student.class_residual.requires_grad
    torch.testing.assert_close(learned.classifier.text_embedding.norm(dim=1), torch.ones(4))
    assert not torch.equal(learned.classifier.text_embedding, student.hand_written)


def test_class_residuals_are_taken_from_their_file(prepared: Prepared, tmp_path: Path) -> None:
    files, changed = RunFiles(folder=tmp_path / "run"), with_options(prepared, epochs=3, class_residual=True)
    first = learn_stage(changed, files)
    second = learn_stage(changed, files, progress=lambda *_: pytest.fail("learned again"))
    assert torch.equal(first.classifier.text_embedding, second.classifier.text_embedding)


@pytest.mark.parametrize(
    ("images", "options", "passes"),
    [(160, {}, 300), (1600, {}, 43), (160, {"steps": 50}, 50), (160, {"epochs": 7}, 7), (16, {"batch_size": 8}, 150)],
)
def test_epochs_follow_the_number_of_steps(images: int, options: dict[str, int], passes: int) -> None:
    assert LearnSection(**({"steps": 300, "batch_size": 256} | options)).passes(images) == passes


def test_zero_init_starts_at_the_quantized_model(prepared: Prepared) -> None:
    student, _ = new_student(prepared.source)
    features = prepared.features.student[0]
    torch.testing.assert_close(student.image_embedding(features), F.normalize(features, dim=-1))


def test_cached_features_are_those_of_the_quantized_encoder(prepared: Prepared) -> None:
    images = prepared.source.split.train
    batch = to_batch(
        torch.stack([torch.from_numpy(_array(images, i)) for i in range(4)]), prepared.source.model.preprocess
    )
    torch.testing.assert_close(prepared.calibrated.encoder(batch), prepared.features.student[0, :4])
    student, _ = new_student(prepared.source)
    section = prepared.source.recipe.learn
    labels, teacher = prepared.features.labels[:4], prepared.features.teacher[0, :4]
    features = (prepared.features.student[0, :4], prepared.calibrated.encoder(batch))
    cached, uncached = (
        batch_loss(student, Batch(student=f, teacher=teacher, labels=labels), section) for f in features
    )
    torch.testing.assert_close(cached, uncached)


class _Recomputed:
    """Features that are computed anew at each access: learning without the cache."""

    def __init__(self, encode: Callable[[Tensor], Tensor], views: Tensor) -> None:
        self.encode, self.views, self.calls = encode, views, 0
        self.shape = (*views.shape[:2], encode(views[0, :1]).shape[1])

    def __getitem__(self, at: tuple[Tensor, Tensor]) -> Tensor:
        self.calls += 1
        return self.encode(self.views[at])

    def flatten(self, start: int, end: int) -> Tensor:
        return self.encode(self.views.flatten(start, end))


def test_learning_from_cached_views_ends_where_recomputing_every_step_ends(
    toy_clip: LoadedModel, toy_images: Callable[[int], ImageSet], tmp_path: Path
) -> None:
    source = source_of(toy_clip, toy_images(12), views=3, epochs=4, batch_size=8, distillation=0.5)
    prepared = prepare(source, RunFiles(folder=tmp_path / "run"))
    images = pixels(source.split.train, toy_clip.preprocess)
    generator = torch.Generator().manual_seed(source.recipe.seed)
    augmented = [augment(images, generator=generator, flip=False) for _ in range(2)]
    views = torch.stack([to_batch(view, toy_clip.preprocess) for view in (images, *augmented)])
    visual = toy_clip.clip.visual
    student = _Recomputed(prepared.calibrated.encoder, views)
    teacher = _Recomputed(visual, views)
    uncached = replace(prepared, features=replace(prepared.features, student=student, teacher=teacher))
    expected, found = (learned_values(run, LearningRun()) for run in (uncached, prepared))
    assert student.calls == teacher.calls == 4 * 4  # epochs and batches
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-4)


def test_every_loss_term_changes_the_result(prepared: Prepared) -> None:
    base = learn_stage(with_options(prepared, epochs=3), None).classifier.text_embedding
    for term in ("distillation", "prompt_pull", "label_smoothing"):
        changed = learn_stage(with_options(prepared, epochs=3, **{term: 0.5}), None).classifier.text_embedding
        assert not torch.equal(base, changed), term


@pytest.mark.parametrize(
    "change",
    [
        {"feature_loss": 0.5},
        {"kl_temperature": 3.0, "distillation": 1.0},
        {"learn_ratio": True},
        {"zero_init": False},
        {"residual_ratio": 0.2},
        {"class_rate": 1e-2, "class_residual": True},
        {"weight_decay": 0.5},
        {"batch_size": 8},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_lever_of_the_image_side_changes_the_result(prepared: Prepared, change: dict[str, object]) -> None:
    reference = {key: value for key, value in change.items() if key in ("distillation", "class_residual")}
    results = []
    for options in (reference, change):
        student = learn_stage(with_options(prepared, epochs=3, prompts=False, **options), None).student
        logits = student.image_embedding(prepared.features.student[0]) @ student.text_embedding().T
        results.append(logits)
    assert not torch.equal(*results)


def test_a_learned_ratio_moves_and_a_held_one_stays(prepared: Prepared) -> None:
    for learned in (True, False):
        adapter = learn_stage(with_options(prepared, epochs=3, learn_ratio=learned), None).student.adapter
        assert adapter is not None
        assert (float(adapter.ratio) == pytest.approx(0.5, abs=1e-6)) is not learned


def test_the_context_is_saved_and_restored(prepared: Prepared, tmp_path: Path) -> None:
    files = RunFiles(folder=tmp_path / "run")
    first = learn_stage(prepared, files).student.prompts
    again = learn_stage(prepared, files, progress=lambda *_: pytest.fail("learned again")).student.prompts
    start = new_student(prepared.source)[0].prompts
    assert first is not None
    assert again is not None
    assert start is not None
    assert torch.equal(first.context, again.context)
    assert not torch.equal(first.context, start.context)


def test_the_learned_adapter_is_frozen_on_its_grid(prepared: Prepared) -> None:
    learned = learn_stage(with_options(prepared, epochs=3), None)
    adapter = learned.classifier.adapter
    assert adapter is not None
    assert adapter.down.calibrated
    assert not adapter.down.dynamic
    with running_in(adapter, Phase.FLOAT):
        exact = adapter(prepared.features.student[0])
    quantized = adapter(prepared.features.student[0])
    assert not torch.equal(exact, quantized)
    assert float(F.cosine_similarity(exact, quantized).min()) > 0.999
