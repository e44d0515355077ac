"""Whether memory stays the same and time grows linearly with the number of images, from 1,000 to 50,000.

    python tools/bench/scale.py --work build/scale                                # the demo CLIP
    python tools/bench/scale.py --work build/scale --model ViT-B-32 --images 1000,4000 --skip learn,validate
    python tools/bench/scale.py --photos DIR --overlap-images 512 --rounds 7 --skip features,pauses,learn,validate
    python tools/bench/scale.py --work build/scale --model ViT-B-32 --device cuda --workers 8 --side 224 --skip overlap

The images are made: JPEG files of noise about a colour for each class, in a temporary folder under ``--work``. Each
measurement is a process of its own. Its peak is the kernel's own mark (``VmHWM``) of that process, and for the tree of
it and the processes that decode, the largest sum of their proportional shares (``Pss``) that was seen.

| part | what is measured |
| --- | --- |
| features | calibration and features of 1,000, 4,000 and 16,000 images of 100 classes |
| overlap | decoding alone, encoding alone, and both as a run does them; interleaved, median of the rounds' ratios |
| pauses | the same with a decoder and an encoder that pause instead of computing: what the stream itself overlaps |
| learn | all of ``learn`` and ``export`` with 1,000 classes of 16 images |
| build | the command ``build`` from such images to an engine, with the processes that it starts |
| validate | ``validate`` of that run on 50,000 other images: PyTorch in float and quantized, graph, engine |

Results go to ``results/scale-<model>-<date>.json`` and ``.md`` beside it; with ``--skip`` the name tells the parts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image
from scale_overlap import overlap, pauses
from scale_table import markdown

from p4q_edge.runtime.machine import provenance
from p4q_edge.runtime.storage import atomic_write

RESULTS = Path(__file__).with_name("results")
PARTS = ("features", "overlap", "pauses", "learn", "build", "validate")
CLASSES = 100
SAMPLED_EVERY_S = 0.2
RESTED = 9.0
"""How many times as long as a look took nothing is looked at: it walks all pages of large processes."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/scale"), help="for images and runs (%(default)s)")
    parser.add_argument(
        "--model", default="demo", help="demo, or a name of open_clip with random weights (%(default)s)"
    )
    parser.add_argument("--images", default="1000,4000,16000", help="of the features (%(default)s)")
    parser.add_argument("--overlap-images", type=int, default=2048, help="default: %(default)s")
    parser.add_argument(
        "--photos",
        type=Path,
        help="class folders of photographs that the overlap is measured on, in place of made images",
    )
    parser.add_argument("--rounds", type=int, default=3, help="of the overlap (%(default)s)")
    parser.add_argument("--learned", default="1000,16", help="classes and images of each (%(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="of learning (%(default)s); memory needs a few only")
    parser.add_argument("--calibration", type=int, default=1000, help="images that ranges are from (%(default)s)")
    parser.add_argument("--validated", type=int, default=50_000, help="images (%(default)s)")
    parser.add_argument("--side", type=int, default=96, help="of the JPEG files, in pixels (%(default)s)")
    parser.add_argument("--device", default="cpu", help="compute.device (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="compute.workers (%(default)s)")
    parser.add_argument("--skip", default="", help=f"parts between commas, of {', '.join(PARTS)}")
    parser.add_argument("--note", default="", help="what a reader of the figures must know, such as other work beside")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def make_images(folder: Path, *, classes: int, each: int, side: int, seed: int) -> Path:
    """Write class folders of JPEG files; each image is told apart by its noise."""
    generator = np.random.default_rng(seed)
    colours = np.random.default_rng(7).integers(40, 216, (classes, 3))
    for label in range(classes):
        target = folder / f"kind {label:04d}"
        target.mkdir(parents=True)
        for number in range(each):
            coarse = colours[label] + generator.normal(0, 40, (side // 8, side // 8, 3))
            picture = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((side, side))
            stream = io.BytesIO()
            picture.save(stream, "JPEG", quality=85)
            (target / f"{number:06d}.jpg").write_bytes(stream.getvalue())
    return folder


def device_in_words(name: str) -> str:
    """The name of a GPU; ``cpu`` for the processor, which `machine` tells of."""
    if name == "cpu":
        return name
    import torch

    return torch.cuda.get_device_name(torch.device(name))


def recipe_text(args: argparse.Namespace, train: Path, *, test: Path | None, views: int) -> str:
    """A recipe that learns from all images of a folder."""
    name = "demo" if args.model == "demo" else f"local-dir:{(args.work / args.model).resolve()}"
    tested = f'test = "{test.resolve()}"\n' if test else ""
    return (
        f'[model]\nname = "{name}"\n\n[data]\ntrain = "{train.resolve()}"\n{tested}shots = 0\n\n'
        f"[quantization]\ncalibration_images = {args.calibration}\n\n"
        f'[compute]\ndevice = "{args.device}"\nworkers = {args.workers}\n\n'
        f"[learn]\nviews = {views}\nsteps = {args.steps}\n"
    )


def random_model(args: argparse.Namespace) -> None:
    """Write an open_clip model of full size with random weights as a ``local-dir:``."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = args.work / args.model
    if args.model == "demo" or folder.is_dir():
        return
    torch.manual_seed(0)
    model = open_clip.create_model(args.model)
    folder.mkdir(parents=True)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    size = model.visual.image_size
    config = {
        "model_cfg": open_clip.get_model_config(args.model),
        "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "size": size},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))


# ---------------------------------------------------------------- in the measured process


def child(task: dict[str, Any]) -> dict[str, Any]:
    """Do one part and return its figures."""
    parts = {"features": _features, "overlap": overlap, "pauses": pauses, "learn": _learn, "validate": _validate}
    found: dict[str, Any] = parts[task["part"]](task)
    return found | {"peak_mib": _peak_mib()} | _gpu_peak()


def _gpu_peak() -> dict[str, float]:
    import torch

    return {"gpu_peak_mib": torch.cuda.max_memory_reserved() / 2**20} if torch.cuda.is_initialized() else {}


def _peak_mib(pid: int | str = "self") -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def _prepared(task: dict[str, Any], folder: Path) -> tuple[Any, dict[str, float], dict[str, float]]:
    """Run everything up to the features; return it, and the seconds and processor seconds of its parts."""
    from p4q_edge.recipe import read_recipe
    from p4q_edge.stages import RunFiles, open_source, pipeline

    seconds: dict[str, float] = {}
    processor: dict[str, float] = {}  # of all processes; a busy machine lengthens the others

    def timed(name: str, function: Any) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            begin, spent = time.perf_counter(), sum(os.times()[:4])
            try:
                return function(*args, **options)
            finally:
                seconds[name] = time.perf_counter() - begin
                processor[name] = sum(os.times()[:4]) - spent

        return run

    begin = time.perf_counter()
    source = open_source(read_recipe(task["recipe"]))
    seconds["open"] = time.perf_counter() - begin
    originals = pipeline.calibrate_stage, pipeline.cache_features
    pipeline.calibrate_stage = timed("calibrate", originals[0])
    pipeline.cache_features = timed("features", originals[1])
    try:
        return pipeline.prepare(source, RunFiles(folder=folder)), seconds, processor
    finally:
        pipeline.calibrate_stage, pipeline.cache_features = originals


def _features(task: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=task["work"]) as folder:
        prepared, seconds, processor = _prepared(task, Path(folder))
        shape = list(prepared.features.student.shape)
    return {"n": shape[1], "views": shape[0], "seconds": seconds, "processor_seconds": processor}


def _learn(task: dict[str, Any]) -> dict[str, Any]:
    from p4q_edge.stages import RunFiles, export, pipeline

    folder = Path(task["run"])
    prepared, seconds, _ = _prepared(task, folder)
    files = RunFiles(folder=folder)
    begin = time.perf_counter()
    learned = pipeline.learn_stage(prepared, files)
    seconds["learn"] = time.perf_counter() - begin
    after_learning = _peak_mib()
    begin = time.perf_counter()
    export.export_bundle(learned, folder.with_suffix(".p4q"))
    seconds["export"] = time.perf_counter() - begin
    return {
        "n": len(prepared.features.labels),
        "classes": len(prepared.source.class_names),
        "seconds": seconds,
        "peak_after_learning_mib": after_learning,
    }


def _validate(task: dict[str, Any]) -> dict[str, Any]:
    from p4q_edge.api import validate

    begin = time.perf_counter()
    report = validate(task["engine"], data=task["data"])
    seconds = time.perf_counter() - begin
    chain = report.chain
    assert chain is not None
    stages = {stage.name: {"top1": stage.top1.value, "seconds": stage.seconds} for stage in chain.stages}
    return {"n": chain.n, "classes": len(chain.class_names), "seconds": {"validate": seconds}, "stages": stages}


# ---------------------------------------------------------------- in the process that measures


def measured(task: dict[str, Any]) -> dict[str, Any]:
    """Run a part in a process of its own and watch its memory."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(task)]
    text, _, tree = _watched(task["part"], command)
    found: dict[str, Any] = json.loads(text.splitlines()[-1]) | {"tree_peak_mib": round(tree, 1)}
    print(f"{task['part']}: {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def _watched(part: str, command: list[str]) -> tuple[str, float, float]:
    """Run a command; return what it prints, its own peak and that of its tree, both in MiB."""
    print(f"{part} ...", file=sys.stderr, flush=True)
    own = tree = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            begin = time.perf_counter()
            tree = max(tree, _tree_mib(process.pid))
            with contextlib.suppress(OSError, StopIteration):  # it ends meanwhile
                own = _peak_mib(process.pid)
            time.sleep(max(SAMPLED_EVERY_S, RESTED * (time.perf_counter() - begin)))
        text = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{part} ended with {process.returncode}")
    return text, own, tree


def _tree_mib(pid: int) -> float:
    """Memory of a process and of those that it started, each page counted once."""
    total = 0.0
    with contextlib.suppress(OSError, StopIteration):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        total += int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1]) / 1024
        for path in Path(f"/proc/{pid}/task").iterdir():
            total += sum(_tree_mib(int(word)) for word in (path / "children").read_text(encoding="ascii").split())
    return total


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every part that is asked for."""
    skipped = set(args.skip.split(","))
    random_model(args)
    rows: dict[str, Any] = {}
    counts = [int(word) for word in args.images.split(",")]
    for name, each in (("features", counts), ("overlap", [args.overlap_images])):
        if name in skipped:
            continue
        for count in each:
            photos = args.photos if name == "overlap" else None
            with _recipe(args, classes=min(CLASSES, count // 8), count=count, photos=photos) as recipe:
                task = {"part": name, "recipe": str(recipe), "work": str(args.work), "images": count}
                task["repeats"] = args.rounds
                rows.setdefault(name, []).append(measured(task))
    if "pauses" not in skipped:
        rows["pauses"] = [measured({"part": "pauses", "images": args.overlap_images, "repeats": args.rounds})]
    if "build" not in skipped:
        rows["build"] = _built(args)
    if "learn" not in skipped:
        rows |= _learned(args, validated="validate" not in skipped)
    return rows


def _built(args: argparse.Namespace) -> dict[str, Any]:
    """Watch the command that users run, with its bars and its answer left out."""
    classes, each = (int(word) for word in args.learned.split(","))
    with _recipe(args, classes=classes, count=classes * each, tested=True) as recipe:
        engine = recipe.with_name("out.onnx")
        command = [str(Path(sys.executable).with_name("p4q-edge")), "build", "--json"]
        begin = time.perf_counter()
        _, own, tree = _watched("build", [*command, "--recipe", str(recipe), "--engine", str(engine)])
        seconds = {"build": time.perf_counter() - begin}
        return {
            "n": classes * each,
            "classes": classes,
            "seconds": seconds,
            "peak_mib": own,
            "tree_peak_mib": round(tree, 1),
        }


def _learned(args: argparse.Namespace, *, validated: bool) -> dict[str, Any]:
    classes, each = (int(word) for word in args.learned.split(","))
    folder = args.work / "learned.run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".p4q").unlink(missing_ok=True)
    with _recipe(args, classes=classes, count=classes * each, tested=True) as recipe:
        rows = {"learn": measured({"part": "learn", "recipe": str(recipe), "run": str(folder)})}
        if not validated:
            return rows
        engine = folder.with_suffix(".onnx")
        build = [str(Path(sys.executable).with_name("p4q-edge")), "build", str(folder.with_suffix(".p4q"))]
        subprocess.run([*build, "--engine", str(engine), "--force"], check=True, stdout=sys.stderr)
        with tempfile.TemporaryDirectory(dir=args.work) as data:
            test = Path(data) / "test"
            make_images(test, classes=classes, each=-(-args.validated // classes), side=args.side, seed=1)
            rows["validate"] = measured({"part": "validate", "engine": str(engine), "data": str(test)})
    return rows


@contextlib.contextmanager
def _recipe(
    args: argparse.Namespace, *, classes: int, count: int, tested: bool = False, photos: Path | None = None
) -> Any:
    """A recipe over so many new images, with one more of each class to test on; all are gone afterwards."""
    args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        train = photos or make_images(
            Path(folder) / "train", classes=classes, each=count // classes, side=args.side, seed=0
        )
        test = make_images(Path(folder) / "test", classes=classes, each=1, side=args.side, seed=2) if tested else None
        recipe = Path(folder) / "p4q.toml"
        recipe.write_text(recipe_text(args, train, test=test, views=1 if tested else 2), encoding="utf-8")
        yield recipe


def main(argv: list[str] | None = None) -> int:
    """Measure, write the results, print the table."""
    args = parse(argv)
    if args.child:
        print(json.dumps(child(json.loads(args.child))))
        return 0
    created = provenance.now()
    rows = run(args)
    document = {
        "model": args.model,
        "side": args.side,
        "photos": args.photos is not None,
        "device": device_in_words(args.device),
        "workers": args.workers,
        "note": args.note,
        "rows": rows,
        "command": ["python", "tools/bench/scale.py", *(argv if argv is not None else sys.argv[1:])],
        "commit": provenance.git_commit(Path(__file__).parents[2]),
        "versions": provenance.versions(),
        "machine": provenance.this_machine(),
        "created": created,
    }
    parts = "" if len(rows) == len(PARTS) else "-".join(["", *rows])
    device = "" if args.device == "cpu" else "-" + args.device.replace(":", "")
    target = args.output / f"scale-{args.model.lower()}{device}{parts}-{created[:10]}.json"
    atomic_write(target, msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n", force=True)
    atomic_write(target.with_suffix(".md"), markdown(document).encode(), force=True)
    print(markdown(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
