"""CLIP models: loading, towers, prompts, adapter, the folded classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p4q_edge.runtime.lazy import lazy_exports

if TYPE_CHECKING:
    from p4q_edge.models.adapter import Adapter
    from p4q_edge.models.batches import Batches, PixelSource, encode_batches, run_batches
    from p4q_edge.models.checkpoint_settings import PreprocessKeys
    from p4q_edge.models.compute import (
        BATCH_SIZE,
        CPU,
        ON_CPU,
        Compute,
        MemoryMeter,
        decoding_workers,
        device_of,
        memory_in_words,
        require_device,
        teacher_precision,
    )
    from p4q_edge.models.deployment import to_deployment_form
    from p4q_edge.models.families import _BYTES_OF_FLOAT, MAX_COUNTED, ModelRow, list_models
    from p4q_edge.models.folded_classifier import FoldedClassifier, run_folded
    from p4q_edge.models.image_tower import (
        ImageEncoder,
        find_attention_owners,
        find_cross_attention,
        round_float_weights,
        tokens_read,
    )
    from p4q_edge.models.load import LoadedModel, load_model, preprocess_spec, tag_licence, to_batch
    from p4q_edge.models.prompts import (
        TEXT_BATCH_SIZE,
        PromptLearner,
        class_prompts_of,
        cut_texts,
        encode_texts,
        fill,
        initial_context,
        template_embeddings,
    )
    from p4q_edge.models.team import ALONE, Team, claim, joined_team, naming_process, post, posted, present_team
    from p4q_edge.models.team_meeting import difference_in_words
    from p4q_edge.models.text_side import TextSide
    from p4q_edge.models.text_tower import TextTower, encoder_of, make_text_side

__all__ = [
    "ALONE",
    "BATCH_SIZE",
    "CPU",
    "MAX_COUNTED",
    "ON_CPU",
    "TEXT_BATCH_SIZE",
    "_BYTES_OF_FLOAT",
    "Adapter",
    "Batches",
    "Compute",
    "FoldedClassifier",
    "ImageEncoder",
    "LoadedModel",
    "MemoryMeter",
    "ModelRow",
    "PixelSource",
    "PreprocessKeys",
    "PromptLearner",
    "Team",
    "TextSide",
    "TextTower",
    "claim",
    "class_prompts_of",
    "cut_texts",
    "decoding_workers",
    "device_of",
    "difference_in_words",
    "encode_batches",
    "encode_texts",
    "encoder_of",
    "fill",
    "find_attention_owners",
    "find_cross_attention",
    "initial_context",
    "joined_team",
    "list_models",
    "load_model",
    "make_text_side",
    "memory_in_words",
    "naming_process",
    "post",
    "posted",
    "preprocess_spec",
    "present_team",
    "require_device",
    "round_float_weights",
    "run_batches",
    "run_folded",
    "tag_licence",
    "teacher_precision",
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
            "batches": (
                "Batches",
                "PixelSource",
                "encode_batches",
                "run_batches",
            ),
            "compute": (
                "BATCH_SIZE",
                "CPU",
                "Compute",
                "ON_CPU",
                "MemoryMeter",
                "decoding_workers",
                "device_of",
                "memory_in_words",
                "require_device",
                "teacher_precision",
            ),
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
                "find_attention_owners",
                "find_cross_attention",
                "round_float_weights",
                "tokens_read",
            ),
            "load": (
                "LoadedModel",
                "load_model",
                "preprocess_spec",
                "tag_licence",
                "to_batch",
            ),
            "prompts": (
                "PromptLearner",
                "TEXT_BATCH_SIZE",
                "class_prompts_of",
                "cut_texts",
                "encode_texts",
                "fill",
                "initial_context",
                "template_embeddings",
            ),
            "team": ("ALONE", "Team", "claim", "joined_team", "naming_process", "post", "posted", "present_team"),
            "team_meeting": ("difference_in_words",),
            "text_side": ("TextSide",),
            "text_tower": (
                "TextTower",
                "encoder_of",
                "make_text_side",
            ),
        },
    )
