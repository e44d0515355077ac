"""All stages on a device other than the CPU: nothing is left behind, and the results are the CPU's.

The device is `doubles.second_device`, which computes on the CPU and refuses what CUDA refuses. It shows where tensors
lie; it cannot show how a GPU rounds, which `test_on_gpu` does where there is one.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from learning_runs import source_of

from p4q_edge.evaluation.layer_debug import run_linears, sensitive_linears
from p4q_edge.learning.training import LearningRun, batch_loss, learn_in_place
from p4q_edge.models.compute import Compute
from p4q_edge.models.load import LoadedModel
from p4q_edge.quant.attention_products import AttentionProducts
from p4q_edge.quant.linear import QuantLinear
from p4q_edge.recipe.defaults import demo_recipe
from p4q_edge.recipe.schema import ComputeSection
from p4q_edge.runtime.errors import EnvironmentNotAbleError
from p4q_edge.runtime.images.image_set import ImageSet
from p4q_edge.stages.cross_validation import cross_validate
from p4q_edge.stages.export import export_bundle
from p4q_edge.stages.pipeline import Learned, learn_stage, prepare
from p4q_edge.stages.run_files import RunFiles
from p4q_edge.stages.source import Source, open_source
from p4q_edge.stages.students import new_student

from doubles.second_device import LeftOnCpuError, second_device

QUANTIZATION: dict[str, dict[str, object]] = {
    "default": {},
    "text": {"text": True, "quantize_attention": True},
    "searched": {
        "weight_bits": 4,
        "rotation": False,
        "scale_epochs": 1,
        "weight_rounding": "adaround",
        "max_cosine_loss": 0.05,
    },
    "observed": {"observer": "percentile", "weight_observer": "mse", "weight_rounding": "nearest"}
    | {"affine_correction": False, "bias_correction": True, "activation_gain": False},
    "limited": {"weight_bits": 3, "rotation": False, "max_top1_drop": 1.0, "observer": "minmax"},
}

"""Without the rotation, whose layers `torch.export` finds: it does not trace this device."""

SLOW = ("text", "searched", "limited")


@pytest.fixture
def device() -> Iterator[torch.device]:
    with second_device() as made:
        yield made


def _source(toy: LoadedModel, images: ImageSet, quantization: dict[str, object], **learn_options: object) -> Source:
    source = source_of(toy, images, **learn_options)
    section = msgspec.structs.replace(source.recipe.quantization, **quantization)
    return replace(source, recipe=msgspec.structs.replace(source.recipe, quantization=section))


def _on(source: Source, device: torch.device) -> Source:
    """The same source with a copy of its model on a device."""
    model = replace(source.model, clip=copy.deepcopy(source.model.clip)).on(Compute(device=device))
    return replace(source, model=model)


def _learned(source: Source, folder: Path) -> Learned:
    files = RunFiles(folder=folder)
    return learn_stage(prepare(source, files), files)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in QUANTIZATION]
)
def test_calibrating_learning_and_folding_give_what_the_cpu_gives(
    name: str,
    toy_clip: LoadedModel,
    toy_images: Callable[[int], ImageSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("p4q_edge.quant.rounding.STEPS", 8)
    source = _source(toy_clip, toy_images(4), QUANTIZATION[name], epochs=2, views=2, distillation=0.5, prompt_pull=0.1)
    expected = _learned(source, tmp_path / "cpu")
    with second_device() as device:
        found = _learned(_on(source, device), tmp_path / "other")
        assert found.classifier.text_embedding.device == device
        values = {name: value.cpu() for name, value in found.classifier.state_dict().items()}
        assert cross_validate(found.prepared) == cross_validate(expected.prepared)
        again = _learned(_on(source, device), tmp_path / "other")  # from its files
        images = source.stream(source.split.train)[:4]
        for one, other in zip(again.classifier(images.to(device)), found.classifier(images.to(device)), strict=True):
            assert torch.equal(one.cpu(), other.cpu())
    features = found.prepared.features
    torch.testing.assert_close(features.student, expected.prepared.features.student, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.teacher, expected.prepared.features.teacher, atol=1e-5, rtol=1e-5)
    for key, value in expected.classifier.state_dict().items():
        torch.testing.assert_close(values[key], value, atol=1e-4, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


def test_a_run_goes_on_on_another_device(
    toy_clip: LoadedModel, toy_images: Callable[[int], ImageSet], tmp_path: Path
) -> None:
    """From the CPU's calibration, features and checkpoint, to the CPU's numbers."""
    source = source_of(toy_clip, toy_images(6), epochs=8)
    whole = _learned(source, tmp_path / "whole")

    def stop(epoch: int, loss: float) -> None:
        if epoch == 5:
            raise KeyboardInterrupt

    files, epochs = RunFiles(folder=tmp_path / "run"), []
    with pytest.raises(KeyboardInterrupt):
        learn_stage(prepare(source, files), files, progress=stop)
    with second_device() as device:
        moved = learn_stage(prepare(_on(source, device), files), files, progress=lambda epoch, _: epochs.append(epoch))
        assert epochs == [6, 7, 8]
        values = {name: value.cpu() for name, value in moved.classifier.state_dict().items()}
    for key, value in whole.classifier.state_dict().items():
        torch.testing.assert_close(values[key], value, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_the_graph_of_a_run_on_another_device_is_that_of_the_cpu(tmp_path: Path) -> None:
    recipe = demo_recipe()
    recipe = msgspec.structs.replace(
        recipe,
        learn=msgspec.structs.replace(recipe.learn, steps=2),
        data=msgspec.structs.replace(recipe.data, shots=2, test_limit=8),
        export=msgspec.structs.replace(recipe.export, reference_images=8),
        compute=ComputeSection(device="cpu"),
    )
    source = open_source(recipe)
    bundle = export_bundle(_learned(source, tmp_path / "cpu"), tmp_path / "cpu.p4q")
    with second_device() as device:
        other = export_bundle(_learned(_on(source, device), tmp_path / "other"), tmp_path / "other.p4q")
    for kind in ("fp32", "fp16"):
        assert other.model(kind) == bundle.model(kind)
    assert other.golden().logits == pytest.approx(bundle.golden().logits, abs=1e-5)
    expected, found = bundle.reference(), other.reference()
    assert expected is not None
    assert found is not None
    assert found.embedding == pytest.approx(expected.embedding, abs=1e-5)


def test_layers_are_compared_wherever_the_module_lies(
    toy_clip: LoadedModel, toy_images: Callable[[int], ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # the device has no tensors of inference
    source = source_of(toy_clip, toy_images(6), epochs=1)
    images = source.stream(source.split.train)[:4].numpy()
    classifier = _learned(source, tmp_path / "cpu").classifier
    expected, ranked = run_linears(classifier, images), sensitive_linears(classifier, images)
    with second_device() as device:
        moved = _learned(_on(source, device), tmp_path / "cpu").classifier
        found = run_linears(moved, images)
        assert sensitive_linears(moved, images) == ranked
    for path, value in expected.outputs.items():
        assert found.outputs[path] == pytest.approx(value, abs=1e-5)


def _offset_on_the_cpu(linear: QuantLinear, x: torch.Tensor) -> torch.Tensor:
    return x + torch.zeros(x.shape[-1])


def _ones_on_the_cpu(self: AttentionProducts, weights: torch.Tensor) -> torch.Tensor:
    return weights * torch.ones(weights.shape)


@pytest.mark.parametrize(
    ("owner", "method", "fault"),
    [(QuantLinear, "gained", _offset_on_the_cpu), (AttentionProducts, "softmax_on_grid", _ones_on_the_cpu)],
)
def test_a_tensor_that_is_left_on_the_cpu_fails(
    owner: type,
    method: str,
    fault: Callable[..., object],
    toy_clip: LoadedModel,
    toy_images: Callable[[int], ImageSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
) -> None:
    """Two planted faults: without them the same run passes above."""
    monkeypatch.setattr(owner, method, fault)
    source = _on(_source(toy_clip, toy_images(3), QUANTIZATION["text"], epochs=1), device)
    with pytest.raises(LeftOnCpuError, match="expected all tensors on the second device, found one of shape"):
        _learned(source, tmp_path / "run")


def test_learning_keeps_less_where_memory_runs_out_with_the_same_gradient(
    toy_clip: LoadedModel,
    toy_images: Callable[[int], ImageSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    prepared = prepare(source_of(toy_clip, toy_images(6), epochs=2), RunFiles(folder=tmp_path / "run"))
    monkeypatch.setattr("p4q_edge.models.prompts.LEAST_KEPT_BYTES", 1 << 10)
    whole, few = new_student(prepared.source)[0], new_student(prepared.source)[0]
    learn_in_place(whole, prepared.features, prepared.source.recipe.learn, seed=3, run=LearningRun())
    assert few.prompts is not None
    failing = _Failing(times=2)
    monkeypatch.setattr("p4q_edge.learning.training.batch_loss", failing)
    learn_in_place(few, prepared.features, prepared.source.recipe.learn, seed=3, run=LearningRun())
    assert failing.times == 0
    assert len([r for r in caplog.records if "the text tower keeps at most" in r.message]) == 2
    assert any(chunk.recompute for chunk in few.prompts.chunks)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(few.state_dict()[name], value, atol=1e-6, rtol=1e-5)
    monkeypatch.setattr("p4q_edge.learning.training.batch_loss", _Failing(times=99))
    with pytest.raises(EnvironmentNotAbleError, match="more memory than cpu has left. Lower learn.batch_size"):
        learn_in_place(
            new_student(prepared.source)[0], prepared.features, prepared.source.recipe.learn, seed=3, run=LearningRun()
        )


class _Failing:
    """The loss of a batch, which needs too much memory the first times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self, *arguments: object) -> torch.Tensor:
        if self.times:
            self.times -= 1
            raise torch.OutOfMemoryError("toy memory is full")
        return batch_loss(*arguments)  # type: ignore[arg-type]
