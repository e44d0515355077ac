"""What `inspect` shows of an artifact: its document in words, a line for each question that one may have."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p4q_edge.runtime.storage import printable
from p4q_edge.runtime.wording import number_of

if TYPE_CHECKING:
    from p4q_edge.runtime.classification import Fit
    from p4q_edge.runtime.cli.documents import NamedClasses

WIDTH = 100
_LABEL = 16
_BACKENDS: Mapping[str, str] = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}
_GRAPHS: Mapping[str, str] = {
    "graph.fp16.onnx": "for TensorRT",
    "graph.fp32.onnx": "for CPUs",
    "weights.onnx": "weights of both",
}


def in_words(document: Mapping[str, Any], *, address: str = "") -> str:
    """Return a document of `inspect` as lines of at most 100 columns; `every_value` has the rest.

    Args:
        document: with the artifact's path.
        address: by which it was named, where that is none of a file.
    """
    rows = {"bundle": _bundle, "engine": _engine, "head": _head}[document["kind"]](document)
    lines = [line for label, text in rows if text for line in _wrapped(label, printable(text))]
    size = document.get("size_bytes", document.get("engine_size_bytes"))
    title = f"{document['kind']} {address or document['path']}" + ("" if size is None else f", {size_words(size)}")
    lies = [f"{'lies at':<{_LABEL}}{printable(document['path'])}"] if address else []
    # A line each, whole: a command is there to be copied.
    then = [f"{'next':<{_LABEL}}{printable(command)}" for command in _next(document, address)]
    return "\n".join([printable(title), *lies, *lines, *then, "every value: -v; as JSON: --json"])


def _next(document: Mapping[str, Any], address: str) -> list[str]:
    """Return the command that one would run next; of a head, which belongs to some engine, none."""
    path = Path(document["path"])
    if document["kind"] == "bundle":
        # The folder of what was fetched is the cache of another library: no engine belongs there.
        engine = path.with_suffix(".onnx")
        return [f"p4q-edge build {_word(address or path)} --engine {_word(engine.name if address else engine)}"]
    return [f"p4q-edge classify {_word(path)} IMAGES"] if document["kind"] == "engine" else []


def every_value(document: Mapping[str, Any], indent: str = "") -> list[str]:
    """Return a line for each value of a document, nested as it is."""
    lines = []
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{printable(str(key))}", *every_value(value, indent + "  ")]
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            lines.append(f"{indent}{printable(str(key))} ({len(value)})")
            for item in value:
                lines.append(f"{indent}  {printable(', '.join(f'{name} {part}' for name, part in item.items()))}")
        elif isinstance(value, (list, tuple)):
            lines.append(f"{indent}{printable(str(key))}  {printable(', '.join(map(str, value)))}")
        elif value not in ("", {}, None):
            lines.append(f"{indent}{printable(str(key))}  {printable(str(value))}")
    return lines


def size_words(size_bytes: int) -> str:
    """Return a size in MB of 10^6 bytes; small files in kB."""
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"


def _wrapped(label: str, text: str) -> list[str]:
    first, rest = label.ljust(_LABEL), " " * _LABEL
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def _bundle(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    recipe, index, parity = document["recipe"], document["data_index"], document["parity"]
    data, learn = recipe.get("data", {}), recipe.get("learn", {})
    members = document["members"]
    learned = len(index.get("learned", []))
    steps = 0 if "calibrated_on" in index else learn.get("steps")
    prompts = list(index.get("prompts", {}).values())
    zero_shot = index.get("zero_shot", [])
    return [
        ("made by", f"{document['created_by']} ({_pairs(document['versions'])})"),
        *_shared(document),
        ("prompts", _some([f'"{prompt}"' for prompt in prompts], 4)),
        (
            "learned from",
            f"{number_of(learned, 'image')} of {data.get('train', '?')}, at most {data.get('shots', '?')} of a class; "
            f"{number_of(index.get('test_images', 0), 'other')} to test on",
        )
        if "calibrated_on" not in index
        else ("zero-shot", _calibrated_on(index["calibrated_on"])),
        ("recipe", f"method {recipe.get('method', '?')}, {steps} steps, seed {document['seed']}" if recipe else ""),
        (
            "graphs",
            ", ".join(f"{size_words(members[n]['size_bytes'])} {w}" for n, w in _GRAPHS.items() if n in members),
        ),
        ("agreement", _agreement(parity)),
        *(("not usable", f"{graph}: {why}") for graph, why in document["unsound"].items()),
        ("golden samples", f"{number_of(document['golden_samples'], 'image')} with what PyTorch gave"),
        ("recorded", f"what PyTorch gave for {number_of(len(zero_shot), 'test image')}" if zero_shot else ""),
    ]


def _calibrated_on(found: Mapping[str, Any]) -> str:
    """Return what is known of a bundle that was made without labelled images."""
    held_out = found.get("held_out", 0)
    same = (
        f"; {found.get('same_answer', 0)} of {number_of(held_out, 'other is', 'others are')} named as in full "
        "precision, cosine "
        f"{found['cosine_mean']:.4f} on average"
        if held_out
        else ""
    )
    return (
        f"nothing was learned, and accuracy is not known; ranges from {number_of(found['images'], 'image')} of "
        f"{found['source']} "
        f"without labels{same}"
    )


def _engine(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    golden = document["measured"].get("golden", {})
    backend = document["backend"]
    return [
        ("runs in", f"{_BACKENDS.get(backend, backend)}; built by {document['built_by']}"),
        ("built with", _pairs(document["built_with"])),
        ("bundle", document["bundle_sha256"][:12]),
        *_shared(document),
        ("scores", _calibration(document["calibration"])),
        ("kernels", _kernels(document["inspection"])),
        ("options", _pairs(document["options"])),
        (
            "self-test",
            f"least cosine {golden['cosine_min']:.5f} (limit {golden['min_cosine']:.5f}), same answer for "
            f"{golden['top1_agreement']:.0%} of {number_of(golden['samples'], 'golden sample')}, when it was built"
            if golden
            else f"{number_of(document['golden_samples'], 'golden sample')}",
        ),
    ]


def _head(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("classes", _classes(document["class_names"])),
        ("scores", _calibration(document["calibration"])),
        ("adapter", "yes" if document["adapter"] else "none"),
        ("embedding", f"{document['embedding_dim']} numbers, logit scale {document['logit_scale']:.4g}"),
        ("made for", f"weights {document['weights_sha256'][:12]}" if document["weights_sha256"] else "any weights"),
    ]


def _shared(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a bundle and an engine both say."""
    model = document["model"]
    named = " ".join(part for part in (model["name"], model.get("pretrained", "")) if part)
    licence = model.get("license") or "licence not stated"
    return [
        ("model", f"{named} ({model.get('family', '?')}, {licence}), weights {model['weights_sha256'][:12]}"),
        ("precision", _precision(document["precision"])),
        ("classes", _classes(document["class_names"])),
        ("input", _input(document["preprocess"])),
    ]


