"""Embeddings of many images in a file, and the images nearest to an embedding.

A `.npz` file holds plain arrays and no pickle: `path` (n,) text, `embedding` (n, dim) float32, and what they were made
with. Bytes of paths that are no UTF-8 are written as escapes such as `\\udce9`, and read as Python keeps them, too.
Other halves of pairs are refused, and in the words about head and model all of them.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from p4q_edge.runtime.artifacts import BUILT_IN, Head, base_head, read_card
from p4q_edge.runtime.bulk.tables import require_pyarrow
from p4q_edge.runtime.classification import ZeroShotClassifier
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.storage import (
    NPZ_ERRORS,
    atomic_write,
    beyond_unicode,
    one_line,
    quoted,
    read_bounded,
    require_writable,
    sha256_bytes,
)

SUFFIXES = (".npz", ".parquet")
MAX_BYTES = 8 << 30
PLAIN = "plain"
"""In place of a head: the features alone, without an adapter, which is where words that are no class are at home."""
_ABOUT, _NEWER = ("head", "weights_sha256", "adapter_sha256"), ("adapter_sha256",)
"""What the embeddings were made with, and which of it files of earlier versions lack."""
_UNIT_TOLERANCE = 1e-2


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """L2-normalized embeddings of images.

    Attributes:
        paths: of the images, n of them.
        rows: (n, dim) float32.
        head: name of the head whose adapter they went through; `PLAIN` without one.
        weights_sha256: digest of the checkpoint of the model; empty if unknown.
        adapter_sha256: digest of the adapter they went through, see `adapter_digest`; empty if unknown.
    """

    paths: tuple[str, ...]
    rows: np.ndarray
    head: str
    weights_sha256: str
    adapter_sha256: str = ""

    def nearest(self, query: np.ndarray, top_k: int) -> list[Found]:
        """Return the images nearest to an embedding (dim,), the nearest first.

        Raises:
            InputError: the embedding is of another width.
        """
        if query.shape != (self.rows.shape[1],):
            raise InputError(
                f"the embeddings have {self.rows.shape[1]} numbers and the query {query.shape[0]}. Embed the images "
                "with this engine."
            )
        cosines = self.rows @ (query / max(float(np.linalg.norm(query)), float(np.finfo(np.float32).tiny)))
        order = np.argsort(-cosines, kind="stable")[:top_k]
        return [Found(path=self.paths[index], cosine=float(cosines[index])) for index in order]


def adapter_digest(head: Head) -> str:
    """Return what tells whether two heads move embeddings alike: the digest of the adapter, `PLAIN` without one."""
    adapter = head.adapter
    if adapter is None:
        return PLAIN
    arrays = (adapter.down_weight, adapter.down_bias, adapter.up_weight, adapter.up_bias)
    parts = [np.asarray(array, dtype="<f4").tobytes() for array in arrays]
    return sha256_bytes(b"".join([*parts, np.asarray(adapter.residual_ratio, dtype="<f4").tobytes()]))


def adapter_of(engine: Path, name: str) -> str:
    """Return the digest of the adapter of an engine's head; empty where its card, of an earlier version, has none.

    Args:
        engine: with its card.
        name: of a head, a file of one, or `PLAIN`.

    Raises:
        UsageError: there is no such head.
    """
    if name == PLAIN:
        return PLAIN
    if name == BUILT_IN and not read_card(engine).folded_head:
        return ""
    return adapter_digest(base_head(engine, name))


def use_plain(classifier: ZeroShotClassifier) -> None:
    """Let a classifier embed without any adapter from now on; what it then says of classes means nothing."""
    dim = classifier.card.embedding_dim
    classifier.keep_head(
        PLAIN, Head(class_names=("-",), text_embedding=np.eye(1, dim, dtype=np.float32), logit_scale=1.0)
    )
    classifier.use_head(PLAIN)


@dataclass(frozen=True, kw_only=True)
class Found:
    """An image that is near, with the cosine of its embedding and the query's."""

    path: str
    cosine: float


