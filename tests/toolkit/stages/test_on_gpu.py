"""The same run on a CPU and on a GPU: scales and features agree within bounds. Skipped where there is no GPU.

Both multiply in float32; sums in another order move a value by some units in the last place, now and then to the next
integer of a grid, and a range that was found by search to the next candidate.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learning_runs import source_of

from p4q_edge.models.compute import Compute
from p4q_edge.models.load import LoadedModel
from p4q_edge.quant.linear import quant_linears
from p4q_edge.recipe.schema import ComputeSection
from p4q_edge.runtime.images.image_set import ImageSet
from p4q_edge.stages.pipeline import Learned, learn_stage, prepare
from p4q_edge.stages.run_files import RunFiles
from p4q_edge.stages.source import Source

pytestmark = pytest.mark.gpu

SCALES = 0.02
"""Relative."""
COSINE_LOSS = 1e-3
TEACHER = 1e-4


def _learned(source: Source, folder: Path) -> Learned:
    files = RunFiles(folder=folder)
    return learn_stage(prepare(source, files), files)


def _on_gpu(source: Source) -> Source:
    compute = Compute.of(ComputeSection(device="cuda"))
    return replace(source, model=replace(source.model, clip=copy.deepcopy(source.model.clip)).on(compute))


def test_cpu_and_gpu_agree(toy_clip: LoadedModel, toy_images: Callable[[int], ImageSet], tmp_path: Path) -> None:
    source = source_of(toy_clip, toy_images(12), epochs=3, views=2)
    cpu, gpu = _learned(source, tmp_path / "cpu"), _learned(_on_gpu(source), tmp_path / "gpu")
    assert gpu.classifier.text_embedding.is_cuda
    ours, theirs = (quant_linears(each.prepared.calibrated.encoder) for each in (cpu, gpu))
    for path, linear in ours.items():
        for name in ("input_scale", "weight_scale"):
            expected, found = getattr(linear, name), getattr(theirs[path], name).cpu()
            torch.testing.assert_close(found, expected, rtol=SCALES, atol=0)
    expected, found = cpu.prepared.features, gpu.prepared.features
    torch.testing.assert_close(found.teacher, expected.teacher, atol=TEACHER, rtol=0)
    cosine = torch.cosine_similarity(found.student, expected.student, dim=-1)
    assert float(1 - cosine.min()) < COSINE_LOSS


def test_a_run_of_the_cpu_goes_on_on_a_gpu(
    toy_clip: LoadedModel, toy_images: Callable[[int], ImageSet], tmp_path: Path
) -> None:
    source, epochs = source_of(toy_clip, toy_images(6), epochs=8), []
    files = RunFiles(folder=tmp_path / "run")

    def stop(epoch: int, loss: float) -> None:
        if epoch == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_stage(prepare(source, files), files, progress=stop)
    whole = _learned(source, tmp_path / "whole")
    moved = learn_stage(prepare(_on_gpu(source), files), files, progress=lambda epoch, _: epochs.append(epoch))
    assert epochs == [6, 7, 8]
    text, expected = moved.classifier.text_embedding.cpu(), whole.classifier.text_embedding
    assert float(torch.cosine_similarity(text, expected).min()) > 1 - COSINE_LOSS
