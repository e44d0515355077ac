"""Prompts that are learned alone first, and that start at the templates' embeddings."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from learning_runs import with_options

from p4q_edge.learning.student import Student
from p4q_edge.models.prompts import PromptLearner
from p4q_edge.recipe.schema import LearnSection
from p4q_edge.runtime.errors import InputError
from p4q_edge.stages.learning_log import held_out_top1
from p4q_edge.stages.pipeline import Prepared, learn_stage
from p4q_edge.stages.run_files import RunFiles
from p4q_edge.stages.students import measure_text, new_student

PHASE = {"epochs": 4, "batch_size": 16, "prompt_steps": 5, "prompt_rate": 2e-2}
"""Two steps an epoch over the toy's 32 images, so that three epochs make five steps."""


def test_a_phase_of_its_own_comes_first_at_its_own_rate(prepared: Prepared) -> None:
    seen: list[int] = []
    learned = learn_stage(with_options(prepared, **PHASE), None, progress=lambda epoch, _: seen.append(epoch))
    assert seen == [point.epoch for point in learned.curve] == [1, 2, 3, 4, 5, 6, 7]
    assert [sorted(point.rates) for point in learned.curve] == [["context"]] * 3 + [["adapter", "context"]] * 4
    assert learned.curve[0].rates["context"] == 2e-2
    assert learned.curve[3].rates == {"context": 5e-3, "adapter": 1e-2}
    assert learned.curve[2].loss < learned.curve[0].loss
    joint = learn_stage(with_options(prepared, epochs=4, batch_size=16), None)
    assert not torch.equal(learned.classifier.text_embedding, joint.classifier.text_embedding)


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6])
def test_a_run_that_is_interrupted_in_either_phase_goes_on_to_the_same_numbers(
    prepared: Prepared, tmp_path: Path, stop: int
) -> None:
    def interrupt(epoch: int, loss: float) -> None:
        if epoch == stop:
            raise KeyboardInterrupt

    prepared, files = with_options(prepared, **PHASE, anchor_prompts=True), RunFiles(folder=tmp_path / "run")
    whole = learn_stage(prepared, None)
    with pytest.raises(KeyboardInterrupt):
        learn_stage(prepared, files, progress=interrupt)
    seen: list[int] = []
    resumed = learn_stage(prepared, files, progress=lambda epoch, _: seen.append(epoch))
    assert seen == [*range(stop + 1, 8)]
    assert resumed.curve == whole.curve
    for name, value in whole.student.state_dict().items():
        torch.testing.assert_close(resumed.student.state_dict()[name], value, atol=0, rtol=0)
    assert torch.equal(resumed.classifier.text_embedding, whole.classifier.text_embedding)
    again = learn_stage(prepared, files, progress=lambda *_: pytest.fail("learned again"))
    assert torch.equal(again.classifier.text_embedding, whole.classifier.text_embedding)


def test_a_phase_that_diverges_names_its_own_rate(prepared: Prepared) -> None:
    with pytest.raises(InputError, match=r"learning diverged: .* Lower learn\.prompt_rate \(now 1e\+30\)"):
        learn_stage(with_options(prepared, **PHASE | {"prompt_rate": 1e30}), None)


def test_the_logged_curve_has_a_share_for_each_epoch_of_both_phases(prepared: Prepared) -> None:
    shares = held_out_top1(with_options(prepared, **PHASE), epochs=7)
    assert len(shares) == 7


@pytest.mark.parametrize("options", [{}, {"context_init": "", "num_context_tokens": 3}])
def test_anchored_prompts_start_at_the_templates(prepared: Prepared, options: dict[str, object]) -> None:
    anchored, free = (
        new_student(with_options(prepared, anchor_prompts=choice, **options).source)[0] for choice in (True, False)
    )
    with torch.no_grad():
        torch.testing.assert_close(anchored.text_embedding(), anchored.hand_written, atol=1e-6, rtol=0)
        torch.testing.assert_close(anchored.prompts_alone().text_embedding(), anchored.hand_written, atol=1e-6, rtol=0)
        assert (free.text_embedding() - free.hand_written).abs().max() > 1e-6 or not options
    learned = learn_stage(with_options(prepared, epochs=3, anchor_prompts=True, **options), None)
    moved = learned.classifier.text_embedding - learned.student.hand_written
    assert moved.abs().max() > 1e-3


def test_anchored_prompts_of_a_quantized_text_tower_start_at_the_float_templates(prepared: Prepared) -> None:
    source = with_options(prepared, anchor_prompts=True).source
    quantized = msgspec.structs.replace(source.recipe.quantization, text=True)
    source = replace(source, recipe=msgspec.structs.replace(source.recipe, quantization=quantized))
    student, tower = new_student(source)
    assert student.prompts is not None
    with torch.no_grad():
        torch.testing.assert_close(student.text_embedding(), student.hand_written, atol=1e-6, rtol=0)
        assert (student.prompts() - student.hand_written).abs().max() > 1e-4
        student.prompts.context += 0.5
        learned = student.prompts.context.clone()
        measure_text(source, student, tower)  # with other ranges, the start is another one
        assert torch.equal(student.prompts.context, learned)
        student.prompts.context.copy_(student.prompts.first)
        torch.testing.assert_close(student.text_embedding(), student.hand_written, atol=1e-6, rtol=0)


@given(st.integers(0, 2**31))
def test_the_anchored_embedding_is_the_templates_and_the_contexts_own_move(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hand, first, now = (F.normalize(torch.randn(3, 8, generator=generator), dim=-1) for _ in range(3))

    class Prompts(torch.nn.Module):
        context = torch.zeros(1)

        def forward(self) -> torch.Tensor:
            return now

        def at_first(self) -> torch.Tensor:
            return first

    student = Student(prompts=None, adapter=None, hand_written=hand, logit_scale=1.0)
    student.prompts = Prompts()  # type: ignore[assignment]
    student.anchor_to_templates()
    torch.testing.assert_close(student.text_embedding(), F.normalize(hand + now - first, dim=-1))


def test_what_a_context_was_at_first_leaves_it_as_it_is(prepared: Prepared) -> None:
    student, _ = new_student(prepared.source)
    prompts = student.prompts
    assert isinstance(prompts, PromptLearner)
    with torch.no_grad():
        start = prompts()
        prompts.context += 0.5
        moved = prompts()
    assert torch.equal(prompts.at_first(), start)
    with torch.no_grad():
        assert torch.equal(prompts(), moved)
    assert not torch.equal(moved, start)


def test_passes_of_the_phase_are_whole_epochs() -> None:
    section = LearnSection(prompt_steps=5, batch_size=16)
    assert [section.prompt_passes(images) for images in (32, 16, 17, 100)] == [3, 5, 3, 1]
    assert LearnSection().prompt_passes(32) == 0
