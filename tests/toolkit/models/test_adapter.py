"""The adapter's scales are observed on any number of features, some at a time."""

import pytest
import torch

from p4q_edge.models import adapter as adapters
from p4q_edge.quant import QuantScheme


def frozen(features: torch.Tensor) -> adapters.Adapter:
    adapter = adapters.Adapter(
        16,
        QuantScheme(observer="minmax", weight_observer="minmax", headroom=1.0, fold_norm=False, fold_value=False),
        ratio=0.5,
        learn_ratio=False,
        zero_init=False,
        generator=torch.Generator().manual_seed(0),
    )
    adapter.freeze(features)
    return adapter


def test_features_in_blocks_give_the_same_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(100, 16, generator=torch.Generator().manual_seed(1))
    features[77] *= 5  # the widest lies in a later block
    whole = frozen(features)
    seen: list[int] = []
    forward = adapters.Adapter.forward
    monkeypatch.setattr(adapters.Adapter, "forward", lambda self, x: (seen.append(len(x)), forward(self, x))[1])
    monkeypatch.setattr(adapters, "FREEZE_ROWS", 32)
    parts = frozen(features)
    assert seen == [32, 32, 32, 4] * 2
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value)
    assert float(whole.down.input_scale) > 0
