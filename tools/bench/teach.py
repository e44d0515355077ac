"""Heads taught on the device against full P4Q learning of the same photographs, zero-shot and nearest mean.

    python tools/bench/teach.py --data DIR
    python tools/bench/teach.py --data DIR --sets digits --seeds 0 --shots 4,16    # a quick look

``DIR/cifar100`` holds ``train.npz`` and ``test.npz``; every fifth class is taken (20 classes) unless ``--step 1``. Its
model is the CLIP of photographs in ``photo_clip/``; the digits and their model come with the demo.

Each seed draws 16 labelled images of each class; the W8A8 encoder is calibrated on these, as one engine is built once,
and fewer shots are the first of them. The base head has the hand-written text embeddings and no adapter. Test images
are only asked. What is encoded and learned by P4Q is kept under ``--work``, so that an interrupted run goes on.

Results go to ``results/teach-<date>.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy_recipes import REPOSITORY, Choice
from accuracy_rows import Scene, student_logits
from asked import listed, tells_errors, whole_numbers
from teach_table import markdown

from p4q_edge.evaluation import learned_student
from p4q_edge.runtime.artifacts import Head
from p4q_edge.runtime.classification.teaching import Photographs, add_classes, teach_head
from p4q_edge.runtime.machine import provenance
from p4q_edge.runtime.storage import atomic_write
from p4q_edge.stages import hand_written_embeddings

logger = logging.getLogger("teach")

SETS = ("digits", "cifar100")
MOST_SHOTS = 16
Arrays = dict[str, np.ndarray]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(), help="folder with cifar100/; the digits need none")
    parser.add_argument("--sets", default=",".join(SETS), help="default: %(default)s")
    parser.add_argument("--shots", default="1,2,4,8,16", help="default: %(default)s; 16 at most")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument("--step", type=int, default=5, help="take every so manyth class of CIFAR-100 (%(default)s)")
    parser.add_argument("--no-p4q", action="store_true", help="leave P4Q out, which takes nearly all of the time")
    parser.add_argument("--work", type=Path, default=Path("build/teach-bench"), help="what is kept (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("results"), help="folder of the results"
    )
    return parser.parse_args(argv)


def every_nth_class(source: Path, target: Path, step: int) -> Path:
    """Write CIFAR-100 with every so manyth class to a folder of its own, and return that."""
    folder = target / f"step-{step}"
    for name in ("train.npz", "test.npz"):
        path = folder / "cifar100" / name
        if path.is_file():
            continue
        with np.load(source / "cifar100" / name) as archive:
            taken = np.arange(0, len(archive["class_names"]), step)
            rows = np.flatnonzero(np.isin(archive["labels"], taken))
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(
                path,
                images=archive["images"][rows],
                labels=np.searchsorted(taken, archive["labels"][rows]),
                class_names=archive["class_names"][taken],
            )
    return folder


def first_of_each(labels: np.ndarray, shots: int) -> np.ndarray:
    """Return the indices of the first so many of each class, ascending."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:shots] for label in np.unique(labels)]))


def figures_of(data: str, seed: int, args: argparse.Namespace) -> Arrays:
    """Return features and P4Q's logits of one data set under one seed; what is missing is made and kept."""
    path = args.work / f"{data}-{seed}.npz"
    kept: Arrays = dict(np.load(path)) if path.is_file() else {}
    missing = [] if args.no_p4q else [shots for shots in args.shots if f"p4q{shots}" not in kept]
    if kept and not missing:
        return kept
    folder = args.data if data == "digits" else every_nth_class(args.data, args.work, args.step)
    scene = Scene(Choice(data=data, folder=folder, shots=MOST_SHOTS, features=args.work / "features"), seed)
    train, test = scene.encoded("W8A8")
    labels = train.labels.numpy()
    kept |= {
        "views": train.student.numpy(),
        "labels": labels,
        "test": test.numpy(),
        "test_labels": scene.labels,
        "text": hand_written_embeddings(scene.source).numpy(),
        "scale": np.asarray(scene.source.model.logit_scale),
        "names": np.asarray(scene.source.class_names),
        "commit": np.asarray(provenance.git_commit(REPOSITORY) or ""),
    }
    for shots in missing:
        chosen = torch.from_numpy(first_of_each(labels, shots))
        student = learned_student(scene.with_recipe(scene.recipe("W8A8")), train.of_images(chosen))
        kept[f"p4q{shots}"] = student_logits(student, test)
        np.savez(path, **kept)
        logger.info("%s, seed %d, %d shots: P4Q %.1f %%", data, seed, shots, 100 * top1(kept[f"p4q{shots}"], kept))
    np.savez(path, **kept)
    return kept


def top1(logits: np.ndarray, kept: Arrays) -> float:
    """Return the share of right answers among the test images."""
    return float((logits.argmax(axis=1) == kept["test_labels"]).mean())


def base_head(kept: Arrays, names: Sequence[str]) -> Head:
    """Return the zero-shot head under other names, so that a test can hide what it knows."""
    return Head(class_names=tuple(names), text_embedding=kept["text"], logit_scale=float(kept["scale"]))


def rows_of(kept: Arrays, shots: int, *, p4q: bool) -> dict[str, float]:
    """Return the top-1 of each method with so many shots."""
    names = tuple(map(str, kept["names"]))
    photographs = some(kept, first_of_each(kept["labels"], shots))
    base = base_head(kept, names)
    rows = {"zero-shot": base.apply(kept["test"])[0], "nearest mean": nearest_mean(photographs, kept["test"])}
    rows["taught"] = teach_head(photographs, base=base).head.apply(kept["test"])[0]
    if shots > 1:
        unnamed = base_head(kept, [f"other {name}" for name in names])
        rows["taught, names unknown"] = teach_head(photographs, base=unnamed).head.apply(kept["test"])[0]
    if p4q:
        rows["P4Q"] = kept[f"p4q{shots}"]
    return {name: top1(logits, kept) for name, logits in rows.items()}


