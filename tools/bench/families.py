"""What of each family of image towers is quantized, whether its graphs compute it, how large and how fast they are.

    python tools/bench/families.py --work build/families
    python tools/bench/families.py --work build/families --models RN50,MobileCLIP2-S0 --share-only

Weights are random, so that kernels, sizes, parity and speed mean something and accuracy does not. Gains that start at
or near zero (the last BatchNorm of a residual block, layer scales) are drawn from 0.5 to 1: at zero a block computes
nothing. Each model is measured in a process of its own and its row is kept under --work, from where the table is
written; `--share-only` stops before the graphs are made. NVIDIA's compiler counts kernels where it can be had
(``tools/compile_check``); elsewhere the graph is kept too, for the next run. `--write` puts rows into
``results/families-<date>.json`` and the table into ``docs/families.md``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from p4q_edge.runtime.machine import provenance
from p4q_edge.runtime.storage import atomic_write

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "tools" / "bench" / "results"
PAGE = REPOSITORY / "docs" / "families.md"
BEGIN, END = "<!-- families: written by tools/bench/families.py -->", "<!-- end of families -->"

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "ViT of OpenAI, LAION, DataComp": ("ViT-B-32", "ViT-B-16", "ViT-L-14"),
    "ResNet of OpenAI": ("RN50", "RN101"),
    "SigLIP, SigLIP2": ("ViT-B-16-SigLIP", "ViT-B-16-SigLIP2"),
    "MobileCLIP": ("MobileCLIP-S1", "MobileCLIP-S2", "MobileCLIP-B"),
    "MobileCLIP2": ("MobileCLIP2-S0", "MobileCLIP2-S2", "MobileCLIP2-S3"),
    "ConvNeXt": ("convnext_base", "convnext_large_d"),
    "EVA02": ("EVA02-B-16",),
    "ViTamin": ("ViTamin-S", "ViTamin-B"),
    "CoCa": ("coca_ViT-B-32",),
    "EfficientNet-Lite (timm)": ("tf_efficientnet_lite2",),
    "CLIP with a BERT-like text tower": ("roberta-ViT-B-32", "xlm-roberta-base-ViT-B-32"),
}
OF_TIMM: Mapping[str, dict[str, Any]] = {
    "tf_efficientnet_lite2": {
        "embed_dim": 1280,
        "vision_cfg": {
            "timm_model_name": "tf_efficientnet_lite2",
            "timm_pool": "avg",
            "timm_proj": "none",
            "image_size": 260,
        },
        "text_cfg": {},
    }
}
"""Towers that open_clip takes from timm without naming them."""
CLASSES = 100
_NO_COMPILER = 3
_NO_GAIN = 0.01
_ROUNDS = {"warmup": 2, "minimum": 9, "maximum": 60, "seconds": 6.0}


def measure(name: str, config: Mapping[str, Any], *, graph: Path | None) -> dict[str, Any]:
    """The row of one image tower with random weights.

    Args:
        name: what the row calls it.
        config: as open_clip writes configurations of models.
        graph: where TensorRT's graph is left for NVIDIA's compiler; None: make no graphs.
    """
    from p4q_edge.quant import QuantScheme, count_macs, quant_convs, quant_linears

    begin = time.monotonic()
    # Minima and maxima: random weights have no outliers, and searching costs time.
    scheme = QuantScheme(observer="minmax", weight_observer="minmax")
    model, images = classifier_maker()(config, name, classes=CLASSES, scheme=scheme, prepare=draw_gains)
    import torch

    macs = count_macs(model.encoder, torch.from_numpy(images[:1]).float() / 255)
    on_cpu = count_macs(model.encoder, torch.from_numpy(images[:1]).float() / 255, convolutions=False)
    convs = [one for one in model.encoder.modules() if isinstance(one, torch.nn.Conv2d)]
    row: dict[str, Any] = {
        "pixels": images.shape[-1],
        "gmacs": macs.total / 1e9,
        "share": macs.integer_share,
        "share_on_cpu": on_cpu.integer_share,
        "linears": len(quant_linears(model.encoder)),
        "convolutions": len(quant_convs(model.encoder)),
        "convolutions_in_float": len(convs),
    }
    if graph is not None:
        row |= _of_graphs(model, images, graph)
    return row | {"seconds": round(time.monotonic() - begin, 1)}


def draw_gains(model: Any) -> int:
    """Draw gains of residual branches that are at or near zero from 0.5 to 1, in place; return how many vectors."""
    import torch

    generator = torch.Generator().manual_seed(0)
    drawn = 0
    for name, parameter in model.visual.named_parameters():
        last = name.rpartition(".")[2]
        norm = last == "weight" and parameter.ndim == 1
        if (norm or last.startswith("gamma")) and float(parameter.detach().abs().max()) < _NO_GAIN:
            parameter.data.uniform_(0.5, 1.0, generator=generator)
            drawn += 1
    return drawn


def _of_graphs(model: Any, images: np.ndarray, left: Path) -> dict[str, Any]:
    """Parity, sizes and speed of the graphs."""
    from p4q_edge.graph import export_classifier

    graphs = export_classifier(model, images)
    agreement = graphs.parity.agreement
    atomic_write(left, graphs.fp16 + graphs.weights, force=True)
    whole = graphs.fp32 + graphs.weights
    row = {
        "cosines": {kind: one.cosine_embedding for kind, one in agreement.items() if kind not in graphs.unsound},
        "unsound": graphs.unsound,
        "bundle_mb": (len(graphs.fp16) + len(whole)) / 1e6,
        "engine_mb": len(whole) / 1e6,
    }
    return row | _speed(whole, images[:1])


def _speed(model: bytes, image: np.ndarray) -> dict[str, Any]:
    """How many times as fast as ONNX Runtime FP32 the engines for CPUs are here, with one thread, timed in turns."""
    from functools import partial

    from p4q_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine, float_weights
    from p4q_edge.runtime.engines.openvino import OpenVINOEngine, installed, model_source
    from p4q_edge.runtime.statistics import Rounds, measure_interleaved, paired_ratio

    exact = float_weights(model)
    engines: dict[str, Any] = {
        "float": OnnxRuntimeEngine(exact, threads=1),
        "onnxruntime": OnnxRuntimeEngine(model, threads=1),
    }
    if installed():
        engines["openvino"] = OpenVINOEngine(model_source(model), threads=1)
    rounds = Rounds(**_ROUNDS)  # type: ignore[arg-type]
    times = measure_interleaved({name: partial(one.run, image) for name, one in engines.items()}, rounds)
    ratios = {
        name: asdict(paired_ratio(times["float"], times[name], generator=np.random.default_rng(0)))
        for name in engines
        if name != "float"
    }
    return {"fp32_mb": len(exact) / 1e6, "fp32_ms": float(np.median(times["float"])), "times_as_fast": ratios}


def compiled(graph: Path) -> dict[str, Any]:
    """Kernels and megabytes of NVIDIA's compiler for a graph; nothing where it cannot be had, or what it said."""
    command = [sys.executable, str(REPOSITORY / "tools" / "compile_check"), str(graph)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == _NO_COMPILER:
        print(done.stderr.strip(), file=sys.stderr)
        return {}
    if done.returncode:
        return {"compiler": (done.stdout + done.stderr).strip()[-500:] or f"exit code {done.returncode}"}
    found = json.loads(done.stdout)
    return {"kernels": found["kernels"], "products": found["products"], "plan_mb": found["plan_bytes"] / 1e6}


def classifier_maker() -> Callable[..., tuple[Any, np.ndarray]]:
    """`classifier_of` of ``tools/compile_check``, which lies on no path of this tool."""
    path = REPOSITORY / "tools" / "compile_check" / "random_classifier.py"
    spec = importlib.util.spec_from_file_location("random_classifier", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.classifier_of  # type: ignore[no-any-return]


def described(name: str) -> dict[str, Any]:
    """What open_clip's list says of a model, without making it."""
    from p4q_edge.models import list_models, tag_licence

    if name in OF_TIMM:
        return {"text": "any", "prompts": True, "licences": ["Apache-2.0"]}
    import open_clip

    config = open_clip.get_model_config(name)
    (row,) = [one for one in list_models(name, count=False) if one.name == name]
    text = config["text_cfg"].get("hf_model_name") or "transformer"
    return {"text": text, "prompts": row.prompts, "licences": sorted({tag_licence(tag) for tag in row.tags})}


def config_of(name: str) -> Mapping[str, Any]:
    """The configuration of a model by name."""
    import open_clip

    return OF_TIMM.get(name) or open_clip.get_model_config(name)


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    header = (
        "model",
        "pixels",
        "GMACs",
        "in INT8, % (CPU graph)",
        "linears, convolutions",
        "least cosine, FP16 / FP32 graph",
        "kernels, plan MB",
        "bundle, FP32 graph, MB",
        "x FP32 on a CPU, ONNX Runtime / OpenVINO",
        "text tower, prompts",
        "licences of weights",
    )
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for family, names in FAMILIES.items():
        lines += [f"| **{family}** |" + " |" * (len(header) - 1)]
        lines += ["| " + " | ".join(_cells(name, rows[name])) + " |" for name in names if name in rows]
    return "\n".join(lines)


def _cells(name: str, row: Mapping[str, Any]) -> list[str]:
    known = [f"{row['text']}{', prompts' if row['prompts'] else ''}", ", ".join(row["licences"]) or "unknown"]
    if "problem" in row:
        return [name, "", "", "refused: " + row["problem"].replace("|", "\\|"), "", "", "", "", "", *known]
    found = [
        name,
        str(row["pixels"]),
        f"{row['gmacs']:.2f}",
        f"{_percent(row['share'])} ({_percent(row['share_on_cpu'])})",
    ]
    found.append(f"{row['linears']}, {row['convolutions']}")
    if "bundle_mb" not in row:
        return [*found, "-", "-", "-", "-", *known]
    cosines = [f"{one:.5f}" if (one := row["cosines"].get(kind)) else "unsound" for kind in ("fp16", "fp32")]
    ratios = [
        f"{one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"
        for key in ("onnxruntime", "openvino")
        if (one := row["times_as_fast"].get(key)) is not None
    ]
    kernels = f"{row['kernels']}, {row['plan_mb']:.0f}" if "kernels" in row else "-"
    sizes = f"{row['bundle_mb']:.0f}, {row['fp32_mb']:.0f}"
    return [*found, " / ".join(cosines), kernels, sizes, " / ".join(ratios), *known]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def run(name: str, work: Path, *, share_only: bool) -> None:
    """Measure a model in a process of its own, unless its row is there, and keep the row."""
    kept, graph = work / f"{name}.json", _graph(work, name)
    before = json.loads(kept.read_text()) if kept.is_file() else {}
    if "problem" in before or before.keys() & {"kernels", "compiler"} or (share_only and "share" in before):
        return
    if "bundle_mb" in before and graph.is_file():  # measured where the compiler could not be had
        _compile(before, kept, graph)
        return
    command = [sys.executable, __file__, "--one", name, "--work", str(work), *(["--share-only"] if share_only else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:  # too little memory is no property of a model
        print(f"{name}: ended by signal {-done.returncode}, no row is kept", file=sys.stderr)
        return
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        print(f"{name}: {last}", file=sys.stderr)
        said = textwrap.shorten(re.sub(r"^[\w.]+: ", "", last), 300)
        atomic_write(kept, json.dumps({**described(name), "problem": said}).encode(), force=True)
    elif not share_only:
        _compile(json.loads(kept.read_text()), kept, graph)


def _compile(row: Mapping[str, Any], kept: Path, graph: Path) -> None:
    """Add what the compiler found to a row; where it cannot be had, the graph stays for the next run."""
    found = compiled(graph)
    atomic_write(kept, json.dumps({**row, **found}).encode(), force=True)
    if found:
        graph.unlink()


def _graph(work: Path, name: str) -> Path:
    """Where the graph of a model lies until it is compiled."""
    return work / f"{name}.onnx"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the table of all rows that there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of rows")
    parser.add_argument("--models", help="names with commas between them (default: all)")
    parser.add_argument("--share-only", action="store_true", help="make no graphs")
    parser.add_argument("--write", action="store_true", help="write results and page from the rows that there are")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.one:
        graph = None if args.share_only else _graph(args.work, args.one)
        row = described(args.one) | measure(args.one, config_of(args.one), graph=graph)
        atomic_write(args.work / f"{args.one}.json", json.dumps(row).encode(), force=True)
        return 0
    every = [name for names in FAMILIES.values() for name in names]
    asked = every if args.models is None else [name.strip() for name in args.models.split(",")]
    if unknown := sorted(set(asked) - set(every)):
        parser.error(f"--models: {', '.join(map(repr, unknown))} not among {', '.join(every)}")
    for name in asked:
        run(name, args.work, share_only=args.share_only)
    rows = {name: json.loads(path.read_text()) for name in every if (path := args.work / f"{name}.json").is_file()}
    print(table(rows))
    if args.write:
        write(rows)
    return 0


def write(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the rows to the results and the table into the page."""
    document = {
        "schema_version": 1,
        "rows": rows,
        "versions": provenance.versions(),
        "machine": provenance.this_machine(),
        "git_commit": provenance.git_commit(),
        "load_average": os.getloadavg(),
    }
    date = time.strftime("%Y-%m-%d", time.gmtime())
    path = RESULTS / f"families-{date}.json"
    atomic_write(path, json.dumps(document, indent=1).encode() + b"\n", force=True)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    atomic_write(PAGE, f"{before}{BEGIN}\n{table(rows)}\n{END}{after}".encode(), force=True)


if __name__ == "__main__":
    sys.exit(main())
