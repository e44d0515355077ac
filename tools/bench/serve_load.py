"""Load `p4q-edge serve`: many clients at once, how long they wait, and whether each answer is that of the Python API.

Starts the server as a child on a free port of this machine, and asks only that one.
Run: python tools/bench/serve_load.py ENGINE PICTURES [--clients 64] [--seconds 60] [--damaged 50]
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from p4q_edge.runtime import ZeroShotClassifier
from p4q_edge.runtime.classification import Prediction
from p4q_edge.runtime.images import expand

MAIN = "import sys; from p4q_edge.runtime.cli.main import main; sys.exit(main())"
SCORE_TOLERANCE = 1e-3
"""Kernels of one row and of several round differently."""
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass
class Seen:
    """What all clients saw.

    Attributes:
        seconds: of each request that was answered.
        statuses: how often each came; 0 stands for a connection that broke.
        wrong: answers with another class, or a score that is off by more than rounding.
        largest: largest difference of a score.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    largest: float = 0.0


@dataclass(frozen=True)
class Picture:
    """A picture, and what the Python API says of it; of a damaged one nothing."""

    data: bytes
    expected: Prediction | None


async def ask(host: str, port: int, picture: Picture, connection: list) -> tuple[int, dict]:
    """Send one request over a connection that is kept, and return status and document."""
    if not connection:
        connection.extend(await asyncio.open_connection(host, port))
    reader, writer = connection
    head = f"POST /classify HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(picture.data)}\r\n\r\n"
    writer.write(head.encode() + picture.data)
    await writer.drain()
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    length = next(int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:"))
    return int(lines[0].split()[1]), json.loads(await reader.readexactly(length))


async def client(host: str, port: int, pictures: list[Picture], seen: Seen, until: float) -> None:
    """Ask for one picture after another until the time is over."""
    connection: list = []
    for picture in itertools.cycle(pictures):
        if time.perf_counter() >= until:
            break
        started = time.perf_counter()
        try:
            status, document = await ask(host, port, picture, connection)
        except (OSError, asyncio.IncompleteReadError):
            seen.statuses[0] += 1
            connection.clear()
            continue
        seen.statuses[status] += 1
        if status in (200, 422):
            seen.seconds.append(time.perf_counter() - started)
            judge(picture, status, document, seen)
    if connection:
        connection[1].close()


def judge(picture: Picture, status: int, document: dict, seen: Seen) -> None:
    """Compare an answer with that of the Python API."""
    expected, (answer,) = picture.expected, document["predictions"]
    if expected is None or status != 200:
        seen.wrong += not (expected is None and status == 422)
        return
    largest = max(abs(entry["score"] - dict(expected.topk)[entry["label"]]) for entry in answer["topk"])
    seen.largest = max(seen.largest, largest)
    same = answer["label"] == expected.label and answer["known"] == expected.known
    seen.wrong += not (same and largest <= SCORE_TOLERANCE)


def pictures_of(engine: Path, folder: Path, *, most: int, damaged: int) -> list[Picture]:
    """Return pictures with the answers of the Python API, and every so many one that is damaged."""
    files = [Path(str(path)).read_bytes() for path in itertools.islice(expand(str(folder)), most)]
    with ZeroShotClassifier(engine) as classifier:
        found = [Picture(data, classifier.classify(data)) for data in files]
    for place in range(damaged, len(found) + 1, damaged) if damaged else ():
        found[place - 1] = Picture(found[place - 1].data[:100], None)
    return found


def memory_mb(process: int) -> float:
    """Return the memory that a process holds now."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE / 1e6


async def load(url: str, pictures: list[Picture], clients: int, seconds: float) -> Seen:
    """Let clients ask at once, each beginning at another picture."""
    host, port = str(urlsplit(url).hostname), int(urlsplit(url).port or 80)
    seen, until = Seen(), time.perf_counter() + seconds
    turned = [pictures[start % len(pictures) :] + pictures[: start % len(pictures)] for start in range(clients)]
    await asyncio.gather(*(client(host, port, mine, seen, until) for mine in turned))
    return seen


async def images_in_a_run(url: str) -> float:
    """Return the mean number of images in a run of the engine, from the server's own counters."""
    reader, writer = await asyncio.open_connection(str(urlsplit(url).hostname), int(urlsplit(url).port or 80))
    writer.write(f"GET /metrics HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nConnection: close\r\n\r\n".encode())
    text = (await reader.read()).decode()
    writer.close()
    total, runs = (float(re.search(rf"p4q_edge_batch_images_{end} (\S+)", text)[1]) for end in ("sum", "count"))
    return total / runs


def table(seen: Seen, *, clients: int, seconds: float) -> str:
    """Return what was seen as a row of Markdown."""
    quantiles = [1000 * float(np.quantile(seen.seconds, share)) for share in (0.5, 0.95, 0.99, 1.0)]
    errors = sum(count for status, count in seen.statuses.items() if status not in (200, 422))
    cells = [str(clients), str(len(seen.seconds)), f"{len(seen.seconds) / seconds:.0f}"]
    cells += [f"{value:.0f}" for value in quantiles]
    cells += [str(seen.statuses[422]), str(errors), str(seen.wrong), f"{seen.largest:.1e}"]
    return f"| {' | '.join(cells)} |"


COLUMNS = (
    *("clients", "answers", "a second", "p50 ms", "p95 ms", "p99 ms", "longest ms"),
    *("damaged, 422", "errors", "wrong", "score off by"),
)


def main() -> int:
    """Run the load, print the table, and return 1 where an answer was wrong or missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path)
    parser.add_argument("pictures", type=Path, help="a folder of pictures")
    parser.add_argument("--clients", type=int, nargs="+", default=[64])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--damaged", type=int, default=50, help="every so many pictures one is damaged; 0: none")
    parser.add_argument("--most", type=int, default=200, help="pictures at most")
    parser.add_argument("--threads", type=int, help="threads of a CPU engine")
    args = parser.parse_args()
    pictures = pictures_of(args.engine, args.pictures, most=args.most, damaged=args.damaged)
    command = [sys.executable, "-c", MAIN, "serve", str(args.engine), "--port", "0"]
    command += ["--threads", str(args.threads)] if args.threads else []
    failed = False
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        url = server.stdout.readline().split()[0]
        asyncio.run(load(url, pictures, 4, 2))
        before = memory_mb(server.pid)
        print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
        for clients in args.clients:
            seen = asyncio.run(load(url, pictures, clients, args.seconds))
            print(table(seen, clients=clients, seconds=args.seconds), flush=True)
            failed |= bool(seen.wrong) or any(status not in (200, 422) for status in seen.statuses)
        mean = asyncio.run(images_in_a_run(url))
        sizes = [len(picture.data) for picture in pictures]
        print(
            f"\n{len(pictures)} pictures of {np.mean(sizes) / 1000:.0f} kB; {mean:.1f} images in a run; the server "
            f"held {before:.0f} MB before and {memory_mb(server.pid):.0f} MB after."
        )
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    print(f"asked to stop, it ended with {code}.")
    return int(failed or code != 0)


if __name__ == "__main__":
    sys.exit(main())
