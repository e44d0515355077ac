"""Shortcuts through the text tower: cut prompts, a shared prefix and recomputed chunks equal the plain way."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from p4q_edge.calibration.text import calibrate_text
from p4q_edge.models.load import LoadedModel
from p4q_edge.models.prompts import PromptLearner, kept_bytes, template_embeddings
from p4q_edge.models.team import ALONE, Team
from p4q_edge.models.text_tower import TextTower, encoder_of
from p4q_edge.quant.scheme import QuantScheme

WORDS = ("cat", "dog", "very", "old", "bird", "grey")
CLASSES = ("cat", "very old dog", "bird", "very very old grey bird", "old cat", "dog")


def _learner(
    clip: LoadedModel,
    names: tuple[str, ...] = CLASSES,
    *,
    context: int = 3,
    scheme: QuantScheme = QuantScheme(),  # noqa: B008 (frozen)
) -> PromptLearner:
    tower = TextTower(copy.deepcopy(clip.clip), scheme)
    vectors = torch.randn(context, tower.width, generator=torch.Generator().manual_seed(1))
    learner = PromptLearner(tower, clip.tokenizer, names, context=vectors)
    tower.double()
    return learner.double()


def _tower(learner: PromptLearner) -> TextTower:
    tower = learner.tower
    assert isinstance(tower, TextTower)
    return tower


def _plain(learner: PromptLearner) -> Tensor:
    """Class embeddings of whole prompts, padded to the context length."""
    tower, whole = _tower(learner), learner.prompts()
    missing = tower.context_length - whole.shape[1]
    padding = tower.embed(torch.zeros(len(whole), missing, dtype=torch.long))
    return F.normalize(tower(torch.cat([whole, padding], dim=1), learner.end), dim=-1)


def _with_gradient(learner: PromptLearner, embedding: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(2), dtype=embedding.dtype)
    (gradient,) = torch.autograd.grad((embedding * weights).sum(), learner.context)
    return embedding.detach(), gradient


def _assert_equal_to_plain(learner: PromptLearner) -> None:
    expected = _with_gradient(learner, _plain(learner))
    found = _with_gradient(learner, learner())
    torch.testing.assert_close(found[0], expected[0], atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(found[1], expected[1], atol=1e-11, rtol=1e-8)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join), min_size=1, max_size=7),
    context=st.integers(1, 8),
    share=st.booleans(),
    budget_kib=st.sampled_from((1, 150, 100_000)),
    parts=st.integers(0, 7),
)
def test_every_shortcut_equals_whole_padded_prompts(
    toy_clip: LoadedModel, names: list[str], context: int, share: bool, budget_kib: int, parts: int
) -> None:
    learner = _learner(toy_clip, tuple(names), context=context)
    learner.share_prefix = share
    learner.limit_memory(budget_kib << 10)
    if parts:
        learner._make_chunks(min(parts, len(names)))
    _assert_equal_to_plain(learner)


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_the_shortcuts_hold_in_a_quantized_tower_with_its_float_start_token(
    toy_clip: LoadedModel, share: bool, products: bool
) -> None:
    learner = _learner(toy_clip, scheme=QuantScheme(quantize_attention=products))
    assert learner.share_prefix
    float_embedding = learner().detach()
    calibrate_text(_tower(learner), learner)
    assert learner.share_prefix
    learner.share_prefix = share
    _assert_equal_to_plain(learner)
    assert not torch.allclose(learner().detach(), float_embedding, atol=1e-6)
    assert all(module.float_prefix == 1 for module in _tower(learner)._quantizing())


def test_quantizing_the_start_token_would_be_seen(toy_clip: LoadedModel) -> None:
    learner = _learner(toy_clip)
    calibrate_text(_tower(learner), learner)
    exempt = learner().detach()
    for module in _tower(learner)._quantizing():
        module.float_prefix = 0
    assert float((learner().detach() - exempt).abs().max()) > 1e-6


def test_a_tower_of_two_directions_reads_whole_prompts_and_may_be_chunked(
    clip_with_text: Callable[..., LoadedModel],
) -> None:
    learner = _learner(clip_with_text(no_causal_mask=True))
    assert not learner.share_prefix
    assert learner.prompts().shape[1] == _tower(learner).context_length
    whole = _with_gradient(learner, learner())
    learner.limit_memory(400 << 10)
    assert any(chunk.recompute for chunk in learner.chunks)
    chunked = _with_gradient(learner, learner())
    torch.testing.assert_close(chunked, whole, atol=1e-12, rtol=1e-9)


def test_a_memory_limit_bounds_what_a_step_keeps(toy_clip: LoadedModel) -> None:
    learner = _learner(toy_clip, tuple(f"{'very ' * (i % 4)}old cat" for i in range(40)))
    whole = kept_bytes(learner)
    learner.limit_memory(1)  # all are computed twice
    least = kept_bytes(learner)
    limit = (whole - least) // 2
    learner.limit_memory(limit)
    assert [chunk.recompute for chunk in learner.chunks] == [False] * 3 + [True] * (len(learner.chunks) - 3)
    assert least < kept_bytes(learner) < least + limit
    assert sorted(torch.cat([chunk.classes for chunk in learner.chunks]).tolist()) == list(range(40))
    learner.limit_memory(2 * whole)
    assert len(learner.chunks) == 1
    assert not learner.chunks[0].recompute


def test_each_of_several_processes_keeps_what_one_may_keep(toy_clip: LoadedModel) -> None:
    learner = _learner(toy_clip, tuple(f"{'very ' * (i % 4)}old cat" for i in range(40)))
    learner.limit_memory(kept_bytes(learner) // 3)
    number = len(learner.chunks)
    kept = sum(not chunk.recompute for chunk in learner.chunks)
    assert 0 < kept < number
    learner.divide(Team(rank=1, size=2))
    assert learner.team.size == 2
    assert [chunk.recompute for chunk in learner.chunks] == [place >= 2 * kept for place in range(number)]
    learner.divide(Team(rank=1, size=number + 1))  # too few parts: each process runs all
    assert learner.team is ALONE
    assert sum(not chunk.recompute for chunk in learner.chunks) == kept


def test_classes_are_divided_into_parts_of_as_many_tokens(toy_clip: LoadedModel) -> None:
    few = _learner(toy_clip, CLASSES)
    assert len(few.chunks) == 1
    many = _learner(toy_clip, tuple(f"{'very ' * (i % 4)}old cat {i}" for i in range(80)))
    tokens = [sum(len(classes) * length for classes, length in chunk.runs) for chunk in many.chunks]
    assert len(tokens) > 2
    assert max(tokens) <= min(tokens) + 24
    assert sorted(torch.cat([chunk.classes for chunk in many.chunks]).tolist()) == list(range(80))


def test_templates_are_encoded_without_their_padding(toy_clip: LoadedModel) -> None:
    templates = ["a photo of a {}.", "the {}"]
    prompts = {"bird": ["a bird in the sky", "my bird", "grey"]}
    own, ours = (
        template_embeddings(encode, toy_clip.tokenizer, CLASSES, templates=templates, class_prompts=prompts)
        for encode in (toy_clip.clip.encode_text, encoder_of(toy_clip.clip))
    )
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-5)
