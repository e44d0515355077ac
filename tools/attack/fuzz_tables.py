"""Tables, data sets, embeddings and requests that are fuzzed: what is changed, and who reads it."""

from __future__ import annotations

import io
import json
import random
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import mutator
import numpy as np
from fuzz_data import edit_npz, images, use_images_of
from mutator import Mutator

_CLASSES = ("cat", "dog")
_BOUNDARY = "p4q-boundary"
_HEADER = "length of the JSON: "


def parquet_seeds() -> list[bytes]:
    """Tables of paths and labels, compressed and not, with labels as texts and as numbers."""
    import pyarrow as pa
    from pyarrow import parquet

    seeds = []
    for labels in (["cat", "dog"], [0, 1]):
        for compression in ("none", "snappy"):
            stream = io.BytesIO()
            table = pa.table({"path": ["image.png", "other.png"], "label": labels})
            parquet.write_table(table, stream, compression=compression)
            seeds.append(stream.getvalue())
    return seeds


def use_parquet(data: bytes, folder: Path) -> None:
    """Read the table's images, which lie beside it."""
    for name in ("image.png", "other.png"):
        if not (folder / name).exists():
            (folder / name).write_bytes(images()[0])
    use_images_of("table.parquet")(data, folder)


def dataset_seeds() -> list[bytes]:
    """A folder as `datasets` saves it, in a zip."""
    import pyarrow as pa

    pictures = [{"bytes": picture, "path": None} for picture in (images()[0], images()[6])]
    table = pa.table({"image": pictures, "label": pa.array([0, 1], pa.int64())})
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(_CLASSES)}}
    members = {
        "dataset_info.json": json.dumps({"features": features}).encode(),
        "state.json": json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}).encode(),
        "data-00000-of-00001.arrow": stream.getvalue(),
    }
    return [mutator.write_zip(members)]


def edit_dataset(data: bytes, generator: random.Random) -> bytes:
    """Change one file of the folder."""

    def of(name: str) -> Mutator:
        return mutator.edit_json if name.endswith(".json") else mutator.edit_bytes

    return mutator.edit_zip(data, generator, of)


def use_dataset(data: bytes, folder: Path) -> None:
    """Read the folder, whose files have the names that a reader looks for."""
    import shutil

    from p4q_edge.data import read_images

    where = folder / "dataset"
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    for name, content in _members(data).items():
        if name.endswith((".json", ".arrow")) and Path(name).name == name:
            (where / name).write_bytes(content)
    found = read_images(str(where))
    found.digests()
    for index in range(min(2, len(found))):
        found.open_image(index).load()


def _members(data: bytes) -> dict[str, bytes]:
    """Of the zip that stands for a folder, which nothing of the product reads; a damaged one is no folder."""
    try:
        return mutator.read_zip(data)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError):
        return {}


def embeddings_seeds() -> list[bytes]:
    """Both forms of a file of embeddings."""
    import tempfile

    from p4q_edge.runtime.bulk import Embeddings, write_embeddings

    own = Embeddings(
        paths=("a.png", "b.png", "é.png"), rows=np.eye(3, 8, dtype=np.float32), head="built-in", weights_sha256="0" * 64
    )
    seeds = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".npz", ".parquet"):
            path = Path(folder) / f"embeddings{suffix}"
            write_embeddings(path, own)
            seeds.append(path.read_bytes())
    return seeds


def edit_embeddings(data: bytes, generator: random.Random) -> bytes:
    """Change the headers of arrays in the form that has some."""
    return edit_npz(data, generator) if data.startswith(b"PK") else mutator.edit_bytes(data, generator)


def use_embeddings(data: bytes, folder: Path) -> None:
    """Read the file and look for the image nearest to a query."""
    from p4q_edge.runtime.bulk import read_embeddings

    path = folder / ("embeddings.npz" if data.startswith(b"PK") else "embeddings.parquet")
    path.write_bytes(data)
    found = read_embeddings(path)
    nearest = found.nearest(np.ones(found.rows.shape[1], np.float32), top_k=2)
    if not all(np.isfinite(each.cosine) for each in nearest):
        raise AssertionError("embeddings that were accepted give cosines that are not finite")


