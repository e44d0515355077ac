"""The model card of a bundle on the Hub: README.md with the metadata that the Hub reads, made from what is recorded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from p4q_edge.runtime.artifacts import Bundle
from p4q_edge.runtime.choices import QuantizedFlavour
from p4q_edge.runtime.evaluation.report import Report, formatting
from p4q_edge.runtime.hub.address import HubAddress
from p4q_edge.runtime.hub.figures import ZERO_SHOT, Figures, figures_of
from p4q_edge.runtime.stage import FAKE_QUANT, FLOAT
from p4q_edge.runtime.statistics import Estimate
from p4q_edge.runtime.storage import printable
from p4q_edge.runtime.wording import number_of

MARK = "<!-- written by p4q-edge push -->"
TASK = "zero-shot-image-classification"
# What the Hub calls licences; others are `other`, with their name.
_LICENCES = frozenset(
    {
        *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "openrail", "mpl-2.0"),
        *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0"),
    }
)
_UNKNOWN = frozenset({"", "unknown", "not stated"})
_STAGES = {
    ZERO_SHOT: "full precision, hand-written prompts, nothing learned",
    FLOAT: "learned, full precision",
    FAKE_QUANT: "learned, quantized, in PyTorch",
    "onnx": "the graph of the bundle in ONNX Runtime",
    "engine": "the engine",
}
_MAX_CLASSES = 200
# Of a bundle in INT8 everything that is supported builds engines.
_NEEDS: Mapping[QuantizedFlavour, tuple[str, ...]] = {
    "int4": ("Engines for GPUs need TensorRT 10.13 or later, which JetPack 6 has not, or TensorRT for RTX.",),
    "fp8": (
        "Engines for GPUs need compute capability 8.9 or later, which Jetson Orin has not, and TensorRT 10.12 or later "
        "or TensorRT for RTX. No CPU multiplies FP8: engines for these compute its values in FP32.",
    ),
}


def card_text(bundle: Bundle, address: HubAddress, *, report: Report | None = None) -> str:
    """Return README.md for the repository of a bundle.

    Args:
        bundle: what is described.
        address: where it will lie.
        report: of `p4q-edge validate` about an engine of it; without one, what the bundle recorded itself is told.

    Raises:
        UsageError: the report is of another bundle, or has no accuracy.
    """
    figures = figures_of(bundle, report)
    sections = [
        f"---\n{_yaml(_metadata(bundle, address, figures))}---\n{MARK}\n",
        f"# {_plain(address.repo.partition('/')[2])}\n",
        _what(bundle),
        _use(address),
        _accuracy(figures),
        _classes(bundle.manifest.class_names),
        _made(bundle),
        _limits(bundle),
    ]
    return "\n".join(sections)


def _metadata(bundle: Bundle, address: HubAddress, figures: Figures | None) -> dict[str, Any]:
    manifest = bundle.manifest
    stated = manifest.model.license.strip()
    licence: dict[str, Any] = {"license": "other", "license_name": stated}
    if stated.lower() in _LICENCES:
        licence = {"license": stated.lower()}
    elif stated.lower() in _UNKNOWN:
        licence = {"license": "unknown"}
    found: dict[str, Any] = {**licence, "library_name": "p4q-edge", "pipeline_tag": TASK}
    found["tags"] = ["p4q-edge", "clip", TASK, "image-classification", "quantization", "onnx", *_widths(bundle)]
    base = manifest.model.name.partition("hf-hub:")[2]
    if base:
        found["base_model"] = base
    if figures is not None and figures.top1:
        found["model-index"] = [_results(address, figures)]
    return found


def _widths(bundle: Bundle) -> list[str]:
    precision = bundle.manifest.precision
    if precision.mean_weight_bits is not None:
        return ["mixed-precision"]
    if precision.number_format == "fp8" and precision.quantized_linears:
        return ["fp8"]
    return [f"w{precision.weight_bits}a{precision.activation_bits}"] if precision.quantized_linears else []


def _results(address: HubAddress, figures: Figures) -> dict[str, Any]:
    """Return the entry of the Hub's list of results: the last stage, which is the nearest to what runs."""
    stage = list(figures.top1)[-1]
    top5 = figures.top5.get(stage)
    measured = [("accuracy", "top-1", figures.top1[stage]), *([("accuracy", "top-5", top5)] if top5 else [])]
    return {
        "name": address.repo.partition("/")[2],
        "results": [
            {
                "task": {"type": "image-classification", "name": _STAGES.get(stage, stage)},
                "dataset": {"type": "image-folder", "name": printable(figures.data)},
                "metrics": [_metric(kind, name, estimate) for kind, name, estimate in measured],
            }
        ],
    }


