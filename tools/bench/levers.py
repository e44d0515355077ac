"""Levers of learning or of quantization by cross-validation on the labelled images; no test image is read.

Each fold is calibrated and learned without the images that it is scored on. CIFAR-100 is learned from 16 of its
training images a class with the CLIP of photo_clip/; the digits are those of the demo.

Run: python tools/bench/levers.py quantization cifar100 --data DIR --widths W4A8 --output results.json
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
from pathlib import Path

import msgspec
import torch

from p4q_edge.ablate import UNCHANGED, ablate, lever_variants, quantization_variants
from p4q_edge.command.common import demo_recipe
from p4q_edge.recipe import DataSection, ModelSection, QuantizationSection, Recipe
from p4q_edge.runtime.files import atomic_write
from p4q_edge.runtime.report.document import baseline
from p4q_edge.runtime.report.markdown import baseline_table

HERE = Path(__file__).parent
TEMPLATES = HERE.parents[1] / "calibration" / "templates" / "photo.txt"
GRIDS = {"levers": lever_variants, "quantization": quantization_variants}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", choices=GRIDS)
    parser.add_argument("data_set", choices=("cifar100", "digits"))
    parser.add_argument("--data", type=Path, help="folder of CIFAR-100's train.npz")
    parser.add_argument("--widths", default="W8A8", help="for example W4A8")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="", help="regular expression that the names of rows contain")
    parser.add_argument(
        "--no-prompts", action="store_true", help="learn adapter and class residuals alone: much faster"
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the figures")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    recipe = choose_recipe(args.data_set, args.data, args.widths)
    if args.no_prompts:
        recipe = msgspec.structs.replace(recipe, learn=msgspec.structs.replace(recipe.learn, prompts=False))
    chosen = [v for v in GRIDS[args.grid]() if v == UNCHANGED or re.search(args.only, v.name)]
    seeds = [int(word) for word in args.seeds.split(",")]
    results = ablate(recipe, seeds, chosen, "cross_validated", progress=logging.info)
    scheme = recipe.quantization.scheme()
    rows = [
        baseline(name, shares, n=n, precision=f"{scheme.label} {scheme.execution}")
        for name, (shares, n) in results.items()
    ]
    options = f"--widths {args.widths} --seeds {args.seeds}" + (f" --only '{args.only}'" if args.only else "")
    options += " --no-prompts" if args.no_prompts else ""
    data = " --data DIR" if args.data_set == "cifar100" else ""
    document = {
        "schema_version": 1,
        "command": f"python tools/bench/levers.py {args.grid} {args.data_set}{data} {options} --output FILE",
        "scored": "cross-validated on the labelled training images, 4 folds",
        "learn": msgspec.to_builtins(recipe.learn),
        "quantization": msgspec.to_builtins(recipe.quantization),
        "seeds": seeds,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    atomic_write(args.output, msgspec.json.format(msgspec.json.encode(document)) + b"\n", force=True)
    print(baseline_table(rows))


def choose_recipe(data_set: str, data: Path | None, widths: str) -> Recipe:
    """The recipe whose levers are varied, at widths such as ``W4A8``."""
    found = re.fullmatch(r"W(\d)A(\d)", widths)
    if found is None:
        raise SystemExit(f"--widths takes a word such as W4A8, got {widths!r}")
    bits = QuantizationSection(weight_bits=int(found[1]), activation_bits=int(found[2]))
    if data_set == "digits":
        return msgspec.structs.replace(demo_recipe(), quantization=bits)
    if data is None:
        raise SystemExit("cifar100 needs --data, the folder that holds train.npz")
    return Recipe(
        model=ModelSection(name=f"local-dir:{HERE / 'photo_clip'}"),
        data=DataSection(train=str(data / "train.npz"), templates=str(TEMPLATES), shots=16),
        quantization=bits,
    )


if __name__ == "__main__":
    main()
