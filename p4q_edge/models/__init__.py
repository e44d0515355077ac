"""CLIP models: loading, towers, prompts, adapter, the folded classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.models.adapter import Adapter
    from p4q_edge.models.checkpoint_settings import PreprocessKeys
    from p4q_edge.models.deployment import to_deployment_form
    from p4q_edge.models.families import _BYTES_OF_FLOAT, MAX_COUNTED, ModelRow, list_models
    from p4q_edge.models.folded_classifier import FoldedClassifier, run_folded
    from p4q_edge.models.image_tower import (
        ImageEncoder,
        encode_batches,
        find_attention_owners,
        find_cross_attention,
        round_float_weights,
        tokens_read,
    )
    from p4q_edge.models.load import Batches, LoadedModel, PixelSource, load_model, preprocess_spec, to_batch
    from p4q_edge.models.prompts import (
        TEXT_BATCH_SIZE,
        PromptLearner,
        class_prompts_of,
        fill,
        initial_context,
        template_embeddings,
    )
    from p4q_edge.models.text_side import TextSide
    from p4q_edge.models.text_tower import TextTower, encoder_of, make_text_side

__all__ = [
    "MAX_COUNTED",
    "TEXT_BATCH_SIZE",
    "_BYTES_OF_FLOAT",
    "Adapter",
    "Batches",
    "FoldedClassifier",
    "ImageEncoder",
    "LoadedModel",
    "ModelRow",
    "PixelSource",
    "PreprocessKeys",
    "PromptLearner",
    "TextSide",
    "TextTower",
    "class_prompts_of",
    "encode_batches",
    "encoder_of",
    "fill",
    "find_attention_owners",
    "find_cross_attention",
    "initial_context",
    "list_models",
    "load_model",
    "make_text_side",
    "preprocess_spec",
    "round_float_weights",
    "run_folded",
    "template_embeddings",
    "to_batch",
    "to_deployment_form",
    "tokens_read",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "adapter": ("Adapter",),
            "checkpoint_settings": ("PreprocessKeys",),
            "deployment": ("to_deployment_form",),
            "families": (
                "MAX_COUNTED",
                "ModelRow",
                "_BYTES_OF_FLOAT",
                "list_models",
            ),
            "folded_classifier": (
                "FoldedClassifier",
                "run_folded",
            ),
            "image_tower": (
                "ImageEncoder",
                "encode_batches",
                "find_attention_owners",
                "find_cross_attention",
                "round_float_weights",
                "tokens_read",
            ),
            "load": (
                "Batches",
                "LoadedModel",
                "PixelSource",
                "load_model",
                "preprocess_spec",
                "to_batch",
            ),
            "prompts": (
                "PromptLearner",
                "TEXT_BATCH_SIZE",
                "class_prompts_of",
                "fill",
                "initial_context",
                "template_embeddings",
            ),
            "text_side": ("TextSide",),
            "text_tower": (
                "TextTower",
                "encoder_of",
                "make_text_side",
            ),
        },
    )
