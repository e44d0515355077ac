"""Prompts and losses: each shortcut equals the plain way."""

import pytest
import torch
import torch.nn.functional as F

from p4q_edge.calibration.text import calibrate_text
from p4q_edge.learning.losses import cosine_loss, distillation_loss
from p4q_edge.models.load import LoadedModel
from p4q_edge.models.prompts import PromptLearner, fill, initial_context, template_embeddings
from p4q_edge.models.text_tower import TextTower
from p4q_edge.quant.linear import quant_linears
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.runtime.errors import UsageError

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