def some(kept: Arrays, rows: np.ndarray) -> Photographs:
    """Return some of the labelled images, as an engine gives them."""
    names = tuple(map(str, kept["names"]))
    return Photographs(class_names=names, features=kept["views"][0][rows], labels=kept["labels"][rows])


def nearest_mean(photographs: Photographs, test: np.ndarray) -> np.ndarray:
    """Return cosines of test features with the mean embedding of each class."""
    unit = photographs.features / np.linalg.norm(photographs.features, axis=1, keepdims=True)
    means = np.stack([unit[photographs.labels == k].mean(axis=0) for k in range(len(photographs.class_names))])
    return np.asarray(test @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T)


def added_of(kept: Arrays, shots: int) -> dict[str, float]:
    """Teach all classes but the last, add that one alone, and look at both; its own photographs are all it has.

    The images of the old classes that the base head names rightly stand in for the golden samples: 8 of the test
    images, which are then not counted.
    """
    names, last = tuple(map(str, kept["names"])), len(kept["names"]) - 1
    chosen = first_of_each(kept["labels"], shots)
    old = chosen[kept["labels"][chosen] < last]
    before = Photographs(class_names=names[:-1], features=kept["views"][0][old], labels=kept["labels"][old])
    base = teach_head(before, base=base_head(kept, names)).head
    new = chosen[kept["labels"][chosen] == last]
    photographs = Photographs(
        class_names=names[-1:], features=kept["views"][0][new], labels=np.zeros(len(new), np.int64)
    )
    olds, news = (np.flatnonzero(kept["test_labels"] < last), np.flatnonzero(kept["test_labels"] == last))
    golden, rest = olds[:: max(1, len(olds) // 8)][:8], np.setdiff1d(olds, olds[:: max(1, len(olds) // 8)][:8])
    head = add_classes(photographs, base=base, golden=kept["test"][golden]).head
    answers = head.apply(kept["test"])[0]
    return {
        "old classes before": float((base.apply(kept["test"][rest])[0].argmax(1) == kept["test_labels"][rest]).mean()),
        "old classes after": float((answers[rest].argmax(1) == kept["test_labels"][rest]).mean()),
        "added class": float((answers[news].argmax(1) == last).mean()),
        "largest move of an old logit": float(np.abs(answers[:, :-1] - base.apply(kept["test"])[0]).max()),
    }


def cost(classes: int = 20, shots: int = 16, dim: int = 512, runs: int = 5) -> dict[str, Any]:
    """Return CPU time, time and memory of teaching beyond encoding, on random embeddings."""
    generator = np.random.default_rng(0)
    centers = np.repeat(generator.normal(size=(classes, dim)), shots, axis=0)
    features = (centers + 2 * generator.normal(size=centers.shape) + 3 * generator.normal(size=dim)).astype(np.float32)
    text = generator.normal(size=(classes, dim)).astype(np.float32)
    names = tuple(f"class {index}" for index in range(classes))
    photographs = Photographs(class_names=names, features=features, labels=np.repeat(np.arange(classes), shots))
    base = Head(class_names=names, text_embedding=text / np.linalg.norm(text, axis=1, keepdims=True), logit_scale=100.0)
    seconds, walls = [], []
    for _ in range(runs):
        begin, wall = time.process_time(), time.perf_counter()
        teach_head(photographs, base=base)
        seconds.append(time.process_time() - begin)
        walls.append(time.perf_counter() - wall)
    tracemalloc.start()
    teach_head(photographs, base=base)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "classes": classes,
        "shots": shots,
        "dim": dim,
        "runs": runs,
        "cpu_seconds": sorted(seconds),
        "wall_seconds": sorted(walls),
        "peak_mib": peak / 2**20,
    }


@tells_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the results, print their table."""
    args = parse(argv)
    args.shots = whole_numbers(args.shots, option="--shots", least=1)
    sets, seeds = listed(args.sets, SETS, option="--sets"), whole_numbers(args.seeds, option="--seeds")
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    logger.setLevel(logging.INFO)
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for data in sets:
        for seed in seeds:
            kept = figures_of(data, seed, args)
            known = {"data": data, "seed": seed, "classes": len(kept["names"]), "n": len(kept["test_labels"])}
            known["encoded_at"] = str(kept["commit"])
            for shots in args.shots:
                row = known | {"shots": shots, "top1": rows_of(kept, shots, p4q=not args.no_p4q)}
                rows.append(row | ({"added": added_of(kept, shots)} if shots > 1 else {}))
    words = ["python", "tools/bench/teach.py", "--data", "DIR", "--sets", args.sets, "--seeds", args.seeds]
    document = {
        "schema_version": 1,
        "command": [*words, "--shots", ",".join(map(str, args.shots)), "--step", str(args.step)],
        "commit": provenance.git_commit(REPOSITORY),
        "versions": provenance.versions(),
        "machine": provenance.this_machine(),
        "created": provenance.now(),
        "cost": cost(),
        "rows": rows,
    }
    target = args.output / f"teach-{document['created'][:10]}.json"
    atomic_write(target, json.dumps(document, indent=1).encode() + b"\n", force=True)
    atomic_write(target.with_suffix(".md"), markdown(document).encode(), force=True)
    print(markdown(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