def _precision(value: Mapping[str, Any]) -> str:
    import msgspec

    from p4q_edge.runtime.artifacts import Precision

    precision = msgspec.convert(value, Precision)
    on_demand = f"; in float on demand: {', '.join(precision.in_float)}" if precision.in_float else ""
    return f"{precision.label}, {precision.remainder} remainder, {precision.parts} quantized{on_demand}"


def _classes(names: Sequence[str]) -> str:
    return f"{len(names)}: {first_classes(names)}"


def first_classes(names: Sequence[str]) -> str:
    """Return the first names of many, with dots behind where there are more."""
    return ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")


def head_line(engine: Path, head: NamedClasses) -> str:
    """Return a class set of an engine in a line, and how its last version is taken back where it has one."""
    kept, back = head.earlier_versions, f"p4q-edge head undo {shlex.quote(str(engine))} {head.name}"
    earlier = f"  ({kept} earlier, the last back by: {back})" if kept else ""
    return f"{head.name}  {number_of(len(head.class_names), 'class')}: {first_classes(head.class_names)}{earlier}"


def calibration_table(fitted: Fit) -> str:
    """Return what the head's calibration and the new one do, as a table."""
    before, after = fitted.before, fitted.after
    rows = [
        ("calibration error (ECE)", f"{before.ece:.3f}", f"{after.ece:.3f}"),
        ("unknown", f"{before.unknown:.1%}", f"{after.unknown:.1%}"),
        ("right among the known", f"{before.accepted_accuracy:.1%}", f"{after.accepted_accuracy:.1%}"),
    ]
    if before.unknown_rejected is not None and after.unknown_rejected is not None:
        label = f"rejected of {fitted.unknown_samples} unknown"
        rows.append((label, f"{before.unknown_rejected:.1%}", f"{after.unknown_rejected:.1%}"))
    lines = [f"{label:<26}{first:>8}{second:>8}" for label, first, second in rows]
    taken = fitted.calibration
    own = len(taken.class_thresholds)
    of_classes = f", {number_of(own, 'class has its own', 'classes have their own')}" if own else ""
    return "\n".join(
        [
            f"top-1 {fitted.accuracy:.1%}, n = {fitted.samples} (no calibration changes it)",
            f"{'':<26}{'before':>8}{'after':>8}  after: cross-validated, {fitted.folds} folds",
            *lines,
            f"temperature {taken.temperature:.3g}, threshold {taken.threshold:.3f}{of_classes}",
            *(f"not taken: {reason}" for reason in fitted.refused),
        ]
    )


