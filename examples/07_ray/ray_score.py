"""Name any number of images on any number of machines with Ray Data: a table of answers for each part of the images.

``python ray_score.py model.onnx 'shards/{000000..000099}.tar' answers/ --actors 8``
``python ray_score.py model.onnx manifest.parquet answers/ --actors 8``

The images are webdataset shards, a part each, or the files that the column ``path`` of a Parquet manifest names,
`--part` of them a part. Each actor loads the engine once and names part after part; ``answers/part-000000.parquet`` and
so on have the columns of ``p4q-edge classify --output`` with ``--embeddings``: path, label, score, known, error and
embedding. A part is written whole or not at all. One that fails is tried again, also by another actor where the first
ended; the same command after an interruption names only what is missing.

Engine, images and answers lie where every machine sees them; paths of a manifest begin at its folder.
``pip install 'ray[data]'`` beside the runtime; a cluster is that of ``ray start``, or of the environment variable
RAY_ADDRESS. A TensorRT engine fits one kind of GPU; name ``--gpus 1``, and machines with that GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import tarfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray

from p4q_edge.runtime import RuntimeOptions, ZeroShotClassifier
from p4q_edge.runtime.bulk import Row, write_table
from p4q_edge.runtime.classification import Failure
from p4q_edge.runtime.errors import InputError, P4QEdgeError
from p4q_edge.runtime.images import SUFFIXES

PLAN = "plan.json"
PAUSE_S = 1.0
MAX_IMAGE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Part:
    """Images whose answers become one table.

    Attributes:
        number: in the order of the images.
        source: a shard or a manifest.
        first: row of the manifest that it begins with.
        rows: how many; 0 for a whole shard.
    """

    number: int
    source: str
    first: int = 0
    rows: int = 0

    def table(self, folder: Path) -> Path:
        """Where its answers go."""
        return folder / f"part-{self.number:06d}.parquet"

    def images(self) -> Iterator[tuple[str, str | bytes]]:
        """Yield the name of each image, and its path or bytes."""
        if not self.rows:
            yield from _of_shard(self.source)
            return
        folder = Path(self.source).parent
        paths = pq.read_table(self.source, columns=["path"]).column("path").slice(self.first, self.rows).to_pylist()
        yield from ((path, str(folder / path)) for path in paths)


def _of_shard(source: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(source, "r:") as archive:
        for member in archive:
            if not member.isreg() or Path(member.name).suffix.lower() not in SUFFIXES:
                continue
            name = f"{source}/{member.name}"
            if member.size > MAX_IMAGE_BYTES:
                raise InputError(f"{name} has {member.size} bytes; expected at most {MAX_IMAGE_BYTES}. Pack it smaller")
            stream = archive.extractfile(member)
            yield name, stream.read() if stream else b""


def parts_of(source: str, rows: int) -> list[Part]:
    """Divide what is to be named: a shard each, or so many rows of a manifest."""
    if source.endswith(".parquet"):
        if not Path(source).is_file():
            raise InputError(f"{source} does not exist; expected a Parquet file with a column `path`")
        schema = pq.read_schema(source)
        if "path" not in schema.names:
            raise InputError(f"{source} needs a column `path`, and has {', '.join(schema.names)}")
        count = pq.read_metadata(source).num_rows
        firsts = range(0, count, rows)
        return [
            Part(number=number, source=source, first=first, rows=min(rows, count - first))
            for number, first in enumerate(firsts)
        ]
    shards = expand_braces(source)
    missing = [shard for shard in shards if not Path(shard).is_file()]
    if missing:
        raise InputError(
            f"shards of {source} that do not exist: {len(missing)} of {len(shards)}, the first is {missing[0]}"
        )
    return [Part(number=number, source=shard) for number, shard in enumerate(shards)]


def expand_braces(source: str) -> list[str]:
    """Expand ``{000000..000099}``, as webdataset writes it."""
    pieces = re.split(r"\{(\d+)\.\.(\d+)\}", source)
    choices = [[text] for text in pieces[::3]]
    for place, (first, last) in enumerate(zip(pieces[1::3], pieces[2::3], strict=True)):
        numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        choices.insert(2 * place + 1, numbers)
    return ["".join(words) for words in itertools.product(*choices)]


class Scorer:
    """The actor: an engine, loaded once, that names the images of one part after the other."""

    def __init__(self, engine: str, folder: str, *, threads: int, batch: int, retries: int) -> None:
        options = RuntimeOptions(threads=threads or None, batch_size=batch)
        self.classifier = ZeroShotClassifier(engine, options=options)
        self.folder, self.retries = Path(folder), retries

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Name the images of parts; return what each gave, by column, as Ray passes rows."""
        done = [self._attempt(Part(**json.loads(text))) for text in batch["part"]]
        return {name: [row[name] for row in done] for name in ("number", "images", "failed", "error")}

    def _attempt(self, part: Part) -> dict[str, Any]:
        for attempt in range(self.retries + 1):
            try:
                return self._name(part)
            except Exception as error:  # noqa: BLE001  # the other parts go on; this one is told of at the end
                message = f"{type(error).__name__}: {error}"
                time.sleep(PAUSE_S * attempt)
        return {"number": part.number, "images": 0, "failed": 0, "error": f"{part.source}: {message}"}

    def _name(self, part: Part) -> dict[str, Any]:
        failed = 0

        def rows() -> Iterator[Row]:
            nonlocal failed
            names: deque[str] = deque()  # of images that threads decode ahead

            def images() -> Iterator[str | bytes]:
                for name, image in part.images():
                    names.append(name)
                    yield image

            for answer, embedding in self.classifier.answers(images(), on_error="yield"):
                name = names.popleft()
                if isinstance(answer, Failure):
                    failed += 1
                    yield Row(path=name, error=str(answer.error))
                else:
                    yield Row(
                        path=name, label=answer.label, score=answer.score, known=answer.known, embedding=embedding
                    )

        count = write_table(part.table(self.folder), rows(), embeddings=True, force=True)
        return {"number": part.number, "images": count, "failed": failed, "error": ""}


