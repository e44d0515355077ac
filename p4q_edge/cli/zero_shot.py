"""A build without labelled images: its recipe, and in words what it lacks."""

import logging
import shlex
from pathlib import Path

import msgspec

from p4q_edge.recipe import DRAWN_IMAGES, DataSection, LearnSection, ModelSection, QuantizationSection, Recipe, anchor
from p4q_edge.runtime.artifacts import CalibratedOn, Card
from p4q_edge.runtime.builders import ZeroShotRequest
from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.storage import printable
from p4q_edge.runtime.wording import number_of, one_or_many

_OF_OTHER_CLASSES = ("class_prompts", "test", "unlabelled")
"""What a recipe says of its own classes and photographs."""

logger = logging.getLogger(__name__)


def zero_shot_recipe(request: ZeroShotRequest, base: Recipe | None) -> Recipe:
    """Return a recipe that learns nothing, of the classes that were asked for.

    Args:
        request: the classes, and what replaces parts of `base`.
        base: gives the model, the images without their labels, the templates, and [quantization], [export] and
            [compute]; None takes the defaults.

    Raises:
        UsageError: the recipe asks for what labels are needed for.
    """
    data = DataSection() if base is None else base.data
    names = request.class_names
    left_out = [f"data.{key}" for key in _OF_OTHER_CLASSES if getattr(data, key)]
    if left_out:
        logger.warning(
            "--class-names names other classes than the recipe: its %s %s not used. To keep them, leave out "
            "--class-names and set data.class_names in the recipe",
            " and ".join(left_out),
            one_or_many(len(left_out), "is", "are"),
        )
    calibration = request.calibration or data.train or data.calibration or DRAWN_IMAGES
    model = None if base is None else base.model
    if request.model is not None:
        model = ModelSection(name=request.model, pretrained=request.pretrained)
    assert model is not None  # without a recipe, --model was given
    try:
        recipe = Recipe(
            seed=0 if base is None else base.seed,
            model=model,
            data=DataSection(
                calibration=calibration,
                class_names=str(names) if isinstance(names, Path) else names,
                templates=data.templates,
                orient=data.orient,
            ),
            quantization=QuantizationSection() if base is None else base.quantization,
            learn=LearnSection(prompts=False, adapter=False, class_residual=False),
        )
    except ValueError as error:
        raise UsageError(f"--class-names with this recipe: {error}") from error
    if base is not None:
        recipe = msgspec.structs.replace(recipe, export=base.export, compute=base.compute)
    return anchor(recipe, Path.cwd())


def costs(found: CalibratedOn, card: Card, engine: Path, *, tested: bool) -> tuple[str, ...]:
    """Return what an engine lacks that no labelled image was seen with, each with the command that mends it.

    Args:
        found: what the bundle keeps about it.
        card: of the engine.
        engine: its path.
        tested: whether labelled images were there to test on.
    """
    named = shlex.quote(str(engine))
    unknown = (
        "accuracy is not known: no image has a label. To measure it: p4q-edge validate "
        f"{named} --data FOLDER_OF_CLASS_FOLDERS"
    )
    return (
        *_quantization(found, card),
        *([] if tested else [unknown]),
        "scores are not calibrated (temperature 1), and no image is called unknown (threshold 0). To calibrate them: "
        f"p4q-edge head calibrate {named} FOLDER_OF_CLASS_FOLDERS --apply",
        "nothing was learned: a few labelled photographs of each class teach the engine on the device: p4q-edge teach "
        f"{named} PHOTOS --name NAME",
    )


def _quantization(found: CalibratedOn, card: Card) -> tuple[str, ...]:
    """Return what is known about ranges that no labelled image decided."""
    own = "To take your own: --calibration-images FOLDER"
    if found.source == DRAWN_IMAGES:
        return (
            f"ranges are those of {found.images} drawn images, no photographs, and fit worse than those of six "
            f"photographs would. {own}",
        )
    ranges = f"ranges are those of {number_of(found.images, 'image')} of {printable(found.source)}"
    if not found.held_out or found.cosine_mean is None or found.cosine_min is None:
        return (f"{ranges}, too few to hold some out and see what quantization changes. {own}",)
    return (
        f"{ranges}; of {number_of(found.held_out, 'other')} {card.precision.label} names {found.same_answer} as full "
        f"precision does, cosine of the embeddings {found.cosine_mean:.4f} on average, {found.cosine_min:.4f} at least",
    )
