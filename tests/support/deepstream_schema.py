"""What DeepStream's `nvinferserver` reads, as far as our configuration goes: fields, their numbers, types and words.

Written down from NVIDIA's API reference of DeepStream 9.2, namespace `nvdsinferserver::config`, which names every field
and its number; types and words are those of the published configuration files. Fields that we do not write are left
out, and the numbers of words, which text does not have, are ours.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "nvdsinferserver.config"
ENUMS = {
    "ProcessMode": {"PROCESS_MODE_DEFAULT": 0, "PROCESS_MODE_FULL_FRAME": 1, "PROCESS_MODE_CLIP_OBJECTS": 2},
    "MediaFormat": {"MEDIA_FORMAT_NONE": 0, "IMAGE_FORMAT_RGB": 1, "IMAGE_FORMAT_BGR": 2, "IMAGE_FORMAT_GRAY": 3},
    "TensorOrder": {"TENSOR_ORDER_NONE": 0, "TENSOR_ORDER_LINEAR": 1, "TENSOR_ORDER_NHWC": 2},
}
MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    # a `*` in front of a type: repeated; a type with a capital letter: a message or an enumeration
    "PluginControl": {"infer_config": (1, "InferenceConfig"), "input_control": (2, "InputControl")},
    "InputControl": {"process_mode": (1, "ProcessMode"), "interval": (4, "uint32"), "async_mode": (5, "bool")},
    "InferenceConfig": {
        "unique_id": (1, "uint32"),
        "gpu_ids": (2, "*int32"),
        "max_batch_size": (3, "uint32"),
        "backend": (4, "BackendParams"),
        "preprocess": (5, "PreProcessParams"),
        "postprocess": (6, "PostProcessParams"),
    },
    "BackendParams": {"outputs": (2, "*OutputLayer"), "triton": (4, "TritonParams")},
    "OutputLayer": {"name": (1, "string")},
    "TritonParams": {"model_name": (1, "string"), "version": (2, "int64"), "model_repo": (4, "TritonModelRepo")},
    "TritonModelRepo": {"root": (1, "string"), "log_level": (2, "uint32"), "strict_model_config": (3, "bool")},
    "PreProcessParams": {
        "network_format": (1, "MediaFormat"),
        "tensor_order": (2, "TensorOrder"),
        "tensor_name": (3, "string"),
        "maintain_aspect_ratio": (4, "int32"),
        "normalize": (7, "ScaleNormalize"),
    },
    "ScaleNormalize": {"scale_factor": (1, "float"), "channel_offsets": (2, "*float")},
    "PostProcessParams": {"labelfile_path": (1, "string"), "classification": (3, "ClassificationParams")},
    "ClassificationParams": {"threshold": (1, "float")},
}


def plugin_control() -> Any:
    """Return an empty message `PluginControl`, what a configuration file is."""
    file = descriptor_pb2.FileDescriptorProto(name="nvinferserver.proto", package=PACKAGE, syntax="proto3")
    for name, words in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for word, number in words.items():
            enum.value.add(name=word, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _add_field(message, field, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.PluginControl"))()


def _add_field(message: Any, name: str, number: int, kind: str) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    plain = kind.removeprefix("*")
    label = kinds.LABEL_OPTIONAL if plain == kind else kinds.LABEL_REPEATED
    field = message.field.add(name=name, number=number, label=label)
    if plain in ENUMS or plain in MESSAGES:
        field.type = kinds.TYPE_ENUM if plain in ENUMS else kinds.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{plain}"
    else:
        field.type = getattr(kinds, f"TYPE_{plain.upper()}")
