"""What a bundle says of its bits: those of an adapter count where there is one."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from torch import nn

from p4q_edge.recipe import QuantizationSection
from p4q_edge.stages import export
from p4q_edge.stages.export import precision_of
from p4q_edge.stages.pipeline import Learned


@pytest.mark.parametrize(
    ("adapter", "adapter_bits", "expected"),
    [(True, 8, "executed"), (True, 4, "carried"), (False, 8, "executed"), (False, 4, "executed")],
)
def test_bits_of_an_adapter_count_where_there_is_one(
    adapter: bool, adapter_bits: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "integer_mac_share", lambda *_, **__: None)
    classifier = nn.Module()
    classifier.adapter = nn.Identity() if adapter else None
    recipe = SimpleNamespace(quantization=QuantizationSection(adapter_bits=adapter_bits))
    prepared = SimpleNamespace(
        source=SimpleNamespace(recipe=recipe), calibrated=SimpleNamespace(in_float=(), encoder=nn.Module())
    )
    learned = cast("Any", SimpleNamespace(prepared=prepared, classifier=classifier))
    assert precision_of(cast("Learned", learned)).execution == expected
