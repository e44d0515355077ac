"""Image files and archives of one grey value, written for tests."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def png_bytes(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), value).save(stream, "PNG")
    return stream.getvalue()


def write_file(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def write_tar(path: Path, *members: tuple[str, bytes]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def write_npz(path: Path, **arrays: object) -> str:
    whole = {
        "images": np.zeros((2, 4, 4, 3), np.uint8),
        "labels": np.array([0, 1]),
        "class_names": np.array(["a", "b"]),
    }
    np.savez(path, **(whole | arrays))  # type: ignore[arg-type]
    return str(path)


def write_photo(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (value, 10, 200 - value)).save(path)
