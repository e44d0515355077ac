"""Weights in the forms that people have, as one plain dictionary of tensors; nothing in a file is executed.

`torch.load(weights_only=True)` reads pickles of tensors alone. TorchScript archives, the form of OpenAI's files, are
read by `torchscript_archive`. What is unambiguous is unwrapped; else the message says what was found.
"""

import argparse
import pickle  # noqa: TID251  (only its error class: torch raises it when it refuses a checkpoint)
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from p4q_edge.models.torchscript_archive import is_torchscript, read_torchscript
from p4q_edge.runtime.errors import InputError
from p4q_edge.runtime.storage import one_line

State = dict[str, Tensor]

MARKER = "logit_scale"
"""Every CLIP has one: where it stands tells which prefix a program put before all names."""
COMPILED = "_orig_mod."
_AVERAGED = "n_averaged"
_NO_WEIGHTS = frozenset({"input_resolution", "context_length", "vocab_size", "attn_mask"})
_PASSED_ON = (".npz", ".npy")
_KEEP = "python -c \"import torch; s = torch.load({path!r}, weights_only=False){key}; torch.save({what}, 'new.pt')\""


@contextmanager
def plain_checkpoint(path: str) -> Iterator[tuple[str, State]]:
    """Yield a path that open_clip reads, and the weights in it; a file of another form is written again meanwhile.

    Raises:
        InputError: the file is damaged, of another kind, or holds several models.
    """
    if path.endswith(_PASSED_ON):
        yield path, {}
        return
    raw = read_checkpoint(path)
    state = unwrap(raw, path=path)
    if path.endswith(".safetensors") and state.keys() == raw.keys():
        yield path, state
        return
    with tempfile.TemporaryDirectory(prefix="p4q-edge-") as folder:
        plain = str(Path(folder) / "weights.safetensors")
        # Cloned, as the format has no tensors that share memory.
        save_file({name: value.detach().clone().contiguous() for name, value in state.items()}, plain)
        yield plain, state


def read_checkpoint(path: str) -> Mapping[str, Any]:
    """Return what a file of weights holds, still wrapped as its program did.

    Raises:
        InputError: the file is damaged, or needs to be executed.
    """
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        if is_torchscript(path):
            return {name: value for name, value in read_torchscript(path).items() if name not in _NO_WEIGHTS}
        # A Namespace is what argparse makes of options: a record without code, common in checkpoints of scripts.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(_needs_code(path, str(error))) from error
    except InputError:
        raise
    except Exception as error:  # what torch raises on damaged files has no common class
        raise InputError(f"could not load {path}: it is not an intact file of weights ({one_line(error)})") from error
    if not isinstance(found, Mapping):
        raise InputError(f"{path} holds a {type(found).__name__}, not a dictionary of weights; save model.state_dict()")
    return found


def unwrap(found: Mapping[str, Any], *, path: str) -> State:
    """Return the weights of the one model in what a program saved, under the names of open_clip.

    Raises:
        InputError: no weights, or those of several models; the message names the keys or prefixes and the line that
            keeps one of them.
    """
    state = _only_state(found, path=path)
    state = {name.replace(COMPILED, ""): value for name, value in state.items() if name != _AVERAGED}
    prefixes = sorted({name[: -len(MARKER)] for name in state if name == MARKER or name.endswith(f".{MARKER}")})
    if len(prefixes) > 1 and "" not in prefixes:
        named = ", ".join(repr(prefix) for prefix in prefixes)
        what = f"{{k[{len(prefixes[0])}:]: v for k, v in s.items() if k.startswith({prefixes[0]!r})}}"
        raise InputError(
            f"{path} holds several models, under the prefixes {named}. Keep one of them: "
            + _KEEP.format(path=path, key="", what=what)
        )
    prefix = prefixes[0] if prefixes else ""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def _only_state(found: Mapping[str, Any], *, path: str) -> State:
    if _is_state(found):
        return dict(found)
    inner = [key for key, value in found.items() if isinstance(value, Mapping) and _is_state(value)]
    if len(inner) == 1:
        return dict(found[inner[0]])
    if inner:
        raise InputError(
            f"{path} holds several models, under the keys {', '.join(map(repr, inner))}. Keep one of them: "
            + _KEEP.format(path=path, key=f"[{inner[0]!r}]", what="s")
        )
    keys = ", ".join(repr(key) for key in list(found)[:8])
    raise InputError(f"{path} holds no weights under any of its keys ({keys}); save model.state_dict()")


def _is_state(value: Mapping[str, Any]) -> bool:
    return bool(value) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _needs_code(path: str, error: str) -> str:
    # torch's own words name the class, in a sentence that advises to execute the file.
    named = next((word.strip("`") for word in error.split() if "." in word and word.startswith(("GLOBAL", "`"))), "")
    after = error.partition("GLOBAL ")[2].split(" ")
    named = after[0] if after and after[0] else named
    what = f"an object of {named}" if named else "objects that are not tensors"
    return (
        f"could not load {path}: it holds {what}, and reading that would run code of the file. If you trust where it "
        "comes from, save its weights alone: "
        + _KEEP.format(path=path, key="", what="s.state_dict() if hasattr(s, 'state_dict') else s['state_dict']")
    )
