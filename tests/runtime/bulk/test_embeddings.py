"""Embeddings in files, and the images nearest to one."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4q_edge.runtime.artifacts import Head
from p4q_edge.runtime.artifacts.head import HeadAdapter
from p4q_edge.runtime.bulk.embeddings import PLAIN, Embeddings, adapter_digest, read_embeddings, write_embeddings
from p4q_edge.runtime.errors import InputError, UsageError


def embeddings(count: int, dim: int, seed: int = 0) -> Embeddings:
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    paths = tuple(f"föto {n}.jpg" for n in range(count))
    return Embeddings(
        paths=paths, rows=rows.astype(np.float32), head="shelf", weights_sha256="ab" * 32, adapter_sha256="cd" * 32
    )


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_what_is_written_is_read(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path, made = tmp_path / f"e{suffix}", embeddings(7, 5)
    write_embeddings(path, made)
    read = read_embeddings(path)
    assert (read.paths, read.head, read.weights_sha256) == (made.paths, made.head, made.weights_sha256)
    assert read.adapter_sha256 == made.adapter_sha256
    assert read.rows.dtype == np.float32
    np.testing.assert_array_equal(read.rows, made.rows)
    with pytest.raises(UsageError, match="--force"):
        write_embeddings(path, made)


def test_no_pickle_is_written_or_read(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "e.npz", embeddings(2, 3))
    with np.load(tmp_path / "e.npz", allow_pickle=False) as file:
        assert {file[name].dtype.kind for name in file} == {"U", "f"}
    np.savez(tmp_path / "bad.npz", path=np.array([{"a": 1}], dtype=object), embedding=np.eye(1, dtype=np.float32))
    with pytest.raises(InputError, match=r"bad.npz holds no embeddings: .* Make them: p4q-edge embed ENGINE FOLDER"):
        read_embeddings(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    "changes",
    [
        {"path": np.array(["a", "b"])},
        {"embedding": np.eye(1, 3)},
        {"embedding": np.full((1, 3), np.nan, np.float32)},
        {"embedding": np.full((1, 3), 2.0, np.float32)},
        {"embedding": np.ones((1, 3, 1), np.float32)},
        {"path": np.array([1])},
        {"path": np.array([0x110000], np.uint32).view("U1")},
        {"path": np.array(["a\ud800"])},
        {"head": np.array("a\udce9")},
        {"weights_sha256": np.array("\udfff")},
        {"head": np.array(["a", "b"])},
        {"head": np.array(b"a")},
    ],
)
def test_arrays_that_are_no_embeddings_are_refused(tmp_path: Path, changes: dict[str, np.ndarray]) -> None:
    good = {"path": np.array(["a"]), "embedding": np.eye(1, 3, dtype=np.float32)}
    texts = {"head": np.array("built-in"), "weights_sha256": np.array("")}
    np.savez(tmp_path / "good.npz", **good, **texts)
    assert read_embeddings(tmp_path / "good.npz").paths == ("a",)
    np.savez(tmp_path / "bad.npz", **{**good, **texts, **changes})
    with pytest.raises(InputError, match="holds no embeddings"):
        read_embeddings(tmp_path / "bad.npz")


def test_paths_may_hold_bytes_that_are_no_text(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    rows, texts = np.eye(1, 3, dtype=np.float32), {"head": np.array("built-in"), "weights_sha256": np.array("")}
    np.savez(tmp_path / "other.npz", path=np.array([name]), embedding=rows, **texts)
    found = read_embeddings(tmp_path / "other.npz")
    assert found.paths == (name,)
    write_embeddings(tmp_path / "own.npz", found)
    assert read_embeddings(tmp_path / "own.npz").paths == (r"caf\udce9.png",)


@given(st.binary(max_size=80))
def test_noise_holds_none(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "e.npz"
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_embeddings(path)


def _packed(path: Path, embedding: bytes, *, method: int = zipfile.ZIP_STORED) -> None:
    """Write embeddings, and the bytes of one array as they are."""
    write_embeddings(path, embeddings(2, 3))
    with zipfile.ZipFile(path) as good:
        members = {name: good.read(name) for name in good.namelist()}
    with zipfile.ZipFile(path, "w", method) as damaged:
        for name, data in {**members, "embedding.npy": embedding}.items():
            damaged.writestr(name, data)


def _claim(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue()


@pytest.mark.parametrize("embedding", [_claim((10**9, 10**6)), b"\x93NUMPY\x01\x00\x10\x00{(((((((((((((\n"])
def test_a_header_that_lies_is_refused(tmp_path: Path, embedding: bytes) -> None:
    path = tmp_path / "e.npz"
    _packed(path, embedding)
    with pytest.raises(InputError, match=r"holds no embeddings: .* Make them"):
        read_embeddings(path)


@pytest.mark.parametrize(
    ("directory", "entry", "value"), [(8, 6, 1), (10, 8, 99)], ids=["encrypted", "packed in a way nobody knows"]
)
def test_a_member_that_cannot_be_unpacked(tmp_path: Path, directory: int, entry: int, value: int) -> None:
    path = tmp_path / "e.npz"
    write_embeddings(path, embeddings(2, 3))
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x01\x02", directory), (b"PK\x03\x04", entry)):
        at = -1
        while (at := data.find(signature, at + 1)) >= 0:
            data[at + offset] = value
    path.write_bytes(data)
    with pytest.raises(InputError, match="holds no embeddings"):
        read_embeddings(path)


def test_damage_in_what_is_packed(tmp_path: Path) -> None:
    path = tmp_path / "e.npz"
    _packed(path, bytes(range(256)) * 4, method=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    at = data.find(b"embedding.npy") + len(b"embedding.npy")
    data[at : at + 30] = b"\xff" * 30
    path.write_bytes(data)
    with pytest.raises(InputError, match="holds no embeddings"):
        read_embeddings(path)


def test_a_table_whose_embeddings_are_of_any_length(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    made = pa.table({"path": ["a"], "embedding": pa.array([[1.0, 0.0]], pa.list_(pa.float32()))})
    about = {"p4q_edge": '{"head": "built-in", "weights_sha256": ""}'}
    pq.write_table(made.replace_schema_metadata(about), tmp_path / "e.parquet")
    with pytest.raises(InputError, match="holds no embeddings"):
        read_embeddings(tmp_path / "e.parquet")


def test_other_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected embeddings in a file ending in .npz or .parquet"):
        read_embeddings(tmp_path / "e.csv")
    with pytest.raises(InputError, match="cannot read the embeddings"):
        read_embeddings(tmp_path / "none.npz")


@given(st.integers(1, 20), st.integers(1, 8), st.integers(1, 30), st.integers(0, 99))
def test_the_nearest_come_first(count: int, dim: int, top_k: int, seed: int) -> None:
    made = embeddings(count, dim, seed)
    query = np.random.default_rng(seed + 1).normal(size=dim)
    found = made.nearest(query, top_k)
    assert len(found) == min(top_k, count)
    cosines = made.rows @ (query / np.linalg.norm(query))
    np.testing.assert_allclose([one.cosine for one in found], np.sort(cosines)[::-1][: len(found)], atol=1e-6)
    assert made.paths.index(found[0].path) == int(np.argmax(cosines))
    itself = made.nearest(made.rows[0], 1)[0]
    assert itself.cosine == pytest.approx(1.0, abs=1e-5)


def test_a_query_of_another_width() -> None:
    with pytest.raises(InputError, match="the embeddings have 5 numbers and the query 4"):
        embeddings(2, 5).nearest(np.ones(4), 1)


def test_a_file_of_an_earlier_version_does_not_say_which_adapter(tmp_path: Path) -> None:
    made = embeddings(3, 4)
    np.savez(tmp_path / "e.npz", path=np.array(made.paths), embedding=made.rows, head="shelf", weights_sha256="ab")
    read = read_embeddings(tmp_path / "e.npz")
    assert (read.head, read.weights_sha256, read.adapter_sha256) == ("shelf", "ab", "")


def test_heads_without_an_adapter_move_embeddings_alike() -> None:
    rows = np.eye(2, 4, dtype=np.float32)
    one, two = (Head(class_names=names, text_embedding=rows, logit_scale=1.0) for names in (("a", "b"), ("c", "d")))
    assert adapter_digest(one) == adapter_digest(two) == PLAIN
    square = np.eye(4, dtype=np.float32)
    half, third = (
        HeadAdapter(down_weight=square, down_bias=rows[0], up_weight=square, up_bias=rows[0], residual_ratio=ratio)
        for ratio in (0.5, 0.3)
    )
    digests = [adapter_digest(replace(one, adapter=adapter)) for adapter in (half, third)]
    assert len({*digests, PLAIN}) == 3
    assert adapter_digest(replace(two, adapter=half)) == digests[0]
