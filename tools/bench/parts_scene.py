"""Scenes of the comparison of parts: images of one data set under one seed, and their features by each encoder."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
import torch
from accuracy_recipes import FLOAT, WIDTHS, Choice, recipe_of
from PIL import Image
from real_photos import CALTECH_SHOTS
from torch import Tensor, nn

from p4q_edge.calibration import calibrate_encoder
from p4q_edge.data import draw_by_class, pixels, read_images, read_unlabelled
from p4q_edge.learning import CachedFeatures, Unlabelled, read_tensors, write_tensors
from p4q_edge.recipe import Recipe, on_device
from p4q_edge.runtime.images import ImageSet
from p4q_edge.stages import Source, calibration_set, image_features, open_source, student_features

SHOTS = {"digits": 16, "cifar100": 16, "caltech101": CALTECH_SHOTS}
UNLABELLED = {"digits": 500, "cifar100": 1600, "caltech101": 204}
"""Images without labels: for CIFAR-100 of its training images, else of those that would be tested on."""
CALIBRATED_ON = {"cifar100": 400, "caltech101": 204}
"""At most so many labelled images, four of each class; of the digits all."""
MEMORY_GIB = 3.0
"""Of a GPU, for the batches of each process: several share it."""
PAPER = {"8-8-8": "paper-8-8-8", "4-4-8": "paper-4-4-8"}
"""Recipes of the paper's bit settings (weights, activations, attention), both towers quantized while it learns."""
CORRUPTED_IMAGES = 1000
CORRUPTIONS = ("noise", "blur", "JPEG", "dark")
NOISE_LEVEL = 25.0
BLUR_SHARE = 1 / 40
JPEG_QUALITY = 12
DARKNESS = 0.3


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where data and models lie, where features are kept, and what is not measured in full."""

    data: Path
    models: Path
    work: Path
    device: str = "cpu"
    shots: int = 0
    limit: int = 0
    steps: int = 0
    corrupted: bool = True


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One data set under one seed, its images shared out into labelled ones, ones without labels, and tested ones.

    Attributes:
        known: ``(images,)`` int64, the labels of those without, which no learning sees.
    """

    name: str
    seed: int
    place: Place
    source: Source
    known: Tensor

    def at(self, width: str) -> Source:
        """The source with the recipe of a width."""
        recipe = scene_recipe(self.name, self.seed, self.place, "W8A8" if width == FLOAT else width)
        return replace(self.source, recipe=recipe)

    def file(self, width: str) -> Path:
        """Where features are kept."""
        return self.place.work / f"{self.name}-{self.seed}-{width}.safetensors"


@dataclass(frozen=True, kw_only=True)
class Features:
    """Of all images of a scene by one encoder.

    Attributes:
        learned: of the labelled images and of those without labels.
        tested: of the tested images, ``(images, dim)``, as they are and by corruption.
        test_labels: ``(images,)`` int64; those of corrupted images are the first of them.
    """

    learned: CachedFeatures
    tested: dict[str, Tensor]
    test_labels: Tensor


def scene_recipe(name: str, seed: int, place: Place, width: str) -> Recipe:
    """Our shipped recipe of a width on a data set."""
    shots = place.shots or SHOTS[name]
    choice = Choice(data=name, folder=place.data, models=place.models, shots=shots, limit=place.limit)
    recipe = msgspec.structs.replace(on_device(recipe_of(choice, (WIDTHS | PAPER)[width]), place.device), seed=seed)
    if place.device != "cpu":
        compute = msgspec.structs.replace(recipe.compute, memory_gib=MEMORY_GIB)
        recipe = msgspec.structs.replace(recipe, compute=compute)
    if name not in CALIBRATED_ON:
        return recipe
    section = msgspec.structs.replace(recipe.quantization, calibration_images=CALIBRATED_ON[name])
    if name == "caltech101":  # its image tower has no attentions
        section = msgspec.structs.replace(section, quantize_attention=False)
    return msgspec.structs.replace(recipe, quantization=section)