def score(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Name the images of all parts that have no table yet; return what each gave."""
    every = parts_of(args.source, args.part)
    if not every:
        raise InputError(f"{args.source} names no image; expected shards such as s-{{000..009}}.tar, or rows of paths")
    args.output.mkdir(parents=True, exist_ok=True)
    _same_plan(args, every)
    todo = [part for part in every if not part.table(args.output).exists()]
    print(f"parts: {len(every)}, there already: {len(every) - len(todo)}", file=sys.stderr)
    if not todo:
        return []
    rows = ray.data.from_items([{"part": json.dumps(asdict(part))} for part in todo], override_num_blocks=len(todo))
    done = rows.map_batches(
        Scorer,
        fn_constructor_args=(str(args.engine), str(args.output)),
        fn_constructor_kwargs={"threads": args.threads, "batch": args.batch, "retries": args.retries},
        batch_size=1,
        concurrency=args.actors,
        num_cpus=args.threads or 1,
        num_gpus=args.gpus or None,
        # An actor whose machine is gone starts elsewhere, and its part with it.
        max_restarts=-1,
        max_task_retries=args.retries,
    )
    return list(done.iter_rows())


def _same_plan(args: argparse.Namespace, parts: Sequence[Part]) -> None:
    """Refuse to go on in a folder whose parts are those of other images, or of another engine."""
    card = Path(f"{args.engine}.json")
    if not card.is_file():
        raise InputError(f"{args.engine} has no card {card.name} beside it; expected an engine of p4q-edge build")
    plan = {"engine": card.read_text(encoding="utf-8"), "parts": [asdict(part) for part in parts]}
    file = args.output / PLAN
    if not file.exists():
        file.write_text(json.dumps(plan), encoding="utf-8")
    elif json.loads(file.read_text(encoding="utf-8")) != plan:
        raise InputError(
            f"{args.output} holds answers of another engine or to other images. Name another folder, or remove this one"
        )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path, help="engine with its card beside it")
    parser.add_argument("source", help="shards-{000000..000099}.tar, or a .parquet file with a column `path`")
    parser.add_argument("output", type=Path, help="folder of the answers")
    parser.add_argument("--actors", type=int, default=2, help="that load the engine (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="processors of an actor (default: %(default)s)")
    parser.add_argument("--gpus", type=float, default=0, help="of an actor (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images at once (default: %(default)s)")
    parser.add_argument("--part", type=int, default=4096, help="rows of a manifest in a part (default: %(default)s)")
    parser.add_argument("--retries", type=int, default=2, help="of a part that failed (default: %(default)s)")
    args = parser.parse_args(argv)
    least = {"actors": 1, "threads": 1, "gpus": 0, "batch": 1, "part": 1, "retries": 0}
    for name, number in least.items():
        if getattr(args, name) < number:
            parser.error(f"--{name} must be at least {number}, got {getattr(args, name)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Name the images; return 1 where a part, or an image of one, could not be used."""
    args = parse(argv)
    # Workers have another current folder.
    args.engine, args.output, args.source = (
        args.engine.resolve(),
        args.output.resolve(),
        str(Path(args.source).resolve()),
    )
    try:
        done = score(args)
    except P4QEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    lost = [row["error"] for row in done if row["error"]]
    images, failed = sum(row["images"] for row in done), sum(row["failed"] for row in done)
    print(f"{args.output}  images: {images}, not usable: {failed}, parts: {len(done) - len(lost)}")
    for error in lost:
        print(f"error: {error}", file=sys.stderr)
    if lost:
        print(f"error: parts that are missing: {len(lost)}. Run the same command again to go on", file=sys.stderr)
    return 1 if lost or failed else 0


if __name__ == "__main__":
    sys.exit(main())
