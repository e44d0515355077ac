"""Tensors of a TorchScript archive, read as data: neither its code nor its pickle can run anything.

`torch.jit.load` would compile and bind the code in the archive. Here the pickle's few instructions make records that do
nothing, and tensors from the raw files beside it.
"""

import io
import pickle  # noqa: TID251  (every global it may name is listed below, and is inert)
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.storage import one_line
from p4q_edge.runtime.wording import number_of, one_or_many

_DAMAGED = (RuntimeError, LookupError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile)
MAX_PICKLE_BYTES = 256 << 20
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Record:
    """Stands for any object of the archive: it keeps the state it is given."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _StorageType:
    def __init__(self, name: str) -> None:
        self.name = name


def is_torchscript(path: str) -> bool:
    """Return whether a file is an archive that `torch.jit.save` wrote."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(PurePosixPath(name).name == "constants.pkl" for name in archive.namelist())


def read_torchscript(path: str) -> dict[str, Tensor]:
    """Return all tensors of the modules in an archive, by the names of `state_dict`.

    Raises:
        InputError: the archive is damaged, or names something that no module's state needs.
    """
    with zipfile.ZipFile(path) as archive:
        data = next((name for name in archive.namelist() if PurePosixPath(name).name == "data.pkl"), None)
        if data is None:
            raise InputError(f"{path} is a TorchScript archive without data.pkl; fetch it again")
        if archive.getinfo(data).file_size > MAX_PICKLE_BYTES:
            raise InputError(f"{path}: {data} is larger than {MAX_PICKLE_BYTES >> 20} MiB; fetch it again")
        reader = _Reader(archive, prefix=str(PurePosixPath(data).parent), stream=io.BytesIO(archive.read(data)))
        try:
            root = reader.load()
        except pickle.UnpicklingError as error:
            raise InputError(f"{path} could not be read without running its code: {one_line(error)}") from error
        except _DAMAGED as error:
            raise InputError(f"{path} is a damaged TorchScript archive ({one_line(error)}); fetch it again") from error
    found: dict[str, Tensor] = {}
    _collect(root, "", found)
    return found


class _Reader(pickle.Unpickler):
    """Makes records and tensors; every other global is an error."""

    def __init__(self, archive: zipfile.ZipFile, *, prefix: str, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self._archive = archive
        self._prefix = prefix

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Record
        if module == "torch" and name in _DTYPES:
            return _StorageType(name)
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("collections", "OrderedDict"): OrderedDict,
            ("torch.jit._pickle", "build_intlist"): list,
            ("torch.jit._pickle", "build_doublelist"): list,
            ("torch.jit._pickle", "build_boollist"): list,
            ("torch.jit._pickle", "build_tensorlist"): list,
            ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return known[module, name]

    def persistent_load(self, key: Any) -> Tensor:
        kind, storage, name, _, count = key
        if kind != "storage" or not isinstance(storage, _StorageType) or not str(name).isalnum():
            raise pickle.UnpicklingError(f"its storage {name!r} is of an unknown kind")
        dtype = _DTYPES[storage.name]
        raw = self._archive.read(f"{self._prefix}/data/{name}")
        if len(raw) != int(count) * dtype.itemsize:
            announced = int(count) * dtype.itemsize
            raise ValueError(
                f"storage {name} has {number_of(len(raw), 'byte')}, {announced} "
                f"{one_or_many(announced, 'was', 'were')} announced"
            )
        return torch.from_numpy(np.frombuffer(raw, np.uint8).copy()).view(dtype)


def _rebuild(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return storage.as_strided(tuple(size), tuple(stride), int(offset)).clone()


def _collect(value: object, prefix: str, found: dict[str, Tensor]) -> None:
    state = value.state if isinstance(value, _Record) else value
    if isinstance(state, Tensor):
        found[prefix.rstrip(".")] = state
    elif isinstance(state, Mapping):
        for name, inner in state.items():
            if isinstance(inner, Tensor | _Record):
                _collect(inner, f"{prefix}{name}.", found)
