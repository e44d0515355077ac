"""The baseline of the published code: each defect has the consequence that is known of it, and our method has not."""

import json
from pathlib import Path

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p4q_edge.baselines import as_released
from p4q_edge.baselines.as_released import ClampedGrid, ReleasedLayer, search_grid, swapped_distillation
from p4q_edge.calibration.calibrate import calibrate_encoder
from p4q_edge.learning.cached_features import CachedFeatures
from p4q_edge.learning.losses import distillation_loss
from p4q_edge.models.adapter import Adapter
from p4q_edge.models.load import LoadedModel
from p4q_edge.models.prompts import PromptLearner, initial_context
from p4q_edge.models.text_tower import TextTower
from p4q_edge.quant import affine
from p4q_edge.quant.fake import fake_quantize
from p4q_edge.quant.linear import Phase, QuantLinear
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.recipe.defaults import demo_recipe
from p4q_edge.recipe.schema import QuantizationSection, Recipe
from p4q_edge.runtime.cli import main as cli


def released_recipe() -> Recipe:
    recipe = demo_recipe()
    learn = msgspec.structs.replace(
        recipe.learn, context_init="", num_context_tokens=4, zero_init=False, distillation=1.0, steps=4, views=1
    )
    data = msgspec.structs.replace(recipe.data, shots=4, test_limit=60)
    return msgspec.structs.replace(recipe, method="as-released", learn=learn, data=data)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("low", "high"), [(5.0, 6.0), (-6.0, -5.0)])
def test_a_channel_that_stays_away_from_zero_is_destroyed(low: float, high: float) -> None:
    x = torch.linspace(low, high, 100)
    theirs = ClampedGrid.from_range(x.min(), x.max(), 8).apply(x)
    assert (theirs - x).abs().min() > 3.9
    _, quant_max = affine.activation_range(8)
    scale = affine.scale_for(affine.amax_of(x, affine.PerTensor()), quant_max)
    ours = fake_quantize(x, scale, *affine.activation_range(8))
    assert (ours - x).abs().max() <= scale / 2


def test_a_channel_around_zero_is_kept() -> None:
    x = torch.linspace(-1, 3, 100)
    grid = ClampedGrid.from_range(x.min(), x.max(), 8)
    assert (grid.apply(x) - x).abs().max() <= grid.scale / 2 + 1e-6


def test_one_factor_shrinks_all_channels_and_the_last_batch_alone_chooses_it() -> None:
    narrow, wide = torch.rand(200, generator=generator()), torch.rand(200, generator=generator()) * 0.01
    outlier = torch.tensor([[1.0, 40.0]])
    batch = torch.cat([torch.stack([narrow, wide], 1), outlier])
    low, high = batch.amin(0), batch.amax(0)
    grid = search_grid(batch, low, high, 4)
    shares = grid.scale / ClampedGrid.from_range(low, high, 4).scale
    assert shares[0] == pytest.approx(float(shares[1]))
    layer = ReleasedLayer(F.linear, channels=-1).take(torch.eye(2), None)
    quiet = batch[:-1]
    for seen in (batch, quiet):
        layer(seen)
    layer.fix(8, 4)
    assert layer.grid is not None
    assert torch.equal(layer.grid.scale, search_grid(quiet, low[None], high[None], 4).scale)
    assert not torch.equal(layer.grid.scale[0], grid.scale)


def minimum_of(loss: str, teacher: Tensor) -> Tensor:
    logits = torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(3000):
        optimizer.zero_grad()
        function = swapped_distillation if loss == "theirs" else distillation_loss
        function(student_logits=logits, teacher_logits=teacher).backward()
        optimizer.step()
    return logits.detach().softmax(-1)[0]


