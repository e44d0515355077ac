"""The models of the fidelity table, each with images to calibrate on and others to be asked about."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from accuracy_recipes import PHOTO_CLIP
from accuracy_tools import FloatClassifier
from model_folders import RANDOM_TEXT, build, write_folder
from numpy.typing import NDArray
from real_efficientnet import imagenet_logits
from real_models import REAL, Place, make
from real_photos import imagenet_samples
from torch import Tensor

from p4q_edge.data import pixels, read_images
from p4q_edge.demo import MODEL_DIR
from p4q_edge.models import load_model
from p4q_edge.recipe import DEMO_DATA

MODELS = {
    "vit": "ViT-S/14, real weights",
    "efficientnet": "EfficientNet-Lite2, real weights",
    "photo": "CLIP of photographs of 32 pixels",
    "demo": "the demo's CLIP of digits",
    "vit-b-32": "ViT-B/32, random weights",
}
CALIBRATION, ASKED = 48, 96
HISTOGRAM_IMAGES = {"efficientnet": 16, "vit-b-32": 16}
"""Of these, ONNX Runtime's histograms of all 48 images take more memory than a small machine has."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model with its images.

    Attributes:
        logits: what its own classifier says of features ``(N, dim)``; None where it has none.
        labels: of the images that are asked about, ``(N,)``.
    """

    name: str
    tower: FloatClassifier
    logits: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None
    labels: NDArray[np.int64] | None = None

    def digest(self) -> str:
        """SHA-256 of all images."""
        state = hashlib.sha256()
        for images in (self.tower.train, self.tower.test):
            state.update(images.numpy().tobytes())
        return state.hexdigest()


def open_subject(name: str, place: Place, *, seed: int, asked: int = ASKED) -> Subject:
    """A model of the table; one of real weights is made where it is missing.

    Args:
        asked: how many images it is asked about, or all that there are where these are fewer.
    """
    folder = _folder(name, place).resolve()
    model = load_model(f"local-dir:{folder}")
    images, labels = _images(name, place, model.preprocess, seed, CALIBRATION + asked)
    classes = torch.eye(2, model.clip.visual(torch.zeros(1, 3, *model.preprocess.size)).shape[1])
    tower = FloatClassifier(
        model=model,
        class_embedding=classes,  # of no meaning: features are compared
        train=images[:CALIBRATION],
        test=images[CALIBRATION:],
        seed=seed,
        convolutions=name == "efficientnet",
        histogram_images=HISTOGRAM_IMAGES.get(name, CALIBRATION),
    )
    if name != "efficientnet":
        return Subject(name=name, tower=tower)

    def logits(features: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = imagenet_logits(torch.from_numpy(features), folder).numpy()
        return found

    return Subject(name=name, tower=tower, logits=logits, labels=labels[CALIBRATION:].numpy())


def _folder(name: str, place: Place) -> Path:
    if name in REAL:
        return make(name, place)
    if name == "photo":
        return PHOTO_CLIP
    if name == "demo":
        return Path(MODEL_DIR)
    folder = place.output / name
    if not (folder / "open_clip_config.json").is_file():
        vision: dict[str, Any] = open_clip.get_model_config("ViT-B-32")["vision_cfg"]
        config = {"embed_dim": 512, "vision_cfg": vision, "text_cfg": RANDOM_TEXT}
        visual = build(folder, config).visual.state_dict()
        write_folder(folder, config=config, preprocess={"size": 224}, visual=visual, license="none: random weights")
    return folder


def _images(name: str, place: Place, spec: Any, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """The first of the shuffled images, uint8 ``(N, 3, H, W)``, with their labels."""
    generator = np.random.default_rng(seed)
    if name in ("photo", "demo"):
        found = read_images(str(place.photographs / "cifar100" / "test.npz") if name == "photo" else DEMO_DATA)
        order = generator.permutation(len(found))[:count]
        some = found.subset(order)
        return pixels(some, spec), torch.from_numpy(some.labels)
    samples = imagenet_samples(place.photographs)
    order = generator.permutation(len(samples.files))[:count]
    chosen = [int(index) for index in order]
    return samples.subset(chosen).pixels(spec), samples.labels[chosen]
