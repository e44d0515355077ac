"""Large sets of images: what is decoded, when, and what stays out of memory."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from p4q_edge.data.augmentation import augment
from p4q_edge.data.few_shot import few_shot, make_split
from p4q_edge.models.batches import Batches
from p4q_edge.models.load import LoadedModel, to_batch
from p4q_edge.recipe.schema import DataSection, LearnSection, ModelSection, Recipe
from p4q_edge.runtime.artifacts import DataIndex, LearnedImage
from p4q_edge.runtime.images.image_set import ImageSet
from p4q_edge.runtime.images.preprocessing import PreprocessSpec
from p4q_edge.runtime.storage.files import sha256_bytes
from p4q_edge.stages.export import data_index
from p4q_edge.stages.pipeline import learn_stage, prepare
from p4q_edge.stages.run_files import RunFiles
from p4q_edge.stages.source import Source

SPEC = PreprocessSpec(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)


def test_batches_are_made_one_at_a_time(toy_pixels: torch.Tensor) -> None:
    batches = Batches(images=toy_pixels, spec=SPEC, size=7)
    for _ in range(2):  # as often as asked for
        assert torch.equal(torch.cat(list(batches)), to_batch(toy_pixels, SPEC))
    assert [len(batch) for batch in batches] == [7, 7, 7, 3]


def test_views_do_not_depend_on_how_many_are_made_at_once(
    toy_pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = augment(toy_pixels, generator=torch.Generator().manual_seed(0), flip=True)
    monkeypatch.setattr("p4q_edge.data.augmentation.AUGMENT_BATCH_SIZE", 5)
    parts = augment(toy_pixels, generator=torch.Generator().manual_seed(0), flip=True)
    assert torch.equal(parts, whole)


def test_only_learned_images_become_pixels_and_the_bundle_lists_them(
    toy_clip: LoadedModel, toy_images: Callable[[int], ImageSet], tmp_path: Path
) -> None:
    opened: list[int] = []
    images = toy_images(50)

    def watched(index: int) -> Image.Image:
        opened.append(index)
        return images.open_image(index)

    source = _source(toy_clip, replace(images, open_image=watched))
    learned = learn_stage(prepare(source, RunFiles(folder=tmp_path)), None)
    drawn = few_shot(images, shots=2, seed=3)
    assert opened == [*drawn, *drawn]  # for the ranges, and for the features
    assert data_index(learned) == DataIndex(
        learned=tuple(
            LearnedImage(name=f"toy[{i}]", label=int(images.labels[i]), sha256=sha256_bytes(images.read_bytes(i)))
            for i in drawn
        ),
        prompts={name: f"a photo of a {name}." for name in images.class_names},
        test_images=192,
        float_bytes=4 * sum(weight.numel() for weight in toy_clip.clip.get_submodule("visual").parameters()),
    )


def _source(toy: LoadedModel, images: ImageSet) -> Source:
    split = make_split(images, None, shots=2, seed=3, test_limit=0)
    model, data = ModelSection(name="toy"), DataSection(train="toy", shots=2)
    return Source(
        recipe=Recipe(seed=3, model=model, data=data, learn=LearnSection(epochs=1)),
        model=toy,
        split=split,
        templates=("a photo of a {}.",),
        class_prompts={},
        train_digests=tuple(split.train.digests()),
    )
