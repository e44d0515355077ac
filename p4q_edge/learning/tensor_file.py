"""Tensors of a run folder: safetensors with the key of what made them and a digest of what is in them."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from p4q_edge.runtime.errors import CorruptArtifactError
from p4q_edge.runtime.storage import atomic_write, contents_digest, save_tensors

_KEY, _DIGEST = "key", "sha256"


def write_tensors(path: Path, tensors: dict[str, Tensor], *, key: str, metadata: dict[str, str] | None = None) -> None:
    """Write tensors of a stage, replacing what an earlier run left there.

    The same contents always give the same bytes.
    """
    contents = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
    facts = {**(metadata or {}), _KEY: key}
    facts[_DIGEST] = contents_digest(contents, facts)
    atomic_write(path, save_tensors(contents, facts), force=True)


def read_tensors(path: Path, *, key: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return tensors of a stage and their metadata; None if the file is missing or was made from something else.

    Args:
        path: of the file.
        key: of what it must have been made from; None takes any.

    Raises:
        CorruptArtifactError: the file cannot be read, or its contents are not what was written.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            if key is not None and metadata.get(_KEY) != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise CorruptArtifactError(f"{path} cannot be read ({error}); delete it and run the command again") from error
    recorded = metadata.pop(_DIGEST, "")
    if contents_digest({name: tensor.numpy() for name, tensor in tensors.items()}, metadata) != recorded:
        raise CorruptArtifactError(
            f"{path} is damaged: its tensors differ from the digest {recorded[:12]!r} that was recorded with them; "
            "delete it and run the command again"
        )
    return tensors, metadata