def require_embeddings_file(path: Path, *, force: bool) -> None:
    """Raise before any work where embeddings cannot be written.

    Raises:
        UsageError: of another suffix, or the file exists.
        EnvironmentNotAbleError: it is a Parquet file, and pyarrow is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"expected a file ending in {' or '.join(SUFFIXES)}, got {path}.")
    if path.suffix.lower() == ".parquet":
        require_pyarrow()
    require_writable(path, force=force)


def write_embeddings(path: Path, embeddings: Embeddings, *, force: bool = False) -> None:
    """Write embeddings in the form that the suffix names.

    Raises:
        UsageError: see `require_embeddings_file`.
        EnvironmentNotAbleError: see `require_embeddings_file`.
    """
    require_embeddings_file(path, force=force)
    # Names of files that are no text get escapes such as `\udce9`.
    paths = [name.encode("utf-8", "backslashreplace").decode() for name in embeddings.paths]
    about = {name: getattr(embeddings, name) for name in _ABOUT}

    def write(file: BinaryIO) -> None:
        if path.suffix.lower() == ".npz":
            np.savez(file, path=np.asarray(paths, dtype=np.str_), embedding=embeddings.rows, **_texts(about))
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        width = embeddings.rows.shape[1]
        values = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.rows.ravel(), pa.float32()), width)
        table = pa.table({"path": pa.array(paths, pa.string()), "embedding": values})
        pq.write_table(table.replace_schema_metadata({"p4q_edge": json.dumps(about)}), file)

    atomic_write(path, write, force=force)


def read_embeddings(path: Path) -> Embeddings:
    """Return the embeddings in a file.

    Raises:
        InputError: the file is missing, or holds none.
        EnvironmentNotAbleError: it is a Parquet file, and pyarrow is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"expected embeddings in a file ending in {' or '.join(SUFFIXES)}, got {path}.")
    data = read_bounded(path, limit_bytes=MAX_BYTES, kind="embeddings")
    try:
        arrays = _from_npz(data) if path.suffix.lower() == ".npz" else _from_parquet(data)
        return _checked(arrays)
    except NPZ_ERRORS as error:
        raise InputError(
            f"{path} holds no embeddings: {one_line(error)}. Make them: p4q-edge embed ENGINE FOLDER "
            f"-o {quoted(path.name)}"
        ) from error


def _texts(about: dict[str, str]) -> dict[str, Any]:
    return {name: np.asarray(value, dtype=np.str_) for name, value in about.items()}


def _from_npz(data: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        if sum(member.file_size for member in packed.infolist()) > MAX_BYTES:
            raise ValueError("it would unpack to more than an archive of embeddings can hold")
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return {name: file[name] for name in ("path", "embedding", *_ABOUT) if name in file or name not in _NEWER}


def _from_parquet(data: bytes) -> dict[str, np.ndarray]:
    require_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(data))
    about = json.loads((table.schema.metadata or {})[b"p4q_edge"])
    rows = table["embedding"].combine_chunks()
    width = rows.type.list_size
    return {
        "path": np.asarray(table["path"].to_pylist(), dtype=np.str_),
        "embedding": rows.flatten().to_numpy(zero_copy_only=False).reshape(-1, width),
        **_texts({name: str(about[name]) for name in _ABOUT if name in about or name not in _NEWER}),
    }


def _checked(arrays: dict[str, np.ndarray]) -> Embeddings:
    paths, rows = arrays["path"], arrays["embedding"]
    if paths.dtype.kind != "U" or paths.ndim != 1 or rows.dtype != np.float32 or rows.shape[:1] != paths.shape:
        raise ValueError(f"expected n paths and (n, dim) float32, got {paths.shape} {paths.dtype} and {rows.shape}")
    if any(arrays[name].ndim or arrays[name].dtype.kind != "U" for name in _ABOUT if name in arrays):
        raise ValueError(f"expected one word each for {', '.join(_ABOUT)}")
    texts = {name: words for name, words in arrays.items() if words.dtype.kind == "U"}
    if any(beyond_unicode(words, names_of_files=name == "path") for name, words in texts.items()):
        raise ValueError("words hold characters that Unicode does not have")
    if rows.ndim != 2 or not np.allclose(np.linalg.norm(rows.astype(np.float64), axis=1), 1.0, atol=_UNIT_TOLERANCE):
        raise ValueError("the embeddings must have length 1")
    return Embeddings(
        paths=tuple(map(str, paths)), rows=rows, **{name: str(arrays[name]) for name in _ABOUT if name in arrays}
    )
