"""Weights in the forms that people have: what is unwrapped, what is refused, and that nothing is executed."""

import argparse
import json
import pickle  # noqa: TID251  (only written, to show that it is never run)
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from p4q_edge.models.checkpoint_file import plain_checkpoint, read_checkpoint, unwrap
from p4q_edge.models.load import load_model
from p4q_edge.models.torchscript_archive import is_torchscript, read_torchscript
from p4q_edge.runtime.errors import InputError

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nn.Module]:
    """A registered CLIP of one block."""
    path = tmp_path_factory.mktemp("config") / "toy-forms.json"
    path.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield open_clip.create_model("toy-forms").eval()
    open_clip.factory._MODEL_CONFIGS.pop("toy-forms", None)
    open_clip.factory._MODEL_CONFIG_PATHS[:] = [
        p for p in open_clip.factory._MODEL_CONFIG_PATHS if "toy-forms" not in str(p)
    ]


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


FORMS = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: {"step": 1}}}},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.5},
    "model": lambda state: {"model": state},
    "ema alone": lambda state: {"ema": state, "step": 7},
    "compiled": lambda state: prefixed("_orig_mod.", state),
    "compiled inside": lambda state: {k.replace("visual.", "visual._orig_mod."): v for k, v in state.items()},
    "parallel": lambda state: prefixed("module.", state),
    "parallel, compiled": lambda state: {"state_dict": prefixed("module._orig_mod.", state)},
    "Lightning": lambda state: {"state_dict": prefixed("model.", state) | {"loss.weight": torch.ones(1)}},
    "averaged": lambda state: prefixed("module.", state) | {"n_averaged": torch.tensor(3)},
    "options of a script": lambda state: {"state_dict": state, "args": argparse.Namespace(lr=1.0)},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_same_weights_load_alike(form: str, model: nn.Module, tmp_path: Path) -> None:
    torch.save(FORMS[form](model.state_dict()), tmp_path / "w.pt")
    loaded = load_model("toy-forms", str(tmp_path / "w.pt"))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.clip.state_dict()[name], value, rtol=0, atol=0)


def test_wrapped_safetensors_load_alike(model: nn.Module, tmp_path: Path) -> None:
    save_file(prefixed("model.", model.state_dict()), tmp_path / "w.safetensors")
    loaded = load_model("toy-forms", str(tmp_path / "w.safetensors"))
    torch.testing.assert_close(loaded.clip.visual.proj, model.visual.proj.detach(), rtol=0, atol=0)


def test_plain_safetensors_are_not_written_again(model: nn.Module, tmp_path: Path) -> None:
    path = str(tmp_path / "w.safetensors")
    save_file(model.state_dict(), path)
    with plain_checkpoint(path) as (plain, state):
        assert plain == path
        assert state.keys() == model.state_dict().keys()


@pytest.fixture
def archive(model: nn.Module, tmp_path: Path) -> Path:
    """The form in which OpenAI published its models."""
    sample = (torch.randn(1, 3, 16, 16), torch.zeros(1, 12, dtype=torch.long))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has deprecated the format that these files have
        torch.jit.save(torch.jit.trace(model, sample, check_trace=False, strict=False), str(tmp_path / "jit.pt"))
    return tmp_path / "jit.pt"


def test_torchscript_archives_are_read_as_data(
    archive: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("the archive was executed")

    monkeypatch.setattr(torch.jit, "load", never)
    assert is_torchscript(str(archive))
    found = read_torchscript(str(archive))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    loaded = load_model("toy-forms", str(archive))
    torch.testing.assert_close(loaded.clip.visual.proj, model.visual.proj.detach(), rtol=0, atol=0)


def rewrite(archive: Path, name: str, change: object) -> str:
    """Replace one member of an archive."""
    target = archive.with_name("changed.pt")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as written:
        for member in source.namelist():
            data = source.read(member)
            if member.endswith(name):
                data = change(data) if callable(change) else change
            if data is not None:
                written.writestr(member, data)
    return str(target)


class Touching:
    """An object whose pickle would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_an_archive_that_names_other_code_is_refused_and_never_run(archive: Path, tmp_path: Path) -> None:
    changed = rewrite(archive, "data.pkl", pickle.dumps(Touching(tmp_path / "ran"), protocol=2))
    with pytest.raises(InputError, match="could not be read without running its code: it names "):
        read_checkpoint(changed)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("data.pkl", lambda data: data[: len(data) // 2], "damaged TorchScript archive|without running its code"),
        ("data.pkl", None, "without data.pkl"),
        ("data/0", b"short", "bytes, .* were announced"),
        ("data/0", None, "damaged TorchScript archive"),
    ],
)
def test_damaged_archives_are_refused(archive: Path, name: str, change: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_checkpoint(rewrite(archive, name, change))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda state: {"model": state, "ema": state},
            r"several models, under the keys 'model', 'ema'. Keep one of them: python -c .*False\)\['model'\]",
        ),
        (
            lambda state: prefixed("student.", state) | prefixed("teacher.", state),
            r"several models, under the prefixes 'student\.', 'teacher\.'. Keep one of them: python -c .*k\[8:\]",
        ),
        (lambda state: {"epoch": 3, "args": [1]}, r"holds no weights under any of its keys \('epoch', 'args'\)"),
        (lambda state: list(state.values()), "holds a list, not a dictionary of weights; save model.state_dict"),
    ],
)
def test_what_is_ambiguous_says_what_was_found(make: object, message: str, model: nn.Module, tmp_path: Path) -> None:
    assert callable(make)
    torch.save(make(model.state_dict()), tmp_path / "w.pt")
    path = str(tmp_path / "w.pt")
    with pytest.raises(InputError, match=message):
        unwrap(read_checkpoint(path), path=path)


def test_the_printed_line_converts(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    path = tmp_path / "whole.pt"
    torch.save({"state_dict": prefixed("a.", model.state_dict()) | prefixed("b.", model.state_dict())}, path)
    with pytest.raises(InputError, match="several models") as caught:
        load_model("toy-forms", str(path))
    command = str(caught.value).partition('python -c "')[2].rstrip('"')
    # the advice is for what the key holds; here it lies one key deeper
    command = command.replace("weights_only=False)", "weights_only=False)['state_dict']")
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    assert load_model("toy-forms", str(tmp_path / "new.pt")).logit_scale == pytest.approx(100 / 7, rel=1e-3)


def test_a_whole_pickled_module_is_refused_with_the_line_that_converts_it(model: nn.Module, tmp_path: Path) -> None:
    torch.save(model, tmp_path / "whole.pt")
    with pytest.raises(InputError, match=r"could not load .*whole\.pt: it holds an object of open_clip\.model\.CLIP"):
        load_model("toy-forms", str(tmp_path / "whole.pt"))


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(b"\x80\x02nonsense")
        with pytest.raises(InputError, match=f"could not load .*{name}"):
            read_checkpoint(str(tmp_path / name))
