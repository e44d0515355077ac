"""Small learning runs on the toy model: where they start, with other options, and the values they end with."""

from dataclasses import replace

import msgspec
from torch import Tensor

from p4q_edge.data.few_shot import make_split
from p4q_edge.learning.training import LearningRun, learn_in_place
from p4q_edge.models.load import LoadedModel
from p4q_edge.recipe.schema import DataSection, LearnSection, ModelSection, QuantizationSection, Recipe
from p4q_edge.runtime.images.image_set import ImageSet
from p4q_edge.stages.pipeline import Prepared
from p4q_edge.stages.source import Source
from p4q_edge.stages.students import new_student

LEARN = {"epochs": 30, "context_rate": 5e-3, "adapter_rate": 1e-2, "class_residual": False}


def source_of(toy: LoadedModel, images: ImageSet, **learn_options: object) -> Source:
    recipe = Recipe(
        seed=3,
        model=ModelSection(name="toy"),
        data=DataSection(train="toy", shots=8),
        quantization=QuantizationSection(),
        learn=msgspec.convert(LEARN | learn_options, LearnSection),
    )
    split = make_split(images, None, shots=8, seed=3, test_limit=0)
    return Source(
        recipe=recipe,
        model=toy,
        split=split,
        templates=("a photo of a {}.",),
        class_prompts={},
        train_digests=tuple(split.train.digests()),
    )


def with_options(prepared: Prepared, **learn_options: object) -> Prepared:
    recipe = prepared.source.recipe
    section = msgspec.structs.replace(recipe.learn, **learn_options)
    return replace(prepared, source=replace(prepared.source, recipe=msgspec.structs.replace(recipe, learn=section)))


def learned_values(prepared: Prepared, run: LearningRun) -> dict[str, Tensor]:
    student, _ = new_student(prepared.source)
    learn_in_place(student, prepared.features, prepared.source.recipe.learn, seed=3, run=run)
    return student.state_dict()
