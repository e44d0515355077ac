"""What `--json` of every subcommand writes: its top-level keys, beside `schema_version`, in words.

Tests run the commands and compare; `tools/write_schema_docs.py` writes the page from here. `validate`, `bench` and
`reproduce` have records whose fields the page shows as well.
"""

from __future__ import annotations

from collections.abc import Mapping

_ENGINE = "path of the engine"
_SHA256 = "SHA-256 of the file"
_KIND = "what is described"

DOCUMENTS: Mapping[str, Mapping[str, str]] = {
    "build MODEL.p4q": {
        "engine": _ENGINE,
        "card": "path of its card",
        "backend": "`onnxruntime` or `tensorrt`",
        "engine_size_bytes": "size of the engine",
        "engine_sha256": _SHA256,
        "golden": "comparison with the golden samples, see `selftest`; null for an engine of another machine",
    },
    "build --recipe": {
        "engine": _ENGINE,
        "card": "path of its card",
        "bundle": "path of the bundle",
        "summary": "`n` images that were not learned from, `cross_validated` (whether they are the photographs learned "
        "from, each named by a head that was not) and `rows`: `name`, `top1` with its 95 % interval `low` to "
        "`high`, `size_bytes`, `latency_ms` of one image or null",
        "run": "run folder",
        "backend": "`onnxruntime` or `tensorrt`",
        "engine_size_bytes": "size of the engine",
        "engine_sha256": _SHA256,
    },
    "build --print-config": {"recipe": "the resolved recipe by section"},
    "build --dry-run, ONNX Runtime": {
        "engine": _ENGINE,
        "exists": "whether it is there",
        "backend": "`onnxruntime`",
        "cpu_profile": "profile that was asked for",
        "model_bytes": "size of the graph with its weights",
        "unsigned_kernels": "whether this processor needs the kernels that do not saturate",
        "onnxruntime": "version",
        "cpu": "this processor",
    },
    "classify": {
        "engine": _ENGINE,
        "predictions": "for each image `source`, `label`, `score`, `known`, `accepted` and `topk`; or, of one "
        "that cannot be used, `source` and `error` (`type`, `message`). With `--stream` each is a line of its own",
    },
    "inspect MODEL.p4q": {
        "kind": _KIND,
        "path": "path of the bundle",
        "size_bytes": "size of the bundle",
        "sha256": _SHA256,
        "created_by": "program and version",
        "model": "the CLIP model: name, weights, family, licence, digest",
        "precision": "bit widths, and whether they are executed or carried",
        "class_names": "in the order of the logits",
        "image_size": "height and width of the input",
        "embedding_dim": "numbers of an embedding",
        "members": "size and digest of each member",
        "versions": "libraries that exported it",
        "seed": "of the recipe",
        "recipe": "the resolved recipe",
        "data_index": "images learned from (name, label, digest), number of test images",
        "parity": "how near the graphs came to the fake-quantized model",
        "unsound": "why no engine can be built from a graph, by graph: fp16 for TensorRT, fp32 for CPUs",
        "narrowest_bits": "of the narrowest quantized input",
        "preprocess": "how pictures become the input",
        "golden_samples": "number of golden samples",
    },
    "inspect ENGINE": {
        "kind": _KIND,
        "path": _ENGINE,
        "backend": "`onnxruntime` or `tensorrt`",
        "engine_sha256": _SHA256,
        "engine_size_bytes": "size of the engine",
        "bundle_sha256": "digest of the bundle that it was built from",
        "parts": "members of the bundle whose bytes are the engine",
        "built_by": "program and version",
        "built_with": "versions and machine",
        "model": "the CLIP model",
        "precision": "bit widths, and whether they are executed or carried",
        "class_names": "in the order of the logits",
        "preprocess": "how pictures become the input",
        "embedding_dim": "numbers of an embedding",
        "logit_scale": "factor between cosines and logits",
        "calibration": "from logits to probabilities",
        "rounding_bits": "of the narrowest quantized value, which the gates follow",
        "noise": "what roundings do in this model, measured at export",
        "options": "build options",
        "optimized": "the copy that loads faster, or null",
        "measured": "comparison with the golden samples when it was built",
        "inspection": "kernels and counts read from the engine",
        "golden_samples": "number of golden samples",
    },
    "inspect HEAD": {
        "kind": _KIND,
        "path": "path of the head",
        "class_names": "in the order of the logits",
        "embedding_dim": "numbers of an embedding",
        "logit_scale": "factor between cosines and logits",
        "adapter": "whether it has one",
        "calibration": "from logits to probabilities",
        "weights_sha256": "digest of the checkpoint that it fits",
    },
    "inspect --lint": {"kind": _KIND, "path": "what was checked", "findings": "`graph`, `rule`, `node` and `message`"},
    "selftest": {
        "engine": _ENGINE,
        "passed": "whether the engine computes what its reference computes",
        "samples": "number of golden samples",
        "cosine_min": "least cosine to the fake-quantized reference",
        "min_cosine": "its limit, which follows the bit width",
        "top1_agreement": "share of samples with the reference's answer",
        "top1_flips": "samples with another answer although the reference's margin is clear",
        "logit_difference": "largest difference of a logit",
        "float_top1_agreement": "share of samples with the full-precision model's answer",
        "drift": "largest move of an embedding since the engine was built here, or null elsewhere",
        "max_drift": "its limit",
        "doubt": "what is known of wrong values of the TensorRT that built the engine; null if nothing",
    },
    "export-triton": {
        "repository": "folder of the model repository",
        "models": "names of the models that clients ask, one for each head",
    },
    "doctor --board-report": {
        "archive": "where it was written",
        "steps": "`name`, `command`, `exit_code` (null where it was not run), `seconds` and `note`",
    },
    "doctor": {
        "findings": "`subject`, `status`, `message`, `fix` (a command) and `needed_by`",
        "backends": "for each backend whether it can run",
    },
    "head list": {"engine": _ENGINE, "heads": "`name` and `class_names`"},
    "head add": {"engine": _ENGINE, "name": "of the head", "path": "where it is kept"},
    "head calibrate": {
        "engine": _ENGINE,
        "head": "name of the head",
        "applied": "whether it was written; only with `--apply`, and only what is better",
        "calibration": "fitted on all images, or that of the head where nothing better was found",
        "samples": "number of labelled images",
        "folds": "parts of the images; each is judged with what was fitted on the others",
        "accuracy": "share of right answers, whatever their score",
        "before": "what the head's calibration does: `ece` (expected calibration error), `unknown` (share of the "
        "labelled images below their threshold), `accepted_accuracy` (share of right answers among the others), "
        "`unknown_rejected` (share of images of unknown classes that are rejected, or null)",
        "after": "the same of what was fitted, cross-validated",
        "refused": "what was fitted and not taken, and why",
        "unknown_samples": "number of images of unknown classes",
    },
    "head remove": {"engine": _ENGINE, "name": "of the head", "path": "file that was removed"},
    "head reset": {
        "engine": _ENGINE,
        "head": "name of the head",
        "before": "the calibration that it had",
        "calibration": "the one that it has now",
    },
    "head export": {"output": "path of the head", "class_names": "in the order of the logits"},
    "calibrate": {
        "run": "run folder",
        "scheme": "bit widths",
        "execution": "`executed` or `carried`",
        "images": "number of images",
        "input_scales": "scale of each linear's input",
        "kept_float": "linears that are not quantized",
        "folded": "exact folds that were made",
        "quantized_attentions": "attentions whose products are quantized",
        "quantized_convolutions": "convolutions that are quantized",
    },
    "learn": {
        "run": "run folder",
        "learned": "`prompts`, `adapter`, both or none",
        "images": "number of images",
        "classes": "number of classes",
    },
    "learn --ablate": {"rows": "see `Baseline`", "seeds": "of the runs", "path": "where the rows were written"},
    "export": {
        "bundle": "path of the bundle",
        "sha256": _SHA256,
        "size_bytes": "size of the bundle",
        "parity": "how near the graphs came to the fake-quantized model",
        "execution": "`executed` or `carried`",
    },
    "reproduce": {
        "report": "path of the report",
        "same": "whether every figure is",
        "figures": "`name`, `before`, `now`, `limit` and `same`",
    },
    "report": {"report": "path of what was written", "passed": "whether every gate holds"},
    "init": {
        "recipe": "path of the recipe that was written",
        "train": "folder to learn from",
        "test": "folder to test on, or null",
        "classes": "number of images of each class",
        "unusable": "what is wrong with each image that cannot be read",
        "advice": "what to fix before learning",
    },
    "models": {
        "models": "`name`, `tags`, `family`, `input`, `dim`, `image_parameters`, `int8`, `prompts`",
    },
}
"""By command line; a command with several documents has several lines."""

WITH_RECORDS: Mapping[str, str] = {
    "validate": "a `Report`, with `reports`: the paths of what was written",
    "bench": "`Measured`, with `kind`, `engine`, `engine_sha256`, `engine_size_bytes`, `backend`, `precision`, "
    "`threads`, `valid`, `versions`, `machine`, `git_commit` and `created`",
}
"""Commands whose document is a record."""
