"""Prompts, losses and learning: each shortcut equals the plain way, and learning really learns."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from p4q_edge.calibration.text import calibrate_text
from p4q_edge.data.augmentation import augment
from p4q_edge.data.few_shot import make_split
from p4q_edge.data.image_set import ImageSet, pixels
from p4q_edge.learning import checkpoint as checkpoints
from p4q_edge.learning.losses import cosine_loss, distillation_loss
from p4q_edge.learning.training import LearningRun, batch_loss, learn
from p4q_edge.models.load import LoadedModel, to_batch
from p4q_edge.models.prompts import PromptLearner, fill, initial_context, template_embeddings
from p4q_edge.models.text_tower import TextTower
from p4q_edge.quant.linear import Phase, quant_linears, running_in
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.recipe.schema import DataSection, LearnSection, ModelSection, QuantizationSection, Recipe
from p4q_edge.runtime.errors import CorruptArtifactError, UsageError
from p4q_edge.stages.pipeline import Prepared, RunFiles, Source, learn_stage, new_student, prepare

NAMES = ("cat", "small dog", "an exceedingly long name of a bird", "fox", "house")


@pytest.fixture
def tower(toy_clip: LoadedModel) -> TextTower:
    return TextTower(toy_clip.clip, QuantScheme())


def _learner(tower: TextTower, toy_clip: LoadedModel, words: str = "a photo of a") -> PromptLearner:
    context = initial_context(
        tower, toy_clip.tokenizer, words=words, num_tokens=0, generator=torch.Generator().manual_seed(0)
    )
    return PromptLearner(tower, toy_clip.tokenizer, NAMES, context=context)


def test_the_text_tower_equals_open_clip(tower: TextTower, toy_clip: LoadedModel) -> None:
    tokens = toy_clip.tokenizer(["a photo of a cat.", "dog", ""])
    torch.testing.assert_close(tower.encode(tokens), toy_clip.clip.encode_text(tokens), atol=1e-5, rtol=1e-5)


def test_context_from_words_gives_the_hand_written_embeddings(tower: TextTower, toy_clip: LoadedModel) -> None:
    expected = template_embeddings(toy_clip.clip.encode_text, toy_clip.tokenizer, NAMES, templates=["a photo of a {}."])
    torch.testing.assert_close(_learner(tower, toy_clip)(), expected, atol=1e-5, rtol=1e-4)


def test_template_embeddings_are_open_clips_zero_shot_weights(toy_clip: LoadedModel) -> None:
    from open_clip import build_zero_shot_classifier

    templates = ["a photo of a {}.", "the {}"]
    theirs = build_zero_shot_classifier(
        toy_clip.clip, toy_clip.tokenizer, NAMES, [lambda c, t=t: t.format(c) for t in templates], use_tqdm=False
    )
    ours = template_embeddings(toy_clip.clip.encode_text, toy_clip.tokenizer, NAMES, templates=templates)
    torch.testing.assert_close(ours, theirs.T, atol=1e-5, rtol=1e-4)


def test_cut_prompts_equal_full_prompts_bit_for_bit_and_in_gradient(tower: TextTower, toy_clip: LoadedModel) -> None:
    learner = _learner(tower, toy_clip)
    learner.share_prefix = False
    learner().sum().backward()
    cut_gradient = learner.context.grad
    learner.context.grad = None
    missing = tower.context_length - learner.prompts().shape[1]
    assert missing > 0
    padding = tower.embed(torch.zeros(len(NAMES), missing, dtype=torch.long))
    full = F.normalize(tower(torch.cat([learner.prompts(), padding], dim=1), learner.end), dim=-1)
    torch.testing.assert_close(learner(), full, atol=1e-6, rtol=1e-6)
    full.sum().backward()
    torch.testing.assert_close(cut_gradient, learner.context.grad, atol=1e-5, rtol=1e-4)


def test_a_shared_prefix_equals_whole_prompts(tower: TextTower, toy_clip: LoadedModel) -> None:
    learner = _learner(tower, toy_clip)
    weights = torch.randn(len(NAMES), 32, generator=torch.Generator().manual_seed(0))
    results = []
    for share in (True, False):
        learner.share_prefix, learner.context.grad = share, None
        embedding = learner()
        (embedding * weights).sum().backward()
        results.append((embedding.detach(), learner.context.grad))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-5, rtol=1e-4)


def test_the_context_is_registered_and_gets_a_gradient_through_a_quantized_tower(
    tower: TextTower, toy_clip: LoadedModel
) -> None:
    learner = _learner(tower, toy_clip)
    assert list(learner.state_dict()) == ["context", "start", "suffixes", "end"]
    plain = learner().detach()
    calibrate_text(tower, learner)
    embedding = learner()
    assert not torch.equal(embedding, plain)
    assert float(F.cosine_similarity(embedding.detach(), plain).min()) > 0.98
    embedding.square().matmul(torch.arange(32.0)).sum().backward()
    assert learner.context.grad is not None
    assert float(learner.context.grad.abs().min(dim=1).values.max()) > 0


def test_padding_and_start_token_stay_out_of_text_calibration(tower: TextTower, toy_clip: LoadedModel) -> None:
    learner = _learner(tower, toy_clip)
    calibrate_text(tower, learner)
    histogram = quant_linears(tower)["transformer.resblocks.0.attn.in_proj"].histogram
    assert histogram is not None
    tokens_seen = int(histogram.counts.sum()) // tower.width
    assert tokens_seen == int(learner.end.sum())  # each prompt up to its end, without its first token


def test_prompts_that_do_not_fit_name_the_class(tower: TextTower, toy_clip: LoadedModel) -> None:
    long = ("cat", "dog " * 30, "a", "b")
    with pytest.raises(UsageError, match=r"class name 'dog dog .* needs more than 24 tokens; shorten"):
        PromptLearner(tower, toy_clip.tokenizer, long, context=torch.zeros(4, 32))


def test_context_words_and_count_must_agree(tower: TextTower, toy_clip: LoadedModel) -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(UsageError, match="has 4 tokens, num_context_tokens is 16"):
        initial_context(tower, toy_clip.tokenizer, words="a photo of a", num_tokens=16, generator=generator)
    random = initial_context(tower, toy_clip.tokenizer, words="", num_tokens=16, generator=generator)
    assert random.shape == (16, 32)
    assert 0.01 < float(random.std()) < 0.03


def test_templates_need_a_place_for_the_name() -> None:
    assert fill("a {} here", "cat") == "a cat here"
    with pytest.raises(UsageError, match=r"has no \{\} for the class name"):
        fill("a photo", "cat")


def test_distillation_is_least_at_the_teachers_distribution() -> None:
    teacher = torch.tensor([[0.6, 0.4, 1e-9]]).log()
    student = torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.Adam([student], lr=0.1)
    for _ in range(800):
        optimizer.zero_grad()
        distillation_loss(student_logits=student, teacher_logits=teacher).backward()
        optimizer.step()
    torch.testing.assert_close(student.softmax(-1), torch.tensor([[0.6, 0.4, 0.0]]), atol=5e-3, rtol=0)
    assert float(distillation_loss(student_logits=teacher, teacher_logits=teacher)) == pytest.approx(0, abs=1e-6)
    assert float(distillation_loss(student_logits=torch.tensor([[1.0, 0, 0]]), teacher_logits=teacher)) > 0.1


def test_distillation_gradient_does_not_fade_with_temperature() -> None:
    gradients = []
    for temperature in (1.0, 4.0):
        student = torch.tensor([[0.1, 0.0, -0.1]], requires_grad=True)
        distillation_loss(
            student_logits=student, teacher_logits=torch.tensor([[0.2, 0.0, -0.2]]), temperature=temperature
        ).backward()
        gradients.append(float(student.grad.norm()))  # type: ignore[union-attr]
    assert gradients[1] == pytest.approx(gradients[0], rel=0.2)


def test_cosine_loss_is_zero_for_equal_rows() -> None:
    rows = F.normalize(torch.randn(3, 8), dim=-1)
    assert float(cosine_loss(embedding=rows, target=rows)) == pytest.approx(0, abs=1e-6)
    assert float(cosine_loss(embedding=rows, target=-rows)) == pytest.approx(2, abs=1e-5)


LEARN = {"epochs": 30, "context_rate": 5e-3, "adapter_rate": 1e-2, "class_residual": False}


def _source(toy: LoadedModel, images: ImageSet, **learn_options: object) -> Source:
    recipe = Recipe(
        seed=3,
        model=ModelSection(name="toy"),
        data=DataSection(train="toy", shots=8),
        quantization=QuantizationSection(),
        learn=msgspec.convert(LEARN | learn_options, LearnSection),
    )
    split = make_split(images, None, shots=8, seed=3, test_limit=0)
    return Source(
        recipe=recipe,
        model=toy,
        split=split,
        templates=("a photo of a {}.",),
        class_prompts={},
        train_digests=tuple(split.train.digests()),
    )


@pytest.fixture
def prepared(toy_clip: LoadedModel, toy_images: Callable[[int], ImageSet], tmp_path: Path) -> Prepared:
    return prepare(_source(toy_clip, toy_images(12)), RunFiles(folder=tmp_path / "run"))


def _with(prepared: Prepared, **learn_options: object) -> Prepared:
    recipe = prepared.source.recipe
    section = msgspec.structs.replace(recipe.learn, **learn_options)
    return replace(prepared, source=replace(prepared.source, recipe=msgspec.structs.replace(recipe, learn=section)))


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
    untrained = learn_stage(_with(prepared, prompts=False, adapter=False), None)
    learned = learn_stage(prepared, None, progress=lambda epoch, loss: losses.append(loss))
    assert losses[-1] < 0.7 * losses[0]
    assert _accuracy(prepared, learned.classifier) > _accuracy(prepared, untrained.classifier) + 0.2


@pytest.mark.parametrize("part", ["prompts", "adapter"])
def test_each_part_learns_alone(prepared: Prepared, part: str) -> None:
    losses: list[float] = []
    other = {"prompts": "adapter", "adapter": "prompts"}[part]
    learned = learn_stage(_with(prepared, **{other: False}), None, progress=lambda _, loss: losses.append(loss))
    assert getattr(learned.student, other) is None
    assert losses[-1] < losses[0]


def test_class_residuals_start_at_the_hand_written_embeddings_and_learn_alone(prepared: Prepared) -> None:
    alone = _with(prepared, prompts=False, adapter=False, class_residual=True)
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
    files, changed = RunFiles(folder=tmp_path / "run"), _with(prepared, epochs=3, class_residual=True)
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
    cached = batch_loss(student, prepared.features.student[0, :4], teacher, labels, section)
    uncached = batch_loss(student, prepared.calibrated.encoder(batch), teacher, labels, section)
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
    source = _source(toy_clip, toy_images(12), views=3, epochs=4, batch_size=8, distillation=0.5)
    prepared = prepare(source, RunFiles(folder=tmp_path / "run"))
    images = pixels(source.split.train, toy_clip.preprocess)
    generator = torch.Generator().manual_seed(source.recipe.seed)
    augmented = [augment(images, generator=generator, flip=False) for _ in range(2)]
    views = torch.stack([to_batch(view, toy_clip.preprocess) for view in (images, *augmented)])
    visual = toy_clip.clip.visual
    student = _Recomputed(prepared.calibrated.encoder, views)
    teacher = _Recomputed(lambda batch: F.normalize(visual(batch), dim=-1), views)
    uncached = replace(prepared, features=replace(prepared.features, student=student, teacher=teacher))
    expected, found = (_learned_values(run, LearningRun()) for run in (uncached, prepared))
    assert student.calls == teacher.calls == 4 * 4  # epochs and batches
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-4)


def test_every_loss_term_changes_the_result(prepared: Prepared) -> None:
    base = learn_stage(_with(prepared, epochs=3), None).classifier.text_embedding
    for term in ("distillation", "prompt_pull", "label_smoothing"):
        changed = learn_stage(_with(prepared, epochs=3, **{term: 0.5}), None).classifier.text_embedding
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
        student = learn_stage(_with(prepared, epochs=3, prompts=False, **options), None).student
        logits = student.image_embedding(prepared.features.student[0]) @ student.text_embedding().T
        results.append(logits)
    assert not torch.equal(*results)


def test_a_learned_ratio_moves_and_a_held_one_stays(prepared: Prepared) -> None:
    for learned in (True, False):
        adapter = learn_stage(_with(prepared, epochs=3, learn_ratio=learned), None).student.adapter
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
    learned = learn_stage(_with(prepared, epochs=3), None)
    adapter = learned.classifier.adapter
    assert adapter is not None
    assert adapter.down.calibrated
    assert not adapter.down.dynamic
    with running_in(adapter, Phase.FLOAT):
        exact = adapter(prepared.features.student[0])
    quantized = adapter(prepared.features.student[0])
    assert not torch.equal(exact, quantized)
    assert float(F.cosine_similarity(exact, quantized).min()) > 0.999


def _learned_values(prepared: Prepared, run: LearningRun) -> dict[str, Tensor]:
    student, _ = new_student(prepared.source)
    learn(student, prepared.features, prepared.source.recipe.learn, seed=3, run=run)
    return student.state_dict()


def _interrupt_at(stop: int, kind: type[BaseException]) -> Callable[[int, float], None]:
    def progress(epoch: int, loss: float) -> None:
        if epoch == stop:
            raise kind

    return progress


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("recompute", [False, True])
def test_an_interrupted_run_goes_on_to_the_same_numbers(
    toy_clip: LoadedModel,
    toy_images: Callable[[int], ImageSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    views: int,
    recompute: bool,
) -> None:
    prepared = prepare(_source(toy_clip, toy_images(12), views=views, epochs=12), RunFiles(folder=tmp_path / "run"))
    if recompute:  # the least limit of a recipe, 1 MiB, holds all of the toy
        limit = PromptLearner.limit_memory
        monkeypatch.setattr(PromptLearner, "limit_memory", lambda self, _: limit(self, 1))
    file = tmp_path / "learning.safetensors"
    whole = _learned_values(prepared, LearningRun())
    with pytest.raises(KeyboardInterrupt):
        _learned_values(prepared, LearningRun(checkpoint=file, key="k", progress=_interrupt_at(7, KeyboardInterrupt)))
    epochs: list[int] = []
    resumed = _learned_values(
        prepared, LearningRun(checkpoint=file, key="k", progress=lambda epoch, _: epochs.append(epoch))
    )
    assert epochs[0] == 8  # nothing whole was lost
    assert list(tmp_path.glob("*.tmp")) == []
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=0, rtol=0)


def test_a_checkpoint_of_another_run_is_not_resumed(prepared: Prepared, tmp_path: Path) -> None:
    file = tmp_path / "learning.safetensors"
    with pytest.raises(KeyboardInterrupt):
        _learned_values(prepared, LearningRun(checkpoint=file, key="k", progress=_interrupt_at(2, KeyboardInterrupt)))
    epochs: list[int] = []
    _learned_values(prepared, LearningRun(checkpoint=file, key="x", progress=lambda epoch, _: epochs.append(epoch)))
    assert epochs[0] == 1


def test_a_damaged_checkpoint_says_so(prepared: Prepared, tmp_path: Path) -> None:
    file = tmp_path / "learning.safetensors"
    file.write_bytes(b"no safetensors")
    with pytest.raises(CorruptArtifactError, match="delete it and run the command again"):
        _learned_values(prepared, LearningRun(checkpoint=file, key="k"))


def test_saves_are_spaced_but_the_last_is_always_written(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[Path] = []
    original = checkpoints.flush_checkpoint
    monkeypatch.setattr(
        checkpoints, "flush_checkpoint", lambda path, state: (writes.append(path), original(path, state))
    )
    _learned_values(prepared, LearningRun(checkpoint=tmp_path / "c.safetensors", key="k"))
    assert 2 <= len(writes) < prepared.source.recipe.learn.epochs


def test_stages_are_taken_from_their_files_when_nothing_changed(
    prepared: Prepared, toy_clip: LoadedModel, tmp_path: Path
) -> None:
    files = RunFiles(folder=tmp_path / "run")
    first = learn_stage(prepared, files)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = prepare(prepared.source, files)
    second = learn_stage(again, files, progress=lambda *_: pytest.fail("learned again"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before
    image = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    for left, right in zip(first.classifier(image), second.classifier(image), strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-6)


def test_a_changed_recipe_is_learned_again(prepared: Prepared, tmp_path: Path) -> None:
    files = RunFiles(folder=tmp_path / "run")
    learn_stage(prepared, files)
    epochs: list[int] = []
    learn_stage(_with(prepared, label_smoothing=0.1), files, progress=lambda epoch, _: epochs.append(epoch))
    assert epochs[0] == 1
