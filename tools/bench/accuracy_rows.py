"""The rows of the accuracy comparison: what is learned, quantized and asked in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from accuracy_cache import Encoded, kept
from accuracy_recipes import FLOAT, WIDTHS, Choice, recipe_of
from accuracy_tools import FloatClassifier, Quantizer, class_logits, model_optimizer, nncf, onnxruntime_static
from numpy.typing import NDArray
from torch import Tensor, nn

from p4q_edge.baselines import as_released
from p4q_edge.calibration import calibrate_encoder
from p4q_edge.evaluation import PTQ, learned_student, method_variants
from p4q_edge.learning import CachedFeatures, Student
from p4q_edge.quant import Phase, running_in
from p4q_edge.recipe import LearnSection, Recipe
from p4q_edge.runtime.storage import StageCode
from p4q_edge.stages import Source, cache_features, image_features, open_source, student_features

FEATURES = StageCode(modules=("p4q_edge.stages.pipeline",), rooms=("p4q_edge.calibration", "p4q_edge.data"))

Group = Literal["full precision", "other tools", "published code", "P4Q Edge"]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one row says about the test images.

    Attributes:
        logits: ``(images, classes)``.
        reference: of the same classifier with nothing quantized.
        agrees_with: that classifier in words.
    """

    logits: NDArray[np.float32]
    reference: NDArray[np.float32]
    agrees_with: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method.

    Attributes:
        widths: that it is measured at; `FLOAT` for full precision.
        execution: `executed` on 8-bit kernels, `carried` on them, or `simulated` in floating point; by width.
        answer: asks it, at one of its widths.
    """

    name: str
    group: Group
    widths: tuple[str, ...]
    execution: Mapping[str, str]
    answer: Callable[[Scene, str], Answers]


class Scene:
    """One data set under one seed, with everything that rows share computed once."""

    def __init__(self, choice: Choice, seed: int) -> None:
        self.choice, self.seed = choice, seed
        self.source = open_source(self.recipe("W8A8"))
        self.classifier = FloatClassifier.of(self.source)
        # A method's own cache would outlive the scene.
        self.encoded = cache(self._encoded)
        self.released = cache(self._released)
        self.zero_shot = cache(self._zero_shot)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Of the test images, ``(images,)``."""
        return self.source.split.test.labels

    def recipe(self, width: str, *, released: bool = False) -> Recipe:
        """Our shipped recipe of a width (or that of the published code) on this data."""
        recipe = recipe_of(self.choice, "as-released" if released else WIDTHS[width])
        bits = {"weight_bits": int(width[1]), "activation_bits": int(width[3])}
        quantization = msgspec.structs.replace(recipe.quantization, **bits) if released else recipe.quantization
        learned = msgspec.structs.replace(recipe.learn, **self.choice.learn)
        return msgspec.structs.replace(recipe, seed=self.seed, quantization=quantization, learn=learned)

    def with_recipe(self, recipe: Recipe) -> Source:
        """This scene's model and images under another recipe."""
        return replace(self.source, recipe=recipe)

    def test_features(self, encoder: nn.Module) -> Tensor:
        """Features of the test images, ``(images, dim)``."""
        return image_features(encoder, self.classifier.test, self.source.model.preprocess)

    def _encoded(self, width: str) -> Encoded:
        """Features of the labelled images' views and of the test images, by our encoder at a width or the float one."""
        source = self.with_recipe(self.recipe("W8A8" if width == FLOAT else width))
        recipe, folder = source.recipe, self.choice.features
        tests = self.source.split.test.digests()
        part = [None if width == FLOAT else recipe.quantization, recipe.learn.views, recipe.learn.flip]
        key = source.key(FEATURES, recipe=part, inputs=tests)
        path = folder / f"{self.choice.data}-{self.seed}-{width}.safetensors" if folder else None
        return kept(path, key, lambda: self._encode(source, width))

    def _encode(self, source: Source, width: str) -> Encoded:
        model, images = source.model, self.classifier.train
        if width == FLOAT:
            encoder: nn.Module = model.clip.visual  # type: ignore[assignment]
            student = student_features(source, encoder)
            teacher = nn.functional.normalize(student, dim=-1)
        else:
            encoder = calibrate_encoder(model, images, source.recipe.quantization.scheme()).encoder
            student, teacher = student_features(source, encoder), self.encoded(FLOAT)[0].teacher
        labels = torch.from_numpy(source.split.train.labels)
        return CachedFeatures(student=student, teacher=teacher, labels=labels), self.test_features(encoder)

    def _released(self, width: str, patch_bits: int) -> tuple[CachedFeatures, Tensor]:
        """The same by the encoder of the published code."""
        source = self.with_recipe(self.recipe(width, released=True))
        images = self.classifier.train
        encoder = as_released.quantize_encoder(source.model, images, source.recipe.quantization, patch_bits=patch_bits)
        return cache_features(source, encoder), self.test_features(encoder)

    def _zero_shot(self) -> NDArray[np.float32]:
        """Logits of the full-precision zero-shot classifier."""
        return class_logits(self.encoded(FLOAT)[1], self.source)


