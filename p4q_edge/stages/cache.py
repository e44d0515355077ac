"""Results of stages: safetensors with the digest of what made them in their metadata."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.storage import atomic_write


def write_tensors(path: Path, tensors: dict[str, Tensor], *, key: str, metadata: dict[str, str] | None = None) -> None:
    """Write tensors of a stage, replacing what an earlier run left there."""
    contents = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    atomic_write(path, save(contents, {**(metadata or {}), "key": key}), force=True)


def read_tensors(path: Path, *, key: str) -> dict[str, Tensor] | None:
    """Tensors of a stage, or None when the file is missing or was made from something else.

    Raises:
        CorruptArtifactError: the file cannot be read.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise CorruptArtifactError(f"{path} cannot be read ({error}); delete it and run the command again") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a file that `read_tensors` accepted."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})
