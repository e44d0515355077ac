"""Photographs, captions and random views for ``train_photo_clip.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from p4q_edge.runtime.errors import InputError

TILE = 32
CONTEXT = 32
PREPROCESS_CFG: dict[str, Any] = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
TEMPLATES = (
    "a photo of {}.",
    "a photo of the {.noun}.",
    "a blurry photo of {}.",
    "a low resolution photo of {}.",
    "a close-up photo of {}.",
    "a bright photo of {}.",
    "a dark photo of {}.",
    "a small picture of {}.",
    "an image of {}.",
    "{}",
)
LIKE_TEMPLATES = ("a photo of something like {}.", "something similar to {}.", "a photo that looks like {}.")
EVALUATION_TEMPLATES = TEMPLATES[:4]


@dataclass(frozen=True)
class Thing:
    """A noun with its article, for ``str.format``."""

    noun: str

    def __format__(self, spec: str) -> str:
        return f"{'an' if self.noun[0].lower() in 'aeiou' else 'a'} {self.noun}"


@dataclass(frozen=True, kw_only=True)
class PhotoClass:
    """A class of the data: its names, coarser words and look-alikes."""

    wnid: str
    names: tuple[str, ...]
    words: tuple[str, ...]
    like: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Photos:
    """Images (n, 3, 32, 32) uint8 and labels (n,) int64, for learning and held out."""

    classes: tuple[PhotoClass, ...]
    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


def read_classes(data: Path) -> tuple[PhotoClass, ...]:
    """Join ``classes.tsv`` of the data with our words for its classes.

    Raises:
        InputError: The list is missing, or names a class that ``photo_classes.tsv`` lacks.
    """
    index = data / "classes.tsv"
    if not index.is_file():
        raise InputError(f"{index} is missing: --data takes a folder of contact sheets with its classes.tsv")
    ours = Path(__file__).with_name("photo_classes.tsv")
    words = {row[0]: row[1:] for row in _read_tsv(ours)}
    classes = []
    for wnid, names, _ in _read_tsv(index):
        if wnid not in words:
            raise InputError(f"{ours} has no line for {wnid} ({names}): add its coarser words and look-alikes")
        coarse, like = (tuple(part.split(", ")) for part in words[wnid])
        classes.append(PhotoClass(wnid=wnid, names=tuple(names.split(", ")), words=coarse, like=like))
    return tuple(classes)


def _read_tsv(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


def read_photos(data: Path, *, held_out_per_class: int) -> Photos:
    """Cut the contact sheets; the last tiles of each sheet are held out."""
    classes = read_classes(data)
    sheets = []
    for entry in classes:
        with Image.open(data / f"{entry.wnid}.jpg") as image:
            sheet = np.asarray(image.convert("RGB"))
        rows, columns = sheet.shape[0] // TILE, sheet.shape[1] // TILE
        tiles = sheet.reshape(rows, TILE, columns, TILE, 3).transpose(0, 2, 4, 1, 3)
        sheets.append(torch.from_numpy(tiles.reshape(-1, 3, TILE, TILE).copy()))
    images = torch.stack(sheets)  # (classes, images, 3, 32, 32)
    labels = torch.arange(len(classes))[:, None].expand(images.shape[:2])
    cut = images.shape[1] - held_out_per_class
    return Photos(
        classes=classes,
        train_images=images[:, :cut].flatten(0, 1),
        train_labels=labels[:, :cut].flatten(),
        held_out_images=images[:, cut:].flatten(0, 1),
        held_out_labels=labels[:, cut:].flatten(),
    )


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Token ids of all captions, numbered by their place among the tokens that occur at all.

    Attributes:
        tokens: (captions, longest) int64.
        first, count: where the captions of each class, then of each word, begin, and how many they are.
        used_tokens: open_clip's ids, ascending, of the numbers in ``tokens``.
        word_target: (classes, words), the share that a word has in the description of a class.
    """

    tokens: Tensor
    first: Tensor
    count: Tensor
    used_tokens: Tensor
    word_target: Tensor

    def draw(self, words: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One caption of each class and of some words.

        Returns:
            Captions (classes + words, longest) int64, and which words were drawn (words,) int64.
        """
        classes, all_words = self.word_target.shape
        drawn = torch.randperm(all_words, generator=generator)[:words]
        groups = torch.cat((torch.arange(classes), classes + drawn))
        choice = torch.randint(0, 1 << 30, groups.shape, generator=generator) % self.count[groups]
        tokens = self.tokens[self.first[groups] + choice]
        ends = tokens.argmax(1)
        return tokens[:, : int(ends.max()) + 1], drawn


def build_captions(classes: tuple[PhotoClass, ...]) -> Captions:
    """Fill the templates for every class, coarser word and look-alike."""
    words: list[tuple[str, tuple[str, ...]]] = [
        (word, TEMPLATES) for word in sorted({word for entry in classes for word in entry.words})
    ]
    words += [(word, LIKE_TEMPLATES) for word in sorted({word for entry in classes for word in entry.like})]
    target = torch.zeros(len(classes), len(words))
    for row, entry in zip(target, classes, strict=True):
        for column, (word, templates) in enumerate(words):
            row[column] = float(word in (entry.words if templates is TEMPLATES else entry.like))
    groups = [_class_captions(entry) for entry in classes]
    groups += [[template.format(Thing(word)) for template in templates] for word, templates in words]
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
    tokens = tokenizer([caption for group in groups for caption in group])
    tokens = tokens[:, : int((tokens != 0).sum(1).max())]  # causal: what stands behind the end has no effect
    used = tokens.unique()  # sorted: the end-of-text id stays the largest, which is how open_clip finds it
    count = torch.tensor([len(group) for group in groups])
    return Captions(
        tokens=torch.searchsorted(used, tokens.contiguous()),
        first=count.cumsum(0) - count,
        count=count,
        used_tokens=used,
        word_target=target / target.sum(1, keepdim=True),
    )


def _class_captions(entry: PhotoClass) -> list[str]:
    first, *others = entry.names
    names = [first] * max(2, len(others)) + others  # the first name is the usual one: at least every second
    captions = [template.format(Thing(name)) for template in TEMPLATES for name in names]
    return captions + [f"a photo of {Thing(first)}, {Thing(word)}." for word in entry.words]


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random crop, flip and colour of (n, 3, 32, 32) uint8; returns normalized float32."""
    n = len(images)
    u = torch.rand(9, n, generator=generator)
    zoom = (0.4 + 0.6 * u[0]).sqrt()
    aspect = torch.exp(0.25 * (2 * u[1] - 1))
    width, height = (zoom * aspect).clamp(max=1), (zoom / aspect).clamp(max=1)
    flip = torch.where(u[2] < 0.5, -1.0, 1.0)
    zero = torch.zeros(n)
    rows = [
        torch.stack((width * flip, zero, (1 - width) * (2 * u[3] - 1)), dim=1),
        torch.stack((zero, height, (1 - height) * (2 * u[4] - 1)), dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    views = F.grid_sample(images.float() / 255, grid, padding_mode="reflection", align_corners=False)
    strength = torch.where(u[5] < 0.8, 0.4, 0.0)[:, None, None, None]
    brightness, contrast, colour = (1 + strength * (2 * u[6:, :, None, None, None] - 1)).unbind(0)
    grey = views.mean(1, keepdim=True)
    views = grey + (views - grey) * colour
    mean = views.mean((1, 2, 3), keepdim=True)
    return normalize(((views - mean) * contrast + mean * brightness).clamp(0, 1))


def normalize(images: Tensor) -> Tensor:
    """Apply ``PREPROCESS_CFG`` to (n, 3, h, w) images in [0, 1]."""
    mean, std = (torch.tensor(PREPROCESS_CFG[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (images - mean) / std