@torch.no_grad()
def student_logits(student: Student, features: Tensor) -> NDArray[np.float32]:
    """Logits ``(N, classes)`` of features."""
    text = nn.functional.normalize(student.text_embedding(), dim=-1)
    logits: NDArray[np.float32] = (student.logit_scale * student.image_embedding(features) @ text.T).numpy()
    return logits


def ours(scene: Scene, width: str, *, changes: Mapping[str, Any]) -> Answers:
    """A variant of our method: keys of [learn] that differ from the recipe of the width."""
    recipe = scene.recipe("W8A8" if width == FLOAT else width)
    recipe = msgspec.structs.replace(recipe, learn=msgspec.structs.replace(recipe.learn, **changes))
    train, test = scene.encoded(width)
    student = learned_student(scene.with_recipe(recipe), train.first_views(recipe.learn.views))
    logits = student_logits(student, test)
    with running_in(student, Phase.FLOAT):
        reference = student_logits(student, scene.encoded(FLOAT)[1])
    plain = student.prompts is None and student.adapter is None
    head = "full-precision zero-shot" if plain else "the same learned head on the full-precision encoder"
    return Answers(logits=logits, reference=reference, agrees_with=head)


def tool(scene: Scene, width: str, *, quantizer: Quantizer) -> Answers:
    """A tool's PTQ of the zero-shot classifier."""
    logits = quantizer(scene.classifier, scene.recipe(width).quantization)
    return Answers(logits=logits, reference=scene.zero_shot(), agrees_with="full-precision zero-shot")


def released(scene: Scene, width: str, *, text: bool, patch_bits: int = 0) -> Answers:
    """The published code; agreement is with its own adapter and class embeddings on the full-precision encoder."""
    recipe = scene.recipe(width[:4], released=True)
    recipe = msgspec.structs.replace(recipe, quantization=msgspec.structs.replace(recipe.quantization, text=text))
    features, test = scene.released(width[:4], patch_bits)
    student = learned_student(scene.with_recipe(recipe), features)
    return Answers(
        logits=student_logits(student, test),
        reference=student_logits(student, scene.encoded(FLOAT)[1]),
        agrees_with="the same learned head on the full-precision encoder",
    )


def all_rows(section: LearnSection) -> tuple[Row, ...]:
    """Every row, full precision first; the parts of our method are those of `p4q-edge learn --ablate methods`."""
    return (*_float_rows(section), *_tool_rows(), *_released_rows(), *_our_rows(section))


def _float_rows(section: LearnSection) -> list[Row]:
    return [
        Row(
            name=variant.name,
            group="full precision",
            widths=(FLOAT,),
            execution={FLOAT: "FP32"},
            answer=partial(ours, changes=variant.learn),
        )
        for variant in method_variants(section)
        if variant.full_precision
    ]


def _tool_rows() -> list[Row]:
    int8 = {"W8A8": "executed"}
    quantizers: dict[str, tuple[Quantizer, Mapping[str, str]]] = {
        "ONNX Runtime (min-max)": (partial(onnxruntime_static, method="MinMax"), int8),
        "ONNX Runtime (percentile)": (partial(onnxruntime_static, method="Percentile"), int8),
        "NNCF": (nncf, int8),
        "Model Optimizer (max)": (partial(model_optimizer, config="INT8_DEFAULT_CFG"), {}),
        "Model Optimizer (SmoothQuant)": (partial(model_optimizer, config="INT8_SMOOTHQUANT_CFG"), {}),
    }
    return [
        Row(
            name=name,
            group="other tools",
            widths=tuple(WIDTHS),
            execution=dict.fromkeys(WIDTHS, "simulated") | dict(execution),
            answer=partial(tool, quantizer=quantizer),
        )
        for name, (quantizer, execution) in quantizers.items()
    ]


def _released_rows() -> list[Row]:
    simulated = dict.fromkeys(WIDTHS, "simulated")
    four = "W8A8, patches W4A4"
    return [
        Row(
            name=name,
            group="published code",
            widths=tuple(execution),
            execution=execution,
            answer=partial(released, text=text, patch_bits=patch_bits),
        )
        for name, execution, text, patch_bits in (
            ("as-released (image tower)", simulated, False, 0),
            ("as-released (both towers)", simulated, True, 0),
            ('as-released ("4-4-8")', {four: "simulated"}, True, 4),
        )
    ]


def _our_rows(section: LearnSection) -> list[Row]:
    everywhere = {width: "executed" if width == "W8A8" else "carried" for width in WIDTHS}
    rows = []
    for variant in method_variants(section):
        if variant.full_precision:
            continue
        execution: Mapping[str, str] = {"W8A8": "executed"}
        if variant.learn == PTQ:
            execution = everywhere
        elif variant.learn in ({}, {"class_residual": False}):
            # At full precision: what the same learning reaches where the encoder loses nothing.
            execution = {FLOAT: "FP32, adapter W8A8"} | everywhere
        rows.append(
            Row(
                name=variant.name,
                group="P4Q Edge",
                widths=tuple(execution),
                execution=execution,
                answer=partial(ours, changes=variant.learn),
            )
        )
    return rows
