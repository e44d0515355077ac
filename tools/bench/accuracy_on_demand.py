"""Accuracy on demand: how much is lost against how much of the work is back in float, on a model of real weights.

    python tools/bench/accuracy_on_demand.py --data DIR --models-folder FOLDER
    python tools/bench/accuracy_on_demand.py --data DIR --models-folder FOLDER --model efficientnet --widths W8A8

Each width is calibrated once on 48 photographs of ``imagenet_samples``. For each limit the search of
`quantization.max_cosine_loss` runs on these; the loss is then measured on 96 others. Limits are shares of the loss of
the model with everything quantized, so that one list serves every model. Results go to
``results/accuracy-on-demand-<model>-<date>.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accuracy import REPOSITORY, RESULTS
from accuracy_recipes import WIDTHS
from asked import listed, tells_errors
from fidelity_models import CALIBRATION, MODELS, Subject, open_subject
from real_models import Place

from p4q_edge.calibration import (
    calibrate_encoder,
    embedding_loss,
    fewest,
    in_float,
    quantized_layers,
    rank_by_sensitivity,
    teacher_of,
)
from p4q_edge.models import Batches, to_batch
from p4q_edge.quant import QuantScheme, count_macs
from p4q_edge.runtime.machine import provenance
from p4q_edge.runtime.storage import atomic_write

logger = logging.getLogger("accuracy_on_demand")
SCHEMA_VERSION = 1
SHARES = (0.9, 0.75, 0.5, 0.25, 0.1, 0.03)
"""Limits, as shares of the loss with everything quantized."""
BATCH = 16


class Losses:
    """Losses of one calibrated model, with any of its layers in float; each set of layers is run once."""

    def __init__(self, subject: Subject, scheme: QuantScheme) -> None:
        tower, model = subject.tower, subject.tower.model
        self.reference: torch.nn.Module = model.clip.visual  # type: ignore[assignment]
        self.encoder = calibrate_encoder(model, tower.train, scheme).encoder
        self.layers = quantized_layers(self.encoder)
        self.macs = count_macs(self.encoder, to_batch(tower.train[:1], model.preprocess))
        self.calibration, self.others = (
            Batches(images=images, spec=model.preprocess, size=BATCH) for images in (tower.train, tower.test)
        )
        self.teachers = {id(images): teacher_of(self.reference, images) for images in (self.calibration, self.others)}
        self._known: dict[tuple[int, frozenset[str]], float] = {}

    def of(self, images: Batches, paths: Sequence[str]) -> float:
        """One minus the mean cosine on some images with the layers at `paths` in float."""
        key = id(images), frozenset(paths)
        if key not in self._known:
            with in_float([self.layers[path] for path in paths]):
                self._known[key] = embedding_loss(self.encoder, self.teachers[id(images)], images)
        return self._known[key]


def curve(subject: Subject, width: str, shares: Sequence[float]) -> list[dict[str, Any]]:
    """A row for each limit, and one before them with everything quantized."""
    scheme = QuantScheme(weight_bits=int(width[1]), activation_bits=int(width[3]))
    losses = Losses(subject, scheme)
    ranking = rank_by_sensitivity(losses.encoder, losses.reference, losses.calibration)
    macs = {each.path: each.macs for each in ranking}
    everything = losses.of(losses.calibration, ())
    rows = []
    for share in (1.0, *shares):
        begin = time.monotonic()
        limit = everything * share
        kept = () if share == 1.0 else fewest(ranking, lambda p, limit=limit: losses.of(losses.calibration, p) <= limit)
        if kept is None:
            rows.append({"width": width, "limit": limit, "missing": "not kept with every layer in float"})
            continue
        returned = sum(macs[path] for path in kept)
        rows.append(
            {
                "width": width,
                "limit": limit,
                "loss": losses.of(losses.calibration, kept),
                "loss_on_others": losses.of(losses.others, kept),
                "back_in_float": returned / losses.macs.integer,
                "int8_mac_share": (losses.macs.integer - returned) / losses.macs.total,
                "layers": len(losses.layers),
                "in_float": list(kept),
                "seconds": round(time.monotonic() - begin, 1),
            }
        )
        logger.info("%s, limit %.2e: %d in float", width, limit, len(kept))
    return rows


def markdown(document: dict[str, Any]) -> str:
    """The curve as a table."""
    lines = [f"# Accuracy on demand, {document['what']}, {document['created'][:10]}", ""]
    lines += [f"`{' '.join(document['command'])}`, commit {document['commit']}.", ""]
    lines += [
        f"Loss is one minus the mean cosine to full precision: on the {document['calibration_images']} images that the "
        f"limit is kept on, and on {document['images']} others. Shares are of multiply-accumulates: back in float, of "
        "those that were INT8; and INT8, of all.",
        "",
        "| width | limit | loss | loss on others | back in float, % | still INT8, % | layers in float |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        if "missing" in row:
            lines.append(f"| {row['width']} | {row['limit']:.2e} | - ({row['missing']}) | | | | |")
            continue
        figures = f"{row['limit']:.2e} | {row['loss']:.2e} | {row['loss_on_others']:.2e}"
        shares = f"{100 * row['back_in_float']:.1f} | {100 * row['int8_mac_share']:.1f}"
        lines.append(f"| {row['width']} | {figures} | {shares} | {len(row['in_float'])} of {row['layers']} |")
    return "\n".join(lines) + "\n"


@tells_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the results, print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with imagenet_samples/")
    parser.add_argument("--models-folder", type=Path, required=True, help="folder of the real models")
    parser.add_argument("--model", default="vit", choices=MODELS, help="default: %(default)s")
    parser.add_argument("--widths", default="W8A8,W4A8", help="default: %(default)s")
    parser.add_argument("--shares", default=",".join(map(str, SHARES)), help="limits, of the whole loss (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    widths = listed(args.widths, tuple(WIDTHS), option="--widths")
    shares = [float(word) for word in args.shares.split(",")]
    subject = open_subject(args.model, Place(data=args.data, output=args.models_folder), seed=args.seed)
    rows = [row for width in widths for row in curve(subject, width, shares)]
    words = ["--data", "DIR", "--models-folder", "FOLDER", "--model", args.model, "--widths", args.widths]
    words += ["--shares", args.shares]
    document = {
        "schema_version": SCHEMA_VERSION,
        "model": args.model,
        "what": MODELS[args.model],
        "weights_sha256": subject.tower.model.info.weights_sha256,
        "calibration_images": CALIBRATION,
        "images": len(subject.tower.test),
        "images_sha256": subject.digest(),
        "rows": rows,
        "commit": provenance.git_commit(REPOSITORY),
        "versions": provenance.versions(),
        "machine": provenance.this_machine(),
        "created": provenance.now(),
        "command": ["python", "tools/bench/accuracy_on_demand.py", *words],
    }
    target = args.output / f"accuracy-on-demand-{args.model}-{document['created'][:10]}.json"
    atomic_write(target, json.dumps(document, indent=1).encode() + b"\n", force=True)
    atomic_write(target.with_suffix(".md"), markdown(document).encode(), force=True)
    print(markdown(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
