"""Learning that diverges ends at once, with the step, the loss and the key to lower; nothing is stored."""

from pathlib import Path

import pytest
import torch

from p4q_edge.learning.cached_features import CachedFeatures
from p4q_edge.learning.student import make_student
from p4q_edge.learning.training import LearningRun, learn_in_place
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.recipe.schema import LearnSection
from p4q_edge.runtime.errors import InputError


@pytest.mark.parametrize("key", ["class_rate", "adapter_rate"])
def test_a_diverging_rate_is_named(key: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 12, 8, generator=generator)
    text = torch.nn.functional.normalize(torch.randn(3, 8, generator=generator), dim=-1)
    section = LearnSection(prompts=False, steps=12, batch_size=4, **{key: 1e30})
    student = make_student(
        prompts=None,
        hand_written=text,
        logit_scale=10.0,
        section=section,
        adapter_scheme=QuantScheme(),
        generator=generator,
    )
    cached = CachedFeatures(student=features, teacher=features, labels=torch.arange(12) % 3)
    run = LearningRun(checkpoint=tmp_path / "learning.safetensors", key="k")
    with pytest.raises(InputError, match=rf"learning diverged: the loss is (nan|inf) in step \d+\. Lower learn\.{key}"):
        learn_in_place(student, cached, section, seed=0, run=run)
