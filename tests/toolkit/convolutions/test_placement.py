"""Which convolutions are chosen, and which tensors between them get a grid."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from p4q_edge.models import to_deployment_form
from p4q_edge.quant.dataflow import Flow, trace_flow
from p4q_edge.quant.placement import choose_convolutions, choose_grids
from p4q_edge.quant.scheme import QuantScheme

Tower = Callable[[str], nn.Module]


@pytest.fixture
def flow_of(tower: Tower, batch: Tensor) -> Callable[[str], tuple[nn.Module, Flow]]:
    """Makes a tower in its deployment form, and its trace."""

    def make(name: str) -> tuple[nn.Module, Flow]:
        model = tower(name)
        to_deployment_form(model, batch)
        return model, trace_flow(model, batch)

    return make


FlowOf = Callable[[str], tuple[nn.Module, Flow]]


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {path: m for path, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def test_off_chooses_none(flow_of: FlowOf) -> None:
    assert choose_convolutions(*flow_of("timm_resnet"), QuantScheme(convolutions="off")) == []


def test_stem_and_depthwise_are_switches(flow_of: FlowOf) -> None:
    model, flow = flow_of("padded")
    every = convolutions(model)
    plain = choose_convolutions(model, flow, QuantScheme())
    assert plain
    assert all(every[path].groups == 1 and every[path].in_channels >= 16 for path in plain)
    with_stem = choose_convolutions(model, flow, QuantScheme(stem=True))
    (stem,) = set(with_stem) - set(plain)
    assert every[stem].in_channels == 3
    added = set(choose_convolutions(model, flow, QuantScheme(depthwise=True))) - set(plain)
    assert added
    assert all(every[path].groups == every[path].in_channels for path in added)


def test_squeeze_and_excite_is_never_chosen(flow_of: FlowOf) -> None:
    model, flow = flow_of("fastvit")
    inside = [path for path in convolutions(model) if ".se." in path]
    chosen = choose_convolutions(model, flow, QuantScheme(stem=True, depthwise=True))
    assert inside
    assert not set(inside) & set(chosen)


def test_patterns_keep_convolutions_in_float(flow_of: FlowOf) -> None:
    model, flow = flow_of("timm_resnet")
    kept = choose_convolutions(model, flow, QuantScheme(keep_float=("layer2.*",)))
    assert kept
    assert not any(path.startswith("layer2.") for path in kept)


def test_a_residual_block_of_clip(flow_of: FlowOf) -> None:
    """Behind the last activation for both readers, at the shortcut's convolution, and before each pool."""
    model, flow = flow_of("resnet")
    points = choose_grids(flow, choose_convolutions(model, flow, QuantScheme()))
    found = {(point.producer, point.via) for point in points}
    assert {
        ("layer1.0.act3", "input"),
        ("layer1.0.downsample.0", "output"),
        ("layer2.0.act2", "pooled"),
        ("layer2.0.act3", "input"),
    } <= found
    assert not any(point.producer.endswith((".conv3", ".act1")) for point in points)


def test_convolutions_behind_a_max_pool_share_its_scale(flow_of: FlowOf, batch: Tensor) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 16, 3)
            self.act = nn.ReLU()
            self.pool = nn.MaxPool2d(2)
            self.second = nn.Conv2d(16, 16, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.second(self.pool(self.act(self.first(x))))
            return result

    model = Pooled().eval()
    flow = trace_flow(model, batch)
    (point,) = choose_grids(flow, choose_convolutions(model, flow, QuantScheme()))
    assert (point.producer, point.conv, point.via, point.sharing) == ("act", "second", "pooled", ("second",))


class Read(nn.Module):
    """A tensor that a convolution, an addition, and possibly something else read."""

    def __init__(self, *, stranger: bool, twice: bool = False) -> None:
        super().__init__()
        self.stranger, self.twice = stranger, twice
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.act = nn.ReLU()
        self.second = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        z = self.second(y) + y
        if self.twice:
            z = self.act(z)
        return z * y.mean() if self.stranger else z


@pytest.mark.parametrize(("options", "count"), [({}, 1), ({"stranger": True}, 0), ({"twice": True}, 0)])
def test_no_grid_where_another_operator_reads_the_tensor(batch: Tensor, options: dict[str, bool], count: int) -> None:
    model = Read(**{"stranger": False, **options}).eval()
    flow = trace_flow(model, batch)
    chosen = choose_convolutions(model, flow, QuantScheme())
    assert chosen == ["second"]
    assert len(choose_grids(flow, chosen)) == count


def test_a_convolution_that_runs_twice_stays_in_float(batch: Tensor) -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), conv, conv).eval()
    assert choose_convolutions(model, trace_flow(model, batch), QuantScheme()) == []


def test_a_trace_has_one_maker_for_what_was_changed_in_place(batch: Tensor) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 16, 3, padding=1)
            self.act = nn.ReLU(inplace=True)
            self.second = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.act(self.first(x))
            out: Tensor = self.second(y)
            out += y
            return out

    with torch.no_grad():
        flow = trace_flow(InPlace().eval(), batch)
    (point,) = choose_grids(flow, ["second"])
    assert point.producer == "act"
