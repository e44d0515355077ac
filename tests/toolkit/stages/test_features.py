"""Features of a run: the same values as all images at once, and after any interruption."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from learning_runs import source_of
from torch import Tensor, nn

from p4q_edge.data import image_set, pixels
from p4q_edge.learning import feature_store
from p4q_edge.models.compute import Compute
from p4q_edge.models.load import LoadedModel
from p4q_edge.runtime.images.image_set import ImageSet
from p4q_edge.stages import features as streamed
from p4q_edge.stages import pipeline
from p4q_edge.stages.features import augmented_views, image_features, teacher_features
from p4q_edge.stages.pipeline import Prepared, cache_features, calibration_set, prepare
from p4q_edge.stages.run_files import RunFiles
from p4q_edge.stages.source import Source

SHARD, BATCH = 8, 4


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four shards of two batches each, the last with a batch that is not full."""
    monkeypatch.setattr(feature_store, "SHARD_IMAGES", SHARD)
    monkeypatch.setattr(streamed, "BATCH_SIZE", BATCH)


@pytest.fixture
def source(toy_clip: LoadedModel, toy_images: Callable[[int], ImageSet]) -> Source:
    small = replace(toy_clip, compute=Compute(batch_size=BATCH))
    found = source_of(small, toy_images(12), views=3, flip=True, epochs=2)
    train = found.split.train.subset(range(30))
    split = replace(found.split, train=train)
    return replace(found, split=split, train_digests=tuple(train.digests()))