def test_the_swapped_loss_wants_one_class_where_ours_wants_the_teacher() -> None:
    teacher = torch.tensor([[0.6, 0.4, 1e-9]]).log()
    torch.testing.assert_close(minimum_of("theirs", teacher), torch.tensor([1.0, 0.0, 0.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(minimum_of("ours", teacher), torch.tensor([0.6, 0.4, 0.0]), atol=1e-3, rtol=0)


def test_no_gradient_passes_a_quantized_layer() -> None:
    weight = torch.randn(4, 8, generator=generator())
    layer = ReleasedLayer(F.linear, channels=-1).take(weight, None)
    layer(torch.randn(16, 8, generator=generator()))
    layer.fix(8, 8)
    x = torch.randn(2, 8, generator=generator(), requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() == 0
    ours = QuantLinear(weight, None, QuantScheme())
    ours.dynamic, ours.phase = True, Phase.QUANTIZED
    x.grad = None
    ours(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().min() > 0


@pytest.mark.parametrize("text", [False, True])
def test_the_context_is_random_and_out_of_reach_of_learning(toy_clip: LoadedModel, text: bool) -> None:
    recipe = released_recipe()
    recipe = msgspec.structs.replace(recipe, quantization=msgspec.structs.replace(recipe.quantization, text=text))
    first = as_released.random_text_embedding(toy_clip, ("red", "green", "blue", "grey"), recipe)
    assert not first.requires_grad
    again = as_released.random_text_embedding(toy_clip, ("red", "green", "blue", "grey"), recipe)
    assert torch.equal(first, again)
    other = as_released.random_text_embedding(
        toy_clip, ("red", "green", "blue", "grey"), msgspec.structs.replace(recipe, seed=1)
    )
    assert not torch.equal(first, other)


def test_our_context_has_a_gradient(toy_clip: LoadedModel) -> None:
    tower = TextTower(toy_clip.clip, QuantScheme())
    context = initial_context(tower, toy_clip.tokenizer, words="", num_tokens=4, generator=generator())
    prompts = PromptLearner(tower, toy_clip.tokenizer, ("red", "green"), context=context)
    prompts()[0, 0].backward()
    assert prompts.context.grad is not None
    assert prompts.context.grad.abs().max() > 0


def levels(weight: Tensor) -> int:
    return max(len(torch.unique(row)) for row in weight.flatten(1))


def test_four_four_eight_narrows_the_patches_alone(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    encoder = as_released.quantize_encoder(toy_clip, toy_pixels, QuantizationSection(), patch_bits=4)
    layers = {name: m for name, m in encoder.named_modules() if isinstance(m, ReleasedLayer)}
    (patches,) = [name for name in layers if name.endswith("conv1")]
    assert levels(layers[patches].weight) <= 16
    assert all(levels(layer.weight) > 16 for name, layer in layers.items() if name != patches)
    assert not any(isinstance(m, nn.Linear | nn.Conv2d) for m in encoder.modules())


def test_uneven_channels_cost_it_the_features_and_us_little(toy_clip: LoadedModel, toy_pixels: Tensor) -> None:
    batch = as_released.to_batch(toy_pixels, toy_clip.preprocess)
    section = QuantizationSection()
    with torch.no_grad():
        exact = toy_clip.clip.visual(batch)  # type: ignore[operator]
        theirs, ours = (
            float((encoder(batch) - exact).norm() / exact.norm())
            for encoder in (
                as_released.quantize_encoder(toy_clip, toy_pixels, section),
                calibrate_encoder(toy_clip, toy_pixels, section.scheme()).encoder,
            )
        )
    assert ours < 0.05
    assert theirs > 0.5


def test_the_adapter_is_quantized_after_learning() -> None:
    recipe = released_recipe()
    features = CachedFeatures(
        student=torch.randn(1, 32, 16, generator=generator()),
        teacher=F.normalize(torch.randn(1, 32, 16, generator=generator()), dim=-1),
        labels=torch.arange(32) % 4,
    )
    text = F.normalize(torch.randn(4, 16, generator=generator()), dim=-1)
    adapter = as_released.learn_adapter(features, text, text, recipe=recipe, logit_scale=10.0)
    assert isinstance(adapter, Adapter)
    for layer in (adapter.down, adapter.up):
        assert isinstance(layer, ReleasedLayer)
        assert layer.grid is not None
        assert levels(layer.weight) <= 256


@pytest.mark.parametrize("command", ["build --engine {}.onnx", "learn -o {}.run", "calibrate -o {}.run"])
def test_it_is_never_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for module in ("from_recipe", "learn"):
        monkeypatch.setattr(f"p4q_edge.cli.{module}.choose_recipe", lambda _: released_recipe())
    assert cli.main(command.format(tmp_path / "out").split()) == 2
    error = capsys.readouterr().err
    assert "method 'as-released' is a baseline to compare with: its asymmetric grid has no engine" in error
    assert "p4q-edge learn --ablate methods" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_comparison_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("p4q_edge.cli.learn.choose_recipe", lambda _: released_recipe())
    words = ["learn", "--seeds", "0", "-o", str(tmp_path), "--json", "--ablate"]
    assert cli.main([*words, "methods"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    prompts = {"learned prompts (CoOp)", "learned prompts, the recipe's schedule"}
    assert set(rows) == {"zero-shot", *prompts, "as-released, PTQ", "as-released"}
    assert rows["as-released"]["precision"] == "W8A8 simulated"
    assert {row["n"] for row in rows.values()} == {60}
    assert rows["as-released"]["mean"] != rows["as-released, PTQ"]["mean"]
    assert cli.main([*words, "levers"]) == 2
    assert "method 'as-released' has no levers; expected --ablate methods, got levers" in capsys.readouterr().err
