"""Who is distilled from: nobody, the zero-shot model, or the same head on full-precision features; on what images."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from learning_runs import source_of, with_options
from torch import Tensor

from p4q_edge.learning.cached_features import Batch, CachedFeatures, Unlabelled
from p4q_edge.learning.losses import contrastive_loss, distillation_loss
from p4q_edge.learning.student import Student, Teacher
from p4q_edge.learning.training import LearningRun, batch_loss, learn_in_place
from p4q_edge.models.load import LoadedModel
from p4q_edge.recipe.schema import LearnSection
from p4q_edge.runtime.images.image_set import ImageSet
from p4q_edge.stages.pipeline import Prepared, cache_features, learn_stage, prepare
from p4q_edge.stages.run_files import RunFiles
from p4q_edge.stages.source import Source
from p4q_edge.stages.students import learn_student, learned_teacher

seeds = st.integers(0, 2**31)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def with_unlabelled(toy_clip: LoadedModel, toy_images: Callable[[int], ImageSet]) -> Source:
    """Eight images of each class with a label, and twelve without."""
    images = toy_images(20)
    source = source_of(toy_clip, images.subset(np.flatnonzero(np.arange(80) % 20 < 12)), epochs=4, teacher="learned")
    return replace(source, unlabelled=images.subset(np.flatnonzero(np.arange(80) % 20 >= 17)))


@given(seeds, st.floats(0.5, 4.0))
def test_the_divergence_is_nought_at_the_teacher_and_positive_elsewhere(seed: int, temperature: float) -> None:
    teacher, student = drawn(seed, 6, 5), drawn(seed + 1, 6, 5)
    same = distillation_loss(student_logits=teacher + 3.0, teacher_logits=teacher, temperature=temperature)
    torch.testing.assert_close(same, torch.tensor(0.0), atol=1e-5, rtol=0)
    assert distillation_loss(student_logits=student, teacher_logits=teacher, temperature=temperature) > 1e-4


@given(seeds)
def test_images_without_labels_count_for_the_teacher_alone(seed: int) -> None:
    text = F.normalize(drawn(seed, 3, 8), dim=-1)
    student = Student(prompts=None, adapter=None, hand_written=text, logit_scale=5.0)
    features, exact, labels = drawn(seed + 1, 6, 8), drawn(seed + 2, 6, 8), torch.tensor([0, 2, 1, 1])
    teacher = Teacher(text=F.normalize(drawn(seed + 3, 3, 8), dim=-1), adapter=None, logit_scale=5.0)
    batch = Batch(student=features, teacher=exact, labels=labels)
    section = LearnSection(teacher="learned", distillation=0.7)
    logits = 5.0 * F.normalize(features, dim=-1) @ text.T
    expected = contrastive_loss(logits=logits[:4], labels=labels)
    torch.testing.assert_close(batch_loss(student, batch, section), expected)
    taught = 5.0 * F.normalize(exact, dim=-1) @ teacher.text.T
    expected = expected + 0.7 * distillation_loss(student_logits=logits, teacher_logits=taught)
    torch.testing.assert_close(batch_loss(student, batch, section, teacher), expected)


def test_the_zero_shot_teacher_is_the_hand_written_classifier_whatever_the_features_length() -> None:
    text = F.normalize(drawn(0, 3, 8), dim=-1)
    teacher = Teacher.zero_shot(Student(prompts=None, adapter=None, hand_written=text, logit_scale=7.0))
    features = drawn(1, 4, 8)
    expected = 7.0 * F.normalize(features, dim=-1) @ text.T
    torch.testing.assert_close(teacher.logits(features), expected)
    torch.testing.assert_close(teacher.logits(9.0 * features), expected)


def test_the_learned_teacher_is_the_same_head_on_full_precision_features(prepared: Prepared) -> None:
    prepared = with_options(prepared, epochs=5, class_residual=True, teacher="learned")
    source, features = prepared.source, prepared.features
    teacher = learned_teacher(source, features, LearningRun())
    alone = with_options(prepared, teacher="none").source
    head = learn_student(alone, replace(features, student=features.teacher))
    exact = features.teacher[0]
    with torch.no_grad():
        expected = source.model.logit_scale * head.image_embedding(exact) @ head.text_embedding().T
    torch.testing.assert_close(teacher.logits(exact), expected)
    assert not torch.equal(features.teacher, features.student)
    shares = [float((one.argmax(1) == features.labels).float().mean()) for one in (expected, _zero_shot(source, exact))]
    assert shares[0] > shares[1]


def _zero_shot(source: Source, features: Tensor) -> Tensor:
    from p4q_edge.stages.students import hand_written_embeddings

    return F.normalize(features, dim=-1) @ hand_written_embeddings(source).T


@pytest.mark.parametrize("teacher", ["learned", "zero-shot"])
def test_a_teacher_changes_what_is_learned(prepared: Prepared, teacher: str) -> None:
    prepared = with_options(prepared, epochs=3)
    plain, taught, older = (
        learn_stage(with_options(prepared, **options), None).classifier.text_embedding
        for options in ({}, {"teacher": teacher}, {"distillation": 1.0})
    )
    assert not torch.equal(plain, taught)
    assert torch.equal(taught, older) == (teacher == "zero-shot")  # what a recipe of an earlier version means


def test_a_learned_teacher_must_be_there() -> None:
    student = Student(prompts=None, adapter=None, hand_written=torch.eye(3), logit_scale=1.0)
    features = CachedFeatures(student=drawn(0, 1, 3, 3), teacher=drawn(0, 1, 3, 3), labels=torch.arange(3))
    with pytest.raises(ValueError, match=r"expected the learned teacher that learn\.teacher names, got none"):
        learn_in_place(student, features, LearnSection(prompts=False, teacher="learned"), seed=0, run=LearningRun())


def test_images_without_labels_are_cached_by_both_towers_and_learned_from(
    with_unlabelled: Source, tmp_path: Path
) -> None:
    source = with_unlabelled
    prepared = prepare(source, RunFiles(folder=tmp_path))
    found = prepared.features.unlabelled
    assert found is not None
    assert found.student.shape == found.teacher.shape == (12, 32)
    held = cache_features(source, prepared.calibrated.encoder).unlabelled
    assert held is not None
    assert torch.equal(held.student, found.student)
    assert torch.equal(held.teacher, found.teacher)
    fewer = prepared.features.of_images(torch.arange(5))
    assert fewer.unlabelled is found
    without = replace(prepared, features=replace(prepared.features, unlabelled=None))
    texts = [learn_stage(one, None).classifier.text_embedding for one in (prepared, without)]
    assert not torch.equal(*texts)
    unheard = [with_options(one, teacher="none") for one in (prepared, without)]
    texts = [learn_stage(one, None).classifier.text_embedding for one in unheard]
    assert torch.equal(*texts)


def test_other_images_without_labels_are_another_run(with_unlabelled: Source, tmp_path: Path) -> None:
    files = RunFiles(folder=tmp_path)
    first = learn_stage(prepare(with_unlabelled, files), files)
    stored = {path.name for path in files.features.glob("*.rows")}
    assert {name.split("-")[0] for name in stored} == {"student", "teacher", "unlabelledstudent", "unlabelledteacher"}
    assert with_unlabelled.unlabelled is not None
    others = replace(with_unlabelled, unlabelled=with_unlabelled.unlabelled.subset(range(9)))
    second = learn_stage(prepare(others, files), files)
    assert second.key != first.key
    kept = {path.name for path in files.features.glob("*.rows")} & stored
    assert {name.split("-")[0] for name in kept} == {"student", "teacher"}
    assert learn_stage(prepare(with_unlabelled, files), files).key == first.key


@pytest.mark.parametrize("teacher_seen", [False, True])
def test_an_interrupted_run_with_a_teacher_goes_on_to_the_same_numbers(
    with_unlabelled: Source, tmp_path: Path, teacher_seen: bool
) -> None:
    def stop(epoch: int, loss: float) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    files = RunFiles(folder=tmp_path)
    prepared = prepare(with_unlabelled, files)
    whole = learn_stage(prepared, None)
    with pytest.raises(KeyboardInterrupt):
        learn_stage(prepared, files, progress=stop)
    assert files.teacher.is_file()
    if not teacher_seen:
        files.teacher.unlink()
    epochs: list[int] = []
    resumed = learn_stage(prepared, files, progress=lambda epoch, _: epochs.append(epoch))
    assert epochs == [3, 4]
    for name, value in whole.student.state_dict().items():
        torch.testing.assert_close(resumed.student.state_dict()[name], value, atol=0, rtol=0)


@given(seeds)
def test_a_batch_has_the_images_without_labels_behind_the_others(seed: int) -> None:
    views, more = drawn(seed, 2, 5, 3), drawn(seed + 1, 7, 3)
    features = CachedFeatures(
        student=views, teacher=-views, labels=torch.arange(5), unlabelled=Unlabelled(student=more, teacher=-more)
    )
    chosen = torch.tensor([3, 1])
    batch = features.batch(torch.tensor([0, 1]), chosen, torch.tensor([6, 0, 6]), torch.device("cpu"))
    assert torch.equal(batch.student, torch.stack([views[0, 3], views[1, 1], more[6], more[0], more[6]]))
    assert torch.equal(batch.teacher, -batch.student)
    assert batch.labels.tolist() == [3, 1]
    exact = features.in_full_precision()
    assert torch.equal(exact.student, features.teacher)
    assert exact.unlabelled is None


def test_sections_without_a_teacher_have_no_weight() -> None:
    for section, by, weight in (
        (LearnSection(), "none", 0.0),
        (LearnSection(distillation=0.3), "zero-shot", 0.3),
        (LearnSection(teacher="learned"), "learned", 1.0),
        (LearnSection(teacher="none"), "none", 0.0),
    ):
        assert (section.taught_by, section.teacher_weight) == (by, weight)
        assert msgspec.convert(msgspec.to_builtins(section), LearnSection) == section
