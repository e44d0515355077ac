"""Photographs of the data folder (``--data DIR``) that the real models are centred, calibrated and measured on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from p4q_edge.data import pixels, read_split
from p4q_edge.recipe import DataSection
from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.images import PreprocessSpec, load_image, preprocess

CALTECH_SHOTS = 15
"""Its smallest class has no more photographs."""

CALTECH_WORDS = {
    "Faces": "human face",
    "Faces_easy": "face of a person",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "airplanes": "airplane",
    "car_side": "side view of a car",
    "water_lilly": "water lily",
    "yin_yang": "yin and yang symbol",
}
"""Words for folders whose names are none, or are misspelt; the others are their names with spaces."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Photographs of ImageNet's classes, in the order of their list.

    Attributes:
        files: full-size JPEG files.
        labels: classes among the 1,000, ``(N,)`` int64.
    """

    files: tuple[Path, ...]
    labels: Tensor

    def subset(self, chosen: Sequence[int]) -> Samples:
        """Some of them, by index."""
        return Samples(files=tuple(self.files[index] for index in chosen), labels=self.labels[list(chosen)])

    def pixels(self, spec: PreprocessSpec) -> Tensor:
        """As a model takes them, uint8 ``(N, 3, H, W)``."""
        return torch.from_numpy(np.stack([preprocess(load_image(path), spec) for path in self.files]))


def imagenet_samples(data: Path) -> Samples:
    """Read ``imagenet_samples/classes.tsv``: class index, WordNet id, name, file.

    Raises:
        InputError: the list is missing.
    """
    folder = data / "imagenet_samples"
    index = folder / "classes.tsv"
    if not index.is_file():
        raise InputError(f"{index} does not exist; --data DIR names a folder with imagenet_samples/classes.tsv in it")
    rows = [line.split("\t") for line in index.read_text(encoding="utf-8").splitlines() if line]
    return Samples(files=tuple(folder / row[3] for row in rows), labels=torch.tensor([int(row[0]) for row in rows]))


def caltech_section(data: Path, *, shots: int = CALTECH_SHOTS, templates: tuple[str, ...] | str) -> DataSection:
    """Caltech-101 as a recipe's [data]: `shots` of each class to learn from, the rest to be asked."""
    folder = data / "caltech101"
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; --data DIR names a folder with caltech101/CLASS/*.jpg in it")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    words = tuple(CALTECH_WORDS.get(name, name.replace("_", " ")) for name in names)
    return DataSection(train=str(folder), class_names=words, templates=templates, shots=shots)


def every_nth_class(data: Path, step: int, *, into: Path) -> Path:
    """A data folder with every `step`-th class of Caltech-101 by name, copied beneath `into`; `data` itself for 1."""
    if step == 1:
        return data
    folder = into / f"every-{step}"
    for path in sorted(path for path in (data / "caltech101").iterdir() if path.is_dir())[::step]:
        shutil.copytree(path, folder / "caltech101" / path.name, dirs_exist_ok=True)
    return folder


def caltech_test(data: Path, spec: PreprocessSpec, *, seed: int = 0) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Photographs of Caltech-101 beyond the shots, uint8 ``(N, 3, H, W)``, their labels, and the classes' words."""
    split = read_split(caltech_section(data, templates=("a photo of a {}.",)), seed=seed)
    return pixels(split.test, spec), torch.from_numpy(split.test.labels), split.test.class_names