@lru_cache(maxsize=16)
def open_scene(name: str, seed: int, place: Place) -> Scene:
    """Open a data set under a seed."""
    source = open_source(scene_recipe(name, seed, place, "W8A8"))
    split, wanted = source.split, UNLABELLED[name]
    if name == "cifar100":
        more = msgspec.structs.replace(source.recipe.data, unlabelled=source.recipe.data.train)
        unlabelled = read_unlabelled(more, split)
        assert unlabelled is not None
        unlabelled = unlabelled.subset(draw_by_class(unlabelled.labels, wanted, seed=seed))
        every = read_images(source.recipe.data.train)
        label_of = dict(zip(every.names, every.labels, strict=True))
        known = torch.tensor([int(label_of[one]) for one in unlabelled.names])
    else:
        drawn = draw_by_class(split.test.labels, min(wanted, len(split.test) // 3), seed=seed)
        unlabelled = split.test.subset(drawn)
        known = torch.from_numpy(unlabelled.labels)
        split = replace(split, test=split.test.subset(np.setdiff1d(np.arange(len(split.test)), drawn)))
    source = replace(source, split=split, unlabelled=unlabelled)
    return Scene(name=name, seed=seed, place=place, source=source, known=known)


def encode(scene: Scene, width: str) -> Path:
    """Compute the features of a scene by our encoder at a width, or by the float one, where they are not kept yet.

    The encoder is calibrated on the labelled images alone.
    """
    path, source = scene.file(width), scene.at(width)
    if path.is_file():
        return path
    model = source.model
    encoder: nn.Module = model.clip.visual  # type: ignore[assignment]
    if width != FLOAT:
        images = source.stream(calibration_set(source)).held()
        encoder = calibrate_encoder(model, images, source.recipe.quantization.scheme()).encoder

    def features(images: Tensor | ImageSet) -> Tensor:
        some = images if isinstance(images, Tensor) else source.stream(images)
        return image_features(encoder, some, model.preprocess, model.compute)

    assert source.unlabelled is not None
    tensors = {
        "student": student_features(source, encoder),
        "unlabelled": features(source.unlabelled),
        "test clean": features(source.split.test),
    }
    if scene.place.corrupted:
        shown = pixels(source.split.test.subset(range(min(CORRUPTED_IMAGES, len(source.split.test)))), model.preprocess)
        tensors |= {f"test {kind}": features(corrupted(shown, kind, seed=scene.seed)) for kind in CORRUPTIONS}
    write_tensors(path, tensors, key=width)
    return path


@lru_cache(maxsize=64)
def features_of(scene_name: str, seed: int, place: Place, width: str) -> Features:
    """Kept features of a scene by our encoder at a width, with those of the float encoder for teachers."""
    scene = open_scene(scene_name, seed, place)
    both = []
    for one in (width, FLOAT):
        stored = read_tensors(scene.file(one), key=one)
        assert stored is not None, f"{scene.file(one)} is not there"
        both.append({name: torch.clone(value) for name, value in stored[0].items()})
    student, exact = both
    learned = CachedFeatures(
        student=student["student"],
        teacher=exact["student"],
        labels=torch.from_numpy(scene.source.split.train.labels),
        unlabelled=Unlabelled(student=student["unlabelled"], teacher=exact["unlabelled"]),
    )
    tested = {name.removeprefix("test "): value for name, value in student.items() if name.startswith("test ")}
    return Features(learned=learned, tested=tested, test_labels=torch.from_numpy(scene.source.split.test.labels))


def corrupted(images: Tensor, kind: str, *, seed: int) -> Tensor:
    """Images uint8 ``(N, 3, H, W)`` as a worse camera takes them: with noise, blurred, as a poor JPEG, or dark."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "noise":
        noise = torch.randn(images.shape, generator=generator) * NOISE_LEVEL
        return (images.float() + noise).round().clamp(0, 255).to(torch.uint8)
    if kind == "dark":
        return (images.float() * DARKNESS).round().to(torch.uint8)
    if kind == "blur":
        sigma = images.shape[-1] * BLUR_SHARE
        reach = max(1, round(3 * sigma))
        places = torch.arange(-reach, reach + 1).float()
        weights = torch.exp(-places.square() / (2 * sigma**2))
        weights = (weights / weights.sum()).expand(3, 1, 1, -1)
        x = nn.functional.pad(images.float(), (reach, reach, reach, reach), mode="replicate")
        x = nn.functional.conv2d(nn.functional.conv2d(x, weights, groups=3), weights.transpose(2, 3), groups=3)
        return x.round().clamp(0, 255).to(torch.uint8)
    return torch.stack([_as_jpeg(image) for image in images])


def _as_jpeg(image: Tensor) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=JPEG_QUALITY)
    return torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1)
