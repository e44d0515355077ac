"""Data sets of strangers are bounded: what would take hours or all memory is refused with one line."""

import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from p4q_edge.data.archive_readers import read_npz, read_tar
from p4q_edge.runtime.errors import InputError


def _tar(path: Path, label: str) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in (("a.jpg", b"x"), ("a.cls", label.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("label", ["2000000000", "65536", "9" * 5000, "-1", str(1 << 40), "x"])
def test_a_label_beyond_all_classes_is_refused(tmp_path: Path, label: str) -> None:
    with pytest.raises(
        InputError, match="a KEY.cls holds|expected the index of a class|invalid literal|labels must be between"
    ):
        read_tar(_tar(tmp_path / "a.tar", label))


def test_many_classes_take_linear_time(tmp_path: Path) -> None:
    """60,000 names took minutes when each was looked for among all before it."""
    assert len(read_tar(_tar(tmp_path / "a.tar", "60000")).class_names) == 60001


def _npz(path: Path, images: np.ndarray) -> Path:
    np.savez_compressed(path, images=images, labels=np.zeros(len(images), np.int64), class_names=np.array(["a"]))
    return path


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = _npz(tmp_path / "a.npz", np.zeros((1500, 224, 224), np.uint8))
    assert path.stat().st_size < 1 << 18
    with pytest.raises(InputError, match=r"its arrays claim \d+ bytes, at most"):
        read_npz(path)


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    path = _npz(tmp_path / "a.npz", np.zeros((2, 4, 4), np.uint8))
    data = bytearray(path.read_bytes())
    for start, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        place = data.find(start)
        while place >= 0:
            struct.pack_into("<H", data, place + flags, 1)
            place = data.find(start, place + 4)
    path.write_bytes(data)
    assert zipfile.ZipFile(path).infolist()[0].flag_bits & 1
    with pytest.raises(InputError, match="encrypted"):
        read_npz(path)
