"""How near each quantizer's embeddings come to full precision, on models of real and of random weights.

    python tools/bench/fidelity.py --data DIR --models-folder FOLDER
    python tools/bench/fidelity.py --data DIR --models-folder FOLDER --models vit --rows "P4Q,FP32"
    python tools/bench/fidelity.py --data DIR --models-folder FOLDER --models vit --width W4A8  # ours; or W4A16, FP8
    python tools/bench/fidelity.py --data DIR --models-folder FOLDER --finished --carry results/fidelity-w8a8-OLD.json

All get the same 48 images to calibrate on and are asked about others. Only the linears of the image tower are
quantized, and of EfficientNet the convolutions too where a tool can: each row says in which share of the
multiply-accumulates. FOLDER is where ``real_models.py`` puts its models; missing ones are made.

| model | weights | images |
|---|---|---|
| vit | ViT-S/14, real (`real_models.py`) | imagenet_samples |
| efficientnet | EfficientNet-Lite2, real, with its ImageNet classifier | imagenet_samples |
| photo | the CLIP of photographs of 32 pixels in ``photo_clip/`` | cifar100 |
| demo | the demo's CLIP | digits |
| vit-b-32 | ViT-B/32, random | imagenet_samples |

A finished row is kept under --work and taken from there while model, images, versions and, for our rows, our code are
the same. With ``--carry`` a row that is not finished is taken from older results where they are of the same weights and
images, and says so. The results go to ``results/fidelity-<width>-<date>.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy import REPOSITORY, RESULTS, Finished, code_digest
from accuracy_tools import UnavailableError, tool_versions
from asked import chosen_names, listed, tells_errors
from fidelity_carried import Older, read_older
from fidelity_models import ASKED, MODELS, Subject, open_subject
from fidelity_tools import Features, Quantizer, quantizers, reference_features
from real_models import Place

from p4q_edge.runtime.errors import UsageError
from p4q_edge.runtime.machine import provenance
from p4q_edge.runtime.storage import atomic_write

logger = logging.getLogger("fidelity")
SCHEMA_VERSION = 1
TOOL_CALLS = 2
"""Raised with any change of how the other tools are called, so that their rows are measured again."""

OURS = "P4Q"
NOT_MEASURED = {"missing": "not measured in this run"}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with imagenet_samples/ and cifar100/")
    parser.add_argument("--models-folder", type=Path, required=True, help="folder of the real models")
    parser.add_argument("--cache", type=Path, help="folder of the downloaded wheels")
    parser.add_argument("--models", default=",".join(MODELS), help="whole names (%(default)s)")
    parser.add_argument(
        "--width", choices=("W8A8", "W4A8", "W4A16", "FP8"), default="W8A8", help="default: %(default)s"
    )
    parser.add_argument("--rows", default="", help="only rows of these names, or that begin so; default: all")
    parser.add_argument("--asked", type=int, default=ASKED, help="images to be asked about at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("build/fidelity"), help="finished rows (%(default)s)")
    parser.add_argument("--finished", action="store_true", help="write what is finished under --work; measure nothing")
    parser.add_argument("--carry", type=Path, help="JSON of older results, for rows that are not finished")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(argv)


def measures(features: Features, reference: Features) -> dict[str, Any]:
    """Cosines to the reference and shared nearest neighbours, of features ``(N, dim)``.

    The nearest other image is sought among images quantized too, as where an engine computes all embeddings
    (`same_neighbour`), and among full-precision embeddings that were there before (`same_neighbour_in_float`).
    """
    found, exact = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (features, reference))
    cosines = (found * exact).sum(1)
    return {
        "n": len(cosines),
        "cosine_mean": float(cosines.mean()),
        "cosine_p1": float(np.percentile(cosines, 1)),
        "cosine_min": float(cosines.min()),
        "same_neighbour": float((_neighbours(found, found) == _neighbours(exact, exact)).mean()),
        "same_neighbour_in_float": float((_neighbours(found, exact) == _neighbours(exact, exact)).mean()),
    }


def _neighbours(asked: Features, bank: Features) -> np.ndarray:
    """Index of the image in the bank that is nearest to each, other than itself, ``(N,)``."""
    similarity = asked @ bank.T
    np.fill_diagonal(similarity, -np.inf)
    nearest: np.ndarray = similarity.argmax(1)
    return nearest


def ask(name: str, quantizer: Quantizer, subject: Subject, reference: Features) -> dict[str, Any]:
    """One row of one model, or why there is none."""
    begin = time.monotonic()
    try:
        # The tools warn and print about themselves.
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            found = quantizer(subject.tower)
    except UnavailableError as error:
        logger.info("%s, %s: - (%s)", subject.name, name, error)
        return {"missing": str(error)}
    row = measures(found.features, reference)
    row |= {"int8_mac_share": found.int8_mac_share, "execution": found.execution}
    if subject.logits is not None:
        row["top1"] = float((subject.logits(found.features).argmax(1) == subject.labels).mean())
    row["seconds"] = round(time.monotonic() - begin, 1)
    logger.info("%s, %s: mean %.5f, min %.5f", subject.name, name, row["cosine_mean"], row["cosine_min"])
    return row


def run_model(name: str, args: argparse.Namespace, older: Older | None = None) -> dict[str, Any]:
    """All rows of one model."""
    place = Place(data=args.data, output=args.models_folder, cache=args.cache)
    subject = open_subject(name, place, seed=args.seed, asked=args.asked)
    key = {
        "weights": subject.tower.model.info.weights_sha256,
        "images": subject.digest(),
        "versions": provenance.versions() | tool_versions(),
        "calls": TOOL_CALLS,
    }
    # Other tools do not depend on our code, beyond how they are called; they take most of the time.
    others = Finished(args.work / f"{name}-tools.json", key)
    code = {} if args.finished else {"code": code_digest(("tools/bench/fidelity*.py",))}
    part = "" if args.width == "W8A8" else f"-{args.width.lower()}"
    ours = Finished(args.work / f"{name}-ours{part}.json", key | code, ignore=("code",) if args.finished else ())
    known = quantizers(args.width, convolutions=subject.tower.convolutions)
    rows = [row for row in chosen_names(tuple(quantizers(args.width, convolutions=True)), args.rows) if row in known]
    files = {row: ours if row.startswith(OURS) else others for row in rows}
    missing = [row for row in rows if row not in files[row].figures and not args.finished]
    reference = reference_features(subject.tower) if missing else np.zeros((0, 0), np.float32)
    for row in missing:
        files[row].keep(row, ask(row, known[row], subject, reference) | {"commit": provenance.git_commit(REPOSITORY)})
    carried = older.rows_of(name, weights=key["weights"], images=key["images"]) if older else {}
    return {
        "model": name,
        "what": MODELS[name],
        "weights_sha256": key["weights"],
        "images_sha256": key["images"],
        "calibration_images": len(subject.tower.train),
        "images": len(subject.tower.test),
        "histogram_images": subject.tower.histogram_images,
        "rows": [{"method": row} | _figure(files[row].figures.get(row), carried.get(row)) for row in rows],
    }


def _figure(measured: dict[str, Any] | None, carried: dict[str, Any] | None) -> dict[str, Any]:
    """What this run found, or an older run where this one has nothing or only a reason."""
    found = measured or NOT_MEASURED
    return carried if "missing" in found and carried is not None else found


def markdown(document: dict[str, Any]) -> str:
    """The tables of a document."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(document["versions"].items()))
    lines = [f"# {document['width']} embeddings against full precision, {document['created'][:10]}", ""]
    lines += [f"`{shlex.join(document['command'])}`", "", f"{versions}; commit {document['commit']}.", ""]
    for model in document["models"]:
        lines += [
            f"## {model['model']}: {model['what']}",
            "",
            f"{model['calibration_images']} images to calibrate on, n = {model['images']} others; ONNX Runtime's "
            f"histograms saw {model['histogram_images']} of the images to calibrate on.",
            "",
            "| quantizer | cosine mean | 1st pct | min | same neighbour, % | among float ones, % | top-1, % "
            "| quantized share of MACs, % |",
            "|---|---|---|---|---|---|---|---|",
            *(_line(row) for row in model["rows"]),
            "",
            *_commits(model["rows"]),
        ]
    return "\n".join(lines)


