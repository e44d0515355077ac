"""The configurations of the models of a repository: decoding, engine, head, and the ensemble of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from p4q_edge.runtime.artifacts import BUILT_IN, Card
from p4q_edge.runtime.serving.text_format import Value, Word
from p4q_edge.runtime.stage import OUTPUT_NAMES

EngineBackend = Literal["onnxruntime", "tensorrt", "python"]
IMAGE, ENCODED = "image", "encoded"
DELAY_US = 1000
"""How long a request may wait for others to fill a batch."""
WARM_UP_FILE = "golden_image"
LABELS_FILE = "labels.txt"
TOP_K = 5
_DECODERS = 2
_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names of the models of one head: `name` is what clients ask, the others are its parts."""

    name: str
    decode: str
    engine: str
    head: str


def head_model(name: str, head: str) -> str:
    """Return the name of the model that answers with a head: `name` itself is that of the built-in one."""
    return name if head == BUILT_IN else f"{name}-{head}"


def engine_model(name: str) -> str:
    """Return the name of the model that is the engine alone."""
    return f"{name}_engine"


def tensor(name: str, kind: str, *dims: int) -> dict[str, Value]:
    """Return a field `input` or `output`; the batch is no dimension of it."""
    return {"name": name, "data_type": Word(f"TYPE_{kind}"), "dims": list(dims)}


def outputs_of_head(classes: int) -> list[dict[str, Value]]:
    """Return what a head answers for an image: its best classes and whether the first is known."""
    best = min(TOP_K, classes)
    return [
        tensor("label", "STRING", best),
        tensor("score", "FP32", best),
        tensor("index", "INT32", best),
        tensor("known", "BOOL", 1),
    ]


def engine_config(card: Card, name: str, *, backend: EngineBackend, max_batch: int, file: str) -> dict[str, Value]:
    """Return the configuration of the engine: uint8 images in, logits, embedding and features out."""
    height, width = card.preprocess.size
    sizes = (len(card.class_names), card.embedding_dim, card.embedding_dim)
    outputs = [tensor(output, "FP32", size) for output, size in zip(OUTPUT_NAMES, sizes, strict=True)]
    outputs[0]["label_filename"] = LABELS_FILE
    kind = "KIND_CPU" if card.on_cpu else "KIND_GPU"
    runs: dict[str, Value] = {"backend": "python"} if backend == "python" else {"platform": _PLATFORMS[backend]}
    return {
        "name": name,
        **runs,
        "max_batch_size": max_batch,
        "default_model_filename": "model.py" if backend == "python" else file,
        "input": [tensor(IMAGE, "UINT8", 3, height, width)],
        "output": list(outputs),
        "instance_group": [{"count": 1, "kind": Word(kind)}],
        "dynamic_batching": {"max_queue_delay_microseconds": DELAY_US},
        # Kernels are chosen and compiled before the first client waits for them.
        "model_warmup": [
            {
                "name": "golden",
                "batch_size": 1,
                "inputs": {
                    "key": IMAGE,
                    "value": {
                        "data_type": Word("TYPE_UINT8"),
                        "dims": [3, height, width],
                        "input_data_file": WARM_UP_FILE,
                    },
                },
            }
        ],
    }


def decode_config(card: Card, name: str, *, max_batch: int) -> dict[str, Value]:
    """Return the configuration of the model that makes images of encoded ones."""
    height, width = card.preprocess.size
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": max_batch,
        "input": [tensor(ENCODED, "STRING", 1)],
        "output": [tensor(IMAGE, "UINT8", 3, height, width)],
        "instance_group": [{"count": _DECODERS, "kind": Word("KIND_CPU")}],
    }


def head_config(card: Card, name: str, *, classes: int, max_batch: int) -> dict[str, Value]:
    """Return the configuration of a head: adapter, temperature and thresholds on what the engine gives."""
    sizes = (len(card.class_names), card.embedding_dim, card.embedding_dim)
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": max_batch,
        "input": [tensor(output, "FP32", size) for output, size in zip(OUTPUT_NAMES, sizes, strict=True)],
        "output": list(outputs_of_head(classes)),
        "instance_group": [{"count": 1, "kind": Word("KIND_CPU")}],
    }


def ensemble_config(names: Names, *, classes: int, max_batch: int) -> dict[str, Value]:
    """Return the configuration of what clients ask: an encoded image in, labels and scores out."""
    answers = outputs_of_head(classes)
    return {
        "name": names.name,
        "platform": "ensemble",
        "max_batch_size": max_batch,
        "input": [tensor(ENCODED, "STRING", 1)],
        "output": list(answers),
        "ensemble_scheduling": {
            "step": [
                _step(names.decode, [ENCODED], [IMAGE]),
                _step(names.engine, [IMAGE], list(OUTPUT_NAMES)),
                _step(names.head, list(OUTPUT_NAMES), [str(answer["name"]) for answer in answers]),
            ]
        },
    }


def _step(model: str, inputs: list[str], outputs: list[str]) -> dict[str, Value]:
    return {
        "model_name": model,
        "model_version": -1,
        "input_map": [{"key": name, "value": name} for name in inputs],
        "output_map": [{"key": name, "value": name} for name in outputs],
    }


def deepstream_config(engine: str, *, max_batch: int) -> dict[str, Value]:
    """Return a configuration of DeepStream's `nvinferserver` for the engine alone, on whole frames.

    DeepStream scales frames in its own way, not as the card says, and compares logits instead of probabilities.
    """
    return {
        "infer_config": {
            "unique_id": 1,
            "gpu_ids": 0,
            "max_batch_size": max_batch,
            "backend": {
                "triton": {
                    "model_name": engine,
                    "version": -1,
                    "model_repo": {"root": ".", "strict_model_config": True},
                },
                "outputs": [{"name": "logits"}],
            },
            "preprocess": {
                "network_format": Word("IMAGE_FORMAT_RGB"),
                "tensor_order": Word("TENSOR_ORDER_LINEAR"),
                "tensor_name": IMAGE,
                "maintain_aspect_ratio": 0,
                # The engine takes pixels as they are.
                "normalize": {"scale_factor": 1},
            },
            "postprocess": {"labelfile_path": f"{engine}/{LABELS_FILE}", "classification": {}},
        },
        "input_control": {"process_mode": Word("PROCESS_MODE_FULL_FRAME"), "interval": 0},
    }
