"""Features by one process and by several of torchrun: seconds, interleaved.

``python tools/bench/scale_processes.py [--model ViT-B-32] [--images 1024]`` measures one process with one thread, the
processes with a thread each, and with ``--threads`` one process with as many threads. Each run computes the
features of all images by both towers from an encoder that is calibrated already; the seconds are those of this stage.
Where other work shares the cores, the processor seconds of the busiest process tell what they would be alone.

Results go to ``results/processes-<model>-<date>.json`` and ``.md`` beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
from scale import RESULTS, make_images, random_model, recipe_text

from p4q_edge.runtime.machine import provenance
from p4q_edge.runtime.storage import atomic_write
from p4q_edge.runtime.wording import number_of

CLASSES = 16


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/scale"), help="for images and runs (%(default)s)")
    parser.add_argument("--model", default="demo", help="demo, or a name of open_clip, random weights (%(default)s)")
    parser.add_argument("--images", type=int, default=2048, help="default: %(default)s")
    parser.add_argument("--side", type=int, default=96, help="of the JPEG files, in pixels (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--threads", action="store_true", help="also one process with as many threads")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--note", default="", help="what a reader of the figures must know")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def child(task: dict[str, str]) -> None:
    """Compute what is missing of a run up to its features; the first process prints the seconds that these took.

    Of all processes together, and processor seconds of the one that took most of them.
    """
    import torch

    from p4q_edge.models import ALONE, joined_team
    from p4q_edge.recipe import read_recipe
    from p4q_edge.runtime.choices import TORCHRUN_VARIABLES
    from p4q_edge.stages import RunFiles, open_source, pipeline

    several = all(os.environ.get(name) for name in TORCHRUN_VARIABLES)
    with joined_team() if several else nullcontext(ALONE) as team:
        source = open_source(read_recipe(task["recipe"]), team=team)
        original = pipeline.cache_features

        def timed(*args: Any, **options: Any) -> Any:
            team.wait()
            begin, spent = time.perf_counter(), time.process_time()
            found = original(*args, **options)
            seconds = time.perf_counter() - begin
            busiest = torch.tensor(time.process_time() - spent)
            if team.size > 1:
                torch.distributed.all_reduce(busiest, torch.distributed.ReduceOp.MAX)
            if team.first:
                print(json.dumps({"seconds": seconds, "busiest": float(busiest)}))
            return found

        pipeline.cache_features = timed
        pipeline.prepare(source, RunFiles(folder=Path(task["run"])))


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure each way in turn; return a row of each."""
    random_model(args)
    ways = {
        "1 process, 1 thread": (1, 1),
        f"{number_of(args.processes, 'process', 'processes')}, 1 thread each": (args.processes, 1),
    }
    if args.threads:
        ways[f"1 process, {number_of(args.processes, 'thread')}"] = (1, args.processes)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    busiest: dict[str, list[float]] = {name: [] for name in ways}
    loads: dict[str, list[float]] = {name: [] for name in ways}
    args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        folder = Path(name)
        train = make_images(folder / "train", classes=CLASSES, each=args.images // CLASSES, side=args.side, seed=0)
        recipe = folder / "p4q.toml"
        args.workers, args.device, args.calibration, args.steps = 0, "cpu", 16, 1  # nothing is learned
        recipe.write_text(recipe_text(args, train, test=None, views=1), encoding="utf-8")
        task = {"recipe": str(recipe), "run": str(folder / "run")}
        _once(task, processes=1, threads=1)  # calibrates, and warms the files
        for _ in range(args.repeats):
            for way, (processes, threads) in ways.items():
                shutil.rmtree(folder / "run" / "features")
                loads[way].append(os.getloadavg()[0])
                found = _once(task, processes=processes, threads=threads)
                seconds[way].append(found["seconds"])
                busiest[way].append(found["busiest"])
                print(f"{way}: {seconds[way][-1]:.2f} s", file=sys.stderr, flush=True)
    first, alone = (statistics.median(each["1 process, 1 thread"]) for each in (seconds, busiest))
    return [
        {
            "way": way,
            "images": args.images // CLASSES * CLASSES,
            "seconds": every,
            "median": statistics.median(every),
            "faster": first / statistics.median(every),
            "busiest": statistics.median(busiest[way]),
            "faster_by_processor": alone / statistics.median(busiest[way]),
            "load": loads[way],
        }
        for way, every in seconds.items()
    ]


def _once(task: dict[str, str], *, processes: int, threads: int) -> dict[str, float]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(Path(__file__).resolve())]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    words = [*command, "--child", json.dumps(task)]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def markdown(document: dict[str, Any]) -> str:
    """The results as a table."""
    lines = [
        f"# {document['model']}: features by one process and by several",
        "",
        f"JPEG files of {document['side']} pixels; {document['created']}, commit {document['commit'][:12]}, "
        f"{document['machine']['cpu']}. {document['note']}".rstrip(),
        "",
        "| | images | median seconds | times as fast | processor seconds, busiest | times less | every run | load |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for row in document["rows"]:
        every = ", ".join(f"{value:.1f}" for value in row["seconds"])
        load = ", ".join(f"{value:.1f}" for value in row["load"])
        spent = f"{row['busiest']:.1f} | {row['faster_by_processor']:.2f}"
        wall = f"{row['median']:.1f} | {row['faster']:.2f}"
        lines.append(f"| {row['way']} | {row['images']} | {wall} | {spent} | {every} | {load} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Measure, write the results, print the table."""
    args = parse(argv)
    if args.child:
        child(json.loads(args.child))
        return 0
    created = provenance.now()
    document = {
        "model": args.model,
        "side": args.side,
        "note": args.note,
        "rows": run(args),
        "command": ["python", "tools/bench/scale_processes.py", *(argv if argv is not None else sys.argv[1:])],
        "commit": provenance.git_commit(Path(__file__).parents[2]),
        "versions": provenance.versions(),
        "machine": provenance.this_machine(),
        "created": created,
    }
    target = args.output / f"processes-{args.model.lower()}-{created[:10]}.json"
    atomic_write(target, msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n", force=True)
    atomic_write(target.with_suffix(".md"), markdown(document).encode(), force=True)
    print(markdown(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