def request_seeds() -> list[bytes]:
    """Requests to the server: method and path, type of the body, and the body, each on a line of its own.

    In place of the type, a body of KServe with a blob behind its JSON has the length of that JSON.
    """
    picture = images()[0]
    form = b"".join(
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n'
        "Content-Type: image/png\r\n\r\n".encode()
        + picture
        + b"\r\n"
        for name in _CLASSES
    )
    form += f"--{_BOUNDARY}--\r\n".encode()
    multipart = f"multipart/form-data; boundary={_BOUNDARY}"
    blob = len(picture).to_bytes(4, "little") + picture
    encoded = {"name": "encoded", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": len(blob)}}
    head = json.dumps({"id": "1", "inputs": [encoded], "outputs": [{"name": "label"}]}).encode()
    pixels = {"name": "image", "datatype": "UINT8", "shape": [1, 3, 8, 8], "data": [0] * 192}
    infer = json.dumps({"inputs": [pixels], "outputs": [{"name": "logits"}]}).encode()
    seeds = [
        (b"POST /classify?top_k=2", b"image/png", picture),
        (b"POST /classify", multipart.encode(), form),
        (b"POST /embed", multipart.encode(), form),
        (b"PUT /heads/active", b"application/json", b'{"name": "built-in"}'),
        (b"POST /heads/shelf/teach", multipart.encode(), form),
        (b"POST /heads/shelf/save", b"application/json", b"{}"),
        (b"POST /v2/models/out/infer", f"{_HEADER}{len(head)}".encode(), head + blob),
        (b"POST /v2/models/out_engine/infer", b"application/json", infer),
        (b"POST /v2/repository/index", b"application/json", b'{"ready": true}'),
        (b"GET /heads", b"", b""),
    ]
    return [b"\n".join(parts) for parts in seeds]


def edit_request(data: bytes, generator: random.Random) -> bytes:
    """Change one part: the body as what it is, or the line of the path or of the type."""
    line, kind, body = data.split(b"\n", 2)
    at = generator.randrange(6)
    if at == 0:
        line = mutator.edit_text(line, generator).replace(b"\n", b" ")
    elif at == 1:
        kind = mutator.edit_text(kind, generator).replace(b"\n", b" ")
    else:
        edit = mutator.edit_json if body.startswith(b"{") and generator.random() < 0.8 else mutator.edit_bytes
        body = edit(body, generator)
    return b"\n".join((line, kind, body))


@cache
def _client() -> Any:
    """A client of the server in this process, over the tiny engine."""
    import atexit
    import tempfile

    from fuzz_targets import TINY
    from starlette.testclient import TestClient

    from p4q_edge.runtime import RuntimeOptions, ZeroShotClassifier
    from p4q_edge.runtime.builders import build_engine
    from p4q_edge.runtime.http import ServeOptions, make_app

    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    engine = Path(folder.name) / "out.onnx"
    build_engine(TINY, engine)
    classifier = ZeroShotClassifier(engine, options=RuntimeOptions(threads=1))
    client = TestClient(make_app(classifier, engine, ServeOptions()), base_url="http://127.0.0.1:8080")
    client.__enter__()
    atexit.register(classifier.close)
    atexit.register(client.__exit__)
    return client


def use_request(data: bytes, folder: Path) -> None:
    """Send the request; whatever it is, the server must answer it without an error of its own, and the next one too."""
    line, kind, body = (*data.split(b"\n", 2), b"", b"")[:3]
    method, _, path = line.decode("latin-1").partition(" ")
    allowed = "".join(letter for letter in method if letter.isalpha()) or "GET"
    target = "/" + "".join(letter for letter in path.lstrip("/") if letter.isprintable())[:2000]
    said = "".join(chr(byte) for byte in kind if 32 <= byte < 127)[:2000]
    blob = said.startswith(_HEADER)
    headers = {"inference-header-content-length": said.removeprefix(_HEADER)} if blob else {"content-type": said}
    import httpx2

    try:
        answer = _client().request(allowed[:16], target, content=body, headers=headers)
    except httpx2.InvalidURL:  # the client's own refusal: nothing was sent
        return
    if answer.status_code >= 500:
        raise AssertionError(f"the server answered {answer.status_code}: {answer.text[:200]}")
    if "application/json" in answer.headers.get("content-type", ""):
        json.loads(answer.text, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise AssertionError(f"the server answered with {constant}")