def at_once(source: Source, encoder: nn.Module) -> tuple[Tensor, Tensor]:
    """Features as they were computed before there were streams: every view of all images in memory."""
    images, spec, section = pixels(source.split.train, source.model.preprocess), source.model.preprocess, source.recipe
    views = [*augmented_views(images, section.learn.views, flip=section.learn.flip, seed=section.seed)]
    student = torch.stack([image_features(encoder, view, spec, source.model.compute) for view in views])
    return student, torch.stack([teacher_features(source.model, view) for view in views])


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_features_are_those_of_all_images_at_once(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    asked: list[int] = []
    loader = image_set.DataLoader

    def watched(*args: Any, num_workers: int, **options: Any) -> Any:
        asked.append(num_workers)
        return loader(*args, num_workers=num_workers, **options)

    monkeypatch.setattr(image_set, "DataLoader", watched)
    compute = msgspec.structs.replace(source.recipe.compute, workers=workers)
    source = replace(source, recipe=msgspec.structs.replace(source.recipe, compute=compute))
    prepared = prepare(source, RunFiles(folder=tmp_path))
    student, teacher = at_once(source, prepared.calibrated.encoder)
    assert torch.equal(prepared.features.student, student)
    assert torch.equal(prepared.features.teacher, teacher)
    assert max(asked) == workers  # fewer where there are fewer batches
    held = cache_features(source, prepared.calibrated.encoder)
    assert torch.equal(held.student, student)
    assert torch.equal(held.teacher, teacher)


class _Watch:
    """Counts the images that the float tower encodes, and ends the run before a certain batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, stop: int = 1000) -> None:
        self.images, self.calls, self.stop = 0, 0, stop
        original = streamed.image_features

        def watched(encoder: nn.Module, images: Tensor, spec: object, compute: object) -> Tensor:
            self.calls += 1
            if self.calls > self.stop:
                raise KeyboardInterrupt
            self.images += len(images)
            return original(encoder, images, spec, compute)  # type: ignore[arg-type]

        monkeypatch.setattr(streamed, "image_features", watched)


@pytest.mark.parametrize("stop", [0, 5, 12, 13, 30, 47])
def test_a_killed_run_computes_at_most_one_shard_again(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    whole = prepare(source, RunFiles(folder=tmp_path / "whole")).features
    files, each = RunFiles(folder=tmp_path / "run"), 2 * source.recipe.learn.views
    with monkeypatch.context() as patch:
        killed = _Watch(patch, stop=stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, files)
    resumed = _Watch(monkeypatch)
    again = prepare(source, files).features
    assert killed.images + resumed.images <= each * (30 + SHARD)
    assert torch.equal(again.student, whole.student)
    assert torch.equal(again.teacher, whole.teacher)


def test_a_damaged_shard_alone_is_computed_again(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RunFiles(folder=tmp_path)
    whole = prepare(source, files).features.student.clone()
    (rows,) = files.features.glob("student-*.rows")
    data = bytearray(rows.read_bytes())
    data[100] ^= 1
    rows.write_bytes(data)
    watch = _Watch(monkeypatch)
    again = prepare(source, files).features
    assert torch.equal(again.student, whole)
    assert watch.images == source.recipe.learn.views * SHARD  # of one tower


def test_the_calibrated_encoder_is_kept_when_features_are_interrupted(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RunFiles(folder=tmp_path)
    with monkeypatch.context() as patch:
        _Watch(patch, stop=20)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, files)
    monkeypatch.setattr(pipeline, "calibrate_encoder", lambda *_: pytest.fail("calibrated again"))
    assert isinstance(prepare(source, files), Prepared)


def test_another_quantization_leaves_the_teacher_as_it_is(source: Source, tmp_path: Path) -> None:
    files = RunFiles(folder=tmp_path)
    prepare(source, files)
    (teacher,) = files.features.glob("teacher-*.rows")
    (student,) = files.features.glob("student-*.rows")
    before = teacher.stat().st_mtime_ns
    section = replace_quantization(source)
    prepare(section, files)
    assert teacher.stat().st_mtime_ns == before
    assert not student.exists()


def replace_quantization(source: Source) -> Source:
    quantization = msgspec.structs.replace(source.recipe.quantization, weight_bits=4)
    return replace(source, recipe=msgspec.structs.replace(source.recipe, quantization=quantization))


def test_ranges_are_measured_on_some_images_of_each_class(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited(limit: int) -> Source:
        quantization = msgspec.structs.replace(source.recipe.quantization, calibration_images=limit)
        return replace(source, recipe=msgspec.structs.replace(source.recipe, quantization=quantization))

    some = calibration_set(limited(8))
    assert np.bincount(some.labels).tolist() == [2, 2, 2, 2]
    assert calibration_set(limited(30)) is source.split.train
    assert calibration_set(limited(0)).names == source.split.train.names
    prepared = prepare(limited(8), RunFiles(folder=tmp_path / "few"))
    assert prepared.calibrated.images == 8
    assert prepared.features.student.shape[1] == 30
    key = prepare(limited(30), RunFiles(folder=tmp_path / "all")).key
    monkeypatch.setattr(pipeline, "calibrate_stage", lambda *_: pytest.fail("the same images were measured again"))
    for limit in (0, 31, 10**30):
        assert prepare(limited(limit), RunFiles(folder=tmp_path / "all")).key == key


def test_a_stream_calibrates_as_the_tensor_of_its_images(source: Source) -> None:
    scheme = source.recipe.quantization.scheme()
    stream = source.stream(source.split.train)
    states = [
        pipeline.calibrate_encoder(source.model, images, scheme).encoder.state_dict()
        for images in (stream, pixels(source.split.train, source.model.preprocess))
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(("device", "pinned", "workers"), [("cpu", False, 0), ("cuda:0", True, 3)])
def test_images_for_a_gpu_are_decoded_ahead_into_pinned_memory(
    source: Source, monkeypatch: pytest.MonkeyPatch, device: str, pinned: bool, workers: int
) -> None:
    asked: list[tuple[bool, int]] = []

    class Loader:
        def __init__(self, *_: object, pin_memory: bool, num_workers: int, **__: object) -> None:
            asked.append((pin_memory, num_workers))

        def __iter__(self) -> Iterator[Tensor]:
            return iter(())

    monkeypatch.setattr(image_set, "DataLoader", Loader)
    monkeypatch.setattr("p4q_edge.runtime.machine.cpu.usable_cores", lambda: 4)
    model = replace(source.model, compute=Compute(device=torch.device(device)))
    source = replace(source, model=model)
    assert [*source.stream(source.split.train).split(BATCH), *source.views.stream().split(BATCH)] == []
    assert asked == [(pinned, workers)] * 2
