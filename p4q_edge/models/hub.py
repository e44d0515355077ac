"""The Hugging Face Hub: whether it answers, asked once before anything is fetched from there.

Its library and open_clip try several files and wait before each of five repetitions, which without a network is a
minute of silence.
"""

import socket
from pathlib import PurePosixPath
from urllib.error import URLError

import open_clip

from p4q_edge.runtime.errors import EnvironmentNotAbleError

HUB = "hf-hub:"
_CONFIG = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_ANSWER_S = 10.0
# Of requests, httpx and huggingface_hub, of which not all are installed.
_NETWORK_ERRORS = frozenset(
    ("ConnectError", "ConnectTimeout", "ReadTimeout", "ProxyError", "LocalEntryNotFoundError", "OfflineModeIsEnabled")
)


def require_hub(name: str, pretrained: str) -> None:
    """Ask the hub once for the files of a model that are not on this machine; nothing for what comes from elsewhere.

    Args:
        name: as `load_model` takes it.
        pretrained: a tag, or empty.

    Raises:
        EnvironmentNotAbleError: the hub cannot be reached.
    """
    repository, files = _on_the_hub(name, pretrained)
    if not repository:
        return
    # Imported here: models by path or in a folder need nothing of it.
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE or any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, files[0]), timeout=_ANSWER_S)
    except Exception as error:  # what its HTTP library raises has no class that every version of it has
        if is_network(error):
            raise not_fetched(name, pretrained, error) from error
        # It answers: that a file is missing there, or is not for everybody, is for open_clip to say.


def not_fetched(name: str, pretrained: str, error: BaseException) -> EnvironmentNotAbleError:
    """Return the error of weights that are not here and could not be fetched."""
    if name.startswith(HUB):
        weights, instead = f"the files of model {name!r}", "its folder here and set model.name to local-dir:FOLDER"
    else:
        weights = f"the weights {pretrained!r} of model {name!r}"
        instead = "the weights here and set model.pretrained to their path"
    return EnvironmentNotAbleError(
        f"{weights} are not on this machine and could not be fetched: {first_line(error)}. Try again with a network, "
        f"or copy {instead}"
    )


def is_network(error: BaseException | None) -> bool:
    """Return whether an error, or what caused it, is of a network; libraries wrap these in classes of their own."""
    while error is not None:
        if isinstance(error, socket.gaierror | ConnectionError | TimeoutError | URLError):
            return True
        if type(error).__name__ in _NETWORK_ERRORS:
            return True
        error = error.__cause__ or error.__context__
    return False


def _on_the_hub(name: str, pretrained: str) -> tuple[str, tuple[str, ...]]:
    """Return the repository of a model's weights and the files that they may have there; an empty one for none."""
    if name.startswith(HUB):
        return name.removeprefix(HUB), (_CONFIG,)
    record = open_clip.get_pretrained_cfg(name.replace("/", "-"), pretrained) if pretrained else {}
    place = str(record.get("hf_hub", ""))
    if place.endswith("/"):
        return place.rstrip("/"), _WEIGHTS
    file = PurePosixPath(place)
    safe = file.with_suffix(".safetensors").name if file.suffix in (".bin", ".pth") else file.name
    return (str(file.parent), tuple(dict.fromkeys((file.name, safe)))) if place else ("", ())


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
