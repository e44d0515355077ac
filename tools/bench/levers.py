"""Levers of learning or of quantization by cross-validation on the labelled images; no test image is read.

Each fold is calibrated and learned without the images that it is scored on. CIFAR-100 is learned from 16 of its
training images a class with the CLIP of photo_clip/; the digits are those of the demo. `fidelity` learns nothing: it
compares the features of the quantized encoder with the float encoder's, which takes far fewer images to tell apart.

Run: python tools/bench/levers.py quantization cifar100 --data DIR --widths W4A8 --output results.json
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from p4q_edge.evaluation import (
    UNCHANGED,
    Variant,
    ablate,
    lever_variants,
    open_seed,
    part_features,
    parts_of,
    quantization_section,
    quantization_variants,
)
from p4q_edge.recipe import DataSection, ModelSection, QuantizationSection, Recipe, demo_recipe
from p4q_edge.runtime.evaluation.report import baseline, baseline_table
from p4q_edge.runtime.statistics import metrics
from p4q_edge.runtime.storage import atomic_write
from p4q_edge.stages import hand_written_embeddings, teacher_embeddings

HERE = Path(__file__).parent
TEMPLATES = HERE.parents[1] / "calibration" / "templates" / "photo.txt"
GRIDS = {
    "levers": lambda recipe: lever_variants(recipe.learn),
    "quantization": lambda recipe: quantization_variants(),
    "fidelity": lambda recipe: quantization_variants(),
}


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
        recipe = msgspec.structs.replace(
            recipe, learn=msgspec.structs.replace(recipe.learn, prompts=False, prompt_steps=0)
        )
    chosen = [v for v in GRIDS[args.grid](recipe) if v == UNCHANGED or re.search(args.only, v.name)]
    seeds = [int(word) for word in args.seeds.split(",")]
    if args.grid == "fidelity":
        rows = [fidelity(recipe, seeds, variant) for variant in chosen]
    else:
        right: dict[str, list[Tensor]] = {}
        results = ablate(recipe, seeds, chosen, "cross_validated", progress=logging.info, right=right)
        scheme = recipe.quantization.scheme()
        precision = f"{scheme.label} {scheme.execution}"
        compared = [baseline(name, shares, n=n, precision=precision) for name, (shares, n) in results.items()]
        print(baseline_table(compared))
        print(gain_table(gains := gains_over(right, UNCHANGED.name)))
        rows = [dataclasses.asdict(row) | {"gain": gains.get(row.name)} for row in compared]
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
        "rows": rows,
    }
    atomic_write(args.output, msgspec.json.format(msgspec.json.encode(document)) + b"\n", force=True)


def gains_over(right: Mapping[str, Sequence[Tensor]], unchanged: str) -> dict[str, dict[str, Any]]:
    """Points that each row is above the recipe on the same images of all seeds, with a paired interval of 95 %.

    A default may change where the interval excludes 0.
    """
    found = {}
    base = torch.cat([*right[unchanged]]).numpy()
    for name, seeds in right.items():
        if name != unchanged:
            generator = np.random.default_rng(0)
            gain = metrics.paired_difference(base, torch.cat([*seeds]).numpy(), generator=generator)
            points = {key: round(100 * getattr(gain, key), 2) for key in ("value", "low", "high")}
            found[name] = points | {"n": gain.n, "excludes_0": gain.low > 0 or gain.high < 0}
    return found


def gain_table(gains: Mapping[str, Mapping[str, Any]]) -> str:
    """The gains as a table of Markdown; in bold those whose interval excludes 0."""
    lines = ["| over the recipe | points | 95 %, paired | n |", "| --- | --: | --: | --: |"]
    for name, gain in gains.items():
        value = f"{gain['value']:+.2f}"
        value = f"**{value}**" if gain["excludes_0"] else value
        lines.append(f"| {name} | {value} | [{gain['low']:+.2f}, {gain['high']:+.2f}] | {gain['n']} |")
    return "\n".join(lines)


def fidelity(recipe: Recipe, seeds: Sequence[int], variant: Variant) -> dict[str, Any]:
    """How near the quantized encoder's features of images held out from calibration are to the float encoder's."""
    distances: list[Tensor] = []
    same: list[Tensor] = []
    for seed in seeds:
        data = open_seed(msgspec.structs.replace(recipe, seed=seed), [UNCHANGED], tested=False)
        model, text = data.source.model, hand_written_embeddings(data.source)
        for part in parts_of(data, "cross_validated"):
            quantized = part_features(data, part, quantization_section(recipe, variant)).scored
            student, teacher = F.normalize(quantized, dim=-1), teacher_embeddings(model, part.images)
            distances.append(1 - (student * teacher).sum(-1))
            same.append((student @ text.T).argmax(-1) == (teacher @ text.T).argmax(-1))
    distance, agreement = torch.cat(distances), torch.cat(same).float()
    logging.info("%s: 1 - cosine %.5f, same answer %.4f", variant.name, distance.mean(), agreement.mean())
    return {
        "name": variant.name,
        "one_minus_cosine": round(float(distance.mean()), 6),
        "same_zero_shot_answer": round(float(agreement.mean()), 4),
        "n": len(distance),
    }


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