def _some(items: Sequence[str], count: int) -> str:
    more = f", ... ({len(items)})" if len(items) > count else ""
    return ", ".join(map(str, items[:count])) + more


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value not in ("", None, [], {}))


def _input(spec: Mapping[str, Any]) -> str:
    height, width = spec["size"]
    mean, std = (", ".join(f"{value:.4g}" for value in spec[key]) for key in ("mean", "std"))
    turned = "EXIF orientation applied" if spec["orient"] else "EXIF orientation ignored"
    return (
        f"{width} x {height} pixels, {spec['interpolation']}, resize mode {spec['resize_mode']}, {turned}, "
        f"mean {mean}, std {std}"
    )


def _calibration(calibration: Mapping[str, Any]) -> str:
    own = len(calibration["class_thresholds"])
    limit = f"unknown below {calibration['threshold']:.3f}" if calibration["threshold"] else "no answer is unknown"
    return f"{calibration['activation']}, temperature {calibration['temperature']:.3g}, {limit}" + (
        f", {number_of(own, 'class', 'classes')} with own thresholds" if own else ""
    )


def _agreement(parity: Mapping[str, float]) -> str:
    """Return how near each graph came to the fake-quantized model, by the exporter's own measurement."""
    found = {"fp16": "TensorRT's graph", "fp32": "the CPU's"}
    shown = [
        f"{words} {parity[f'{kind}.cosine_embedding']:.5f}"
        for kind, words in found.items()
        if f"{kind}.cosine_embedding" in parity
    ]
    return f"least cosine to the fake-quantized model: {', '.join(shown)}" if shown else ""


def _kernels(inspection: Mapping[str, Any]) -> str:
    counts = inspection.get("kinds") or inspection.get("kernels")
    integer, real = inspection.get("integer_products"), inspection.get("float_products")
    shares = inspection.get("gemm_share")
    said = []
    if shares:
        said.append("operations of matrix products: " + ", ".join(f"{s:.0%} {kind}" for kind, s in shares.items()))
    elif integer is not None and real is not None:
        of_int4 = counts.get("MatMulNBits", 0) if isinstance(counts, Mapping) else 0
        beside = f", {of_int4} with INT4 weights" if of_int4 else ""
        said.append(f"{integer} of {number_of(integer + real, 'matrix product')} in INT8{beside}")
    if isinstance(counts, Mapping):
        most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        said.append(_some([f"{name} {count}" for name, count in most], 6))
    elif isinstance(counts, int):
        said.append(number_of(counts, "kernel"))
    return "; ".join(said)


def _word(path: str | Path) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(str(path))


def value_words(value: object) -> str:
    """Return a value of a document as a line of text tells it: no brackets, no names of Python."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {value_words(one)}" for key, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(value_words, value)) or "none"
    return str(value)
