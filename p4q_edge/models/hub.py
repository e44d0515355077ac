"""The Hugging Face Hub: whether it answers, asked once before anything is fetched from there.

Its library and open_clip try several files and wait before each of five repetitions, which without a network is a
minute of silence.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

import open_clip

from p4q_edge.runtime.errors import EnvironmentNotAbleError, P4QEdgeError
from p4q_edge.runtime.hub import answer_of, guarded_answers, is_hub_trouble, network_cause, strange_answer

HUB = "hf-hub:"
_CONFIG = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_ANSWER_S = 10.0


@contextmanager
def guarded_fetches() -> Iterator[None]:
    """Look at each answer of the hub before a file is kept under the name that it gives, whoever fetches it.

    A model in a folder may name a text tower of the hub, whose configuration transformers fetches.
    """
    import huggingface_hub

    with guarded_answers(huggingface_hub):
        yield


def require_hub(name: str, pretrained: str) -> None:
    """Ask the hub once for the files of a model that are not on this machine; nothing for what comes from elsewhere.

    Args:
        name: as `load_model` takes it.
        pretrained: a tag, or empty.

    Raises:
        EnvironmentNotAbleError: the hub cannot be reached.
        P4QEdgeError: the hub answers with an error of its own.
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
        if (failed := fetching_failed(name, pretrained, error)) is not None:
            raise failed from error
        # It answers: that a file is missing there, or is not for everybody, is for open_clip to say.


def fetching_failed(name: str, pretrained: str, error: BaseException) -> P4QEdgeError | None:
    """Return what it means that weights are not here and could not be fetched; None for errors of another kind.

    Args:
        name: as `load_model` takes it.
        pretrained: a tag, or empty.
        error: what a library raised, which may wrap what caused it.
    """
    if (strange := strange_answer(error)) is not None:
        return P4QEdgeError(
            f"what was answered for model {name!r} {pretrained!r} is no answer of the Hub ({first_line(strange)}). "
            "Check HF_ENDPOINT and the network, and run this again"
        )
    status = answer_of(error)
    if status is not None and is_hub_trouble(status):
        return P4QEdgeError(f"the hub answers with error {status} for model {name!r} {pretrained!r}. Try again later.")
    if network_cause(error) is None:
        return None
    if name.startswith(HUB):
        weights, instead = f"the files of model {name!r}", "its folder here and set model.name to local-dir:FOLDER"
    else:
        weights = f"the weights {pretrained!r} of model {name!r}"
        instead = "the weights here and set model.pretrained to their path"
    return EnvironmentNotAbleError(
        f"{weights} are not on this machine and could not be fetched: {first_line(error)}. Try again with a network, "
        f'or copy {instead}. The small model in this package needs none, to try the commands: model.name = "demo" '
        "without model.pretrained"
    )


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