def _commits(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Which of our code was measured, and where rows come from that are not of this run."""
    found = sorted({row["commit"] for row in rows if row["method"].startswith(OURS) and "commit" in row})
    lines = [f"Our rows were measured at commit {', '.join(found)}.", ""] if found else []
    for source in sorted({row["carried_from"] for row in rows if "carried_from" in row}):
        lines += [f"Rows with an asterisk are carried over from {source}, of the same weights and images.", ""]
    return lines


def _line(row: dict[str, Any]) -> str:
    if "missing" in row:
        return f"| {row['method']} | - ({row['missing']}) | | | | | | |"
    name = row["method"] + (" *" if "carried_from" in row else "")
    cosines = " | ".join(f"{row[name]:.5f}" for name in ("cosine_mean", "cosine_p1", "cosine_min"))
    in_float = f"{100 * row['same_neighbour_in_float']:.1f}" if "same_neighbour_in_float" in row else ""
    top1 = f"{100 * row['top1']:.1f}" if "top1" in row else ""
    share = f"{100 * row['int8_mac_share']:.1f}, {row['execution']}"
    return f"| {name} | {cosines} | {100 * row['same_neighbour']:.1f} | {in_float} | {top1} | {share} |"


def command(args: argparse.Namespace) -> list[str]:
    """The command that repeats this run; folders are named, not told."""
    words = ["python", "tools/bench/fidelity.py", "--data", "DIR", "--models-folder", "FOLDER"]
    for name in ("models", "width", "rows", "seed", "threads"):
        if value := getattr(args, name):
            words += [f"--{name}", str(value)]
    words += ["--asked", str(args.asked)] if args.asked != ASKED else []
    words += ["--finished"] if args.finished else []
    return [*words, "--carry", args.carry.name] if args.carry else words


@tells_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the results, print their tables."""
    args = parse(argv)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")  # the tools give advice as warnings
    logger.setLevel(logging.INFO)
    torch.set_num_threads(args.threads)
    names = listed(args.models, tuple(MODELS), option="--models")
    chosen_names(tuple(quantizers(args.width, convolutions=True)), args.rows)  # a wrong one costs no model
    if args.asked < 1:
        raise UsageError(f"--asked takes a whole number from 1; got {args.asked}")
    older = read_older(args.carry, width=args.width) if args.carry else None
    models = [run_model(name, args, older) for name in names]
    document = {
        "schema_version": SCHEMA_VERSION,
        "width": args.width,
        "models": models,
        "commit": provenance.git_commit(REPOSITORY),
        "versions": provenance.versions() | tool_versions(),
        "machine": provenance.this_machine(),
        "created": provenance.now(),
        "command": command(args),
    }
    asked = "" if args.asked == ASKED else f"-n{args.asked}"
    target = args.output / f"fidelity-{args.width.lower()}{asked}-{document['created'][:10]}.json"
    atomic_write(target, json.dumps(document, indent=1).encode() + b"\n", force=True)
    atomic_write(target.with_suffix(".md"), markdown(document).encode(), force=True)
    print(markdown(document))
    logger.info("wrote %s", target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
