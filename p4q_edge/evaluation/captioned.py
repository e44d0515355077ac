"""Images and captions for `p4q-edge validate --pairs`: the captions through the float text tower."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from p4q_edge.data import Captions, read_captions
from p4q_edge.models import LoadedModel, cut_texts, encode_texts, encoder_of
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.evaluation import ValidateRequest
from p4q_edge.runtime.evaluation.trials import CaptionedImages
from p4q_edge.runtime.images import (
    Pixels,
    PreprocessSpec,
    digest_of,
    draw_subset,
    preprocess,
)
from p4q_edge.runtime.storage import printable, sha256_bytes
from p4q_edge.runtime.wording import number_of, one_or_many
from p4q_edge.stages import Source

MAX_COMPARED = 1 << 30
"""A byte each, for each stage: a gigabyte."""
_SHOWN, _LETTERS = 3, 60

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedCaptions:
    """Captions and their images, which are decoded when they are first asked for, as `spec` says."""

    captions: Captions
    pixels: Pixels
    spec: PreprocessSpec


def open_captions(request: ValidateRequest, table: Path, spec: PreprocessSpec) -> OpenedCaptions:
    """Open a table of images and captions; no image is decoded yet.

    Args:
        request: its limit is the most images, its seed draws them.
        table: see `read_captions`.
        spec: how the model wants its pixels.

    Raises:
        UsageError: there is no such table.
        InputError: the table cannot be used or is too large.
    """
    captions = _drawn_captions(request, table)
    images = captions.images
    pixels = Pixels(lambda index: preprocess(images.open_image(index), spec), len(images), (3, *spec.size))
    return OpenedCaptions(captions=captions, pixels=pixels, spec=spec)


def _drawn_captions(request: ValidateRequest, table: Path) -> Captions:
    captions = read_captions(table)
    captions = captions.of_images(draw_subset(len(captions.images), request.limit, seed=request.seed))
    count = len({*captions.texts})
    if len(captions.images) * count > MAX_COMPARED:
        raise InputError(
            f"--pairs {table}: expected at most {MAX_COMPARED} comparisons of an image with a caption, got "
            f"{len(captions.images)} images and {count} captions. Take fewer images with --limit"
        )
    return captions


def captioned_model(request: ValidateRequest, source: Source | None) -> LoadedModel:
    """Return the model of an engine's recipe, whose text tower reads captions; `source` is that recipe, opened.

    Raises:
        UsageError: there is no recipe.
    """
    if source is None:
        raise UsageError(
            f"--pairs needs the text tower of the model, and no run folder {request.engine.with_suffix('.run')} says "
            "which it is; name the run folder or the recipe that the engine was built from with --reference"
        )
    return source.model


@torch.no_grad()
def read_captioned(opened: OpenedCaptions, model: LoadedModel, table: Path) -> CaptionedImages:
    """Return the images and captions of a table as a model takes them; images that cannot be read are not told of."""
    captions, images = opened.captions, opened.captions.images
    places = {text: place for place, text in enumerate(dict.fromkeys(captions.texts))}
    texts = list(places)
    cut = [texts[index] for index in cut_texts(model.tokenizer, texts)]
    _warn_of_cut(cut, len(texts), table)
    pairs = [(image, places[text]) for image, text in zip(captions.image_of.tolist(), captions.texts, strict=True)]
    text = F.normalize(encode_texts(encoder_of(model.clip), model.tokenizer, texts), dim=-1)
    digests = digest_of(images.digests(), [0] * len(images))
    return CaptionedImages(
        pixels=opened.pixels,
        text_embedding=text.cpu().numpy().astype(np.float32),
        pairs=np.array(pairs, np.int64),
        digest=sha256_bytes("\n".join([digests, *places, *map(str, pairs)]).encode()),
        source=table.name,
        cut=len(cut),
    )


def _warn_of_cut(cut: Sequence[str], texts: int, table: Path) -> None:
    """Name captions whose end the text tower does not see: they are found by their beginning alone."""
    if not cut:
        return
    shown = ", ".join(repr(printable(text[:_LETTERS])) for text in cut[:_SHOWN])
    logger.warning(
        "%d of %s of %s %s cut: %s%s. Shorten what is too long, or read the figures as those of beginnings",
        len(cut),
        number_of(texts, "caption"),
        table.name,
        one_or_many(
            len(cut),
            "is longer than the text tower reads, and its end is",
            "are longer than the text tower reads, and their end is",
        ),
        shown,
        ", ..." if len(cut) > _SHOWN else "",
    )