def _metric(kind: str, name: str, estimate: Estimate) -> dict[str, Any]:
    low, high = round(100 * estimate.low, 2), round(100 * estimate.high, 2)
    return {
        "type": kind,
        "name": f"{name}, % (n = {estimate.n}, 95 % interval {low} to {high})",
        "value": round(100 * estimate.value, 2),
        "args": {"n": estimate.n, "low": low, "high": high},
    }


def _yaml(values: Mapping[str, Any]) -> str:
    """Return YAML: a key a line, each value as JSON, which YAML contains."""
    return "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())


def _what(bundle: Bundle) -> str:
    manifest, precision = bundle.manifest, bundle.manifest.precision
    return (
        f"A zero-shot image classifier of {number_of(len(manifest.class_names), 'class')}: the image tower of "
        f"{_plain(manifest.model.name)} ({_plain(manifest.model.pretrained or 'its own weights')}), "
        f"{precision.label}, {precision.parts}. It is a bundle of P4Q Edge: one file, from which an engine is built on "
        "the machine that runs it (TensorRT on a Jetson or a desktop GPU, ONNX Runtime or OpenVINO on a CPU), without "
        "PyTorch.\n"
    )


def _use(address: HubAddress) -> str:
    return (
        "## Use\n\n```\n"
        "pip install 'p4q-edge-runtime[hub,onnxruntime]'\n"
        f"p4q-edge build {address} --engine out.onnx\n"
        "p4q-edge classify out.onnx photo.jpg\n"
        "```\n\n"
        "`out.plan` in place of `out.onnx` builds a TensorRT engine. `p4q-edge selftest out.onnx` compares it with "
        "what was computed where the bundle was made.\n"
    )


def _accuracy(figures: Figures | None) -> str:
    if figures is None:
        return "## Accuracy\n\nNot known: no labelled image was seen.\n"
    rows = [
        (
            _STAGES.get(name, name) + (f" ({figures.backend})" if name == "engine" and figures.backend else ""),
            _share(top1),
            _share(figures.top5.get(name)),
            str(top1.n),
        )
        for name, top1 in figures.top1.items()
    ]
    note = " The rows are of heads learned from the other parts." if figures.cross_validated else ""
    table = _table(("stage", "top-1, 95 % interval", "top-5", "n"), rows)
    return f"## Accuracy\n\n{table}\n\nOn {_plain(figures.data)}.{note}\n"


def _share(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{formatting.percent(estimate.value)} {formatting.interval(estimate)}"


def _classes(names: tuple[str, ...]) -> str:
    shown = ", ".join(_plain(name) for name in names[:_MAX_CLASSES])
    rest = f", and {len(names) - _MAX_CLASSES} more" if len(names) > _MAX_CLASSES else ""
    return f"## Classes\n\n{shown}{rest}\n"


def _made(bundle: Bundle) -> str:
    manifest = bundle.manifest
    versions = ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()))
    rows = [
        ("made by", manifest.created_by),
        ("with", versions or "versions that were not recorded"),
        ("weights", f"{manifest.model.name}, SHA-256 {manifest.model.weights_sha256}"),
        ("licence of the weights", manifest.model.license or "not stated"),
        ("learned from", f"{number_of(len(manifest.data_index.learned), 'labelled image')}, seed {manifest.seed}"),
        ("image size", " x ".join(map(str, manifest.image_size))),
        ("bundle", f"SHA-256 {bundle.sha256()}"),
    ]
    return "## How it was made\n\n" + _table(("", ""), rows) + "\n"


def _limits(bundle: Bundle) -> str:
    lines = [
        "It knows the classes above and no others. What it was not learned from, such as another camera, other light "
        "or another country, may be named worse than these figures say.",
        "Bit widths that are *carried* are values of fewer bits on 8-bit kernels: the accuracy of those bits, the "
        "speed of 8.",
        *_NEEDS.get(bundle.manifest.precision.plan_flavour, ()),
        *(f"No engine is built from its graph for {kind}: {_plain(why)}" for kind, why in _unsound(bundle)),
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"


def _unsound(bundle: Bundle) -> Iterable[tuple[str, str]]:
    names = {"fp16": "TensorRT", "fp32": "CPUs"}
    return ((names[kind], why) for kind, why in bundle.manifest.unsound.items())


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Return a text that neither Markdown nor HTML takes for markup, on one line."""
    shown = " ".join(printable(text).split())
    for mark, safe in {"\\": "\\\\", "&": "&amp;", "<": "&lt;", "|": "\\|", "[": "\\[", "]": "\\]", "`": "\\`"}.items():
        shown = shown.replace(mark, safe)
    return shown
