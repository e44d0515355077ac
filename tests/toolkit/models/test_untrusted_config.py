"""Models of strangers: what their configuration asks for beyond an architecture is refused, and never run."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from p4q_edge.models.load import load_model
from p4q_edge.models.untrusted_config import check_config, checked_config
from p4q_edge.runtime.errors import InputError

VISION = {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1, "head_width": 16}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
EVIL = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({ran!r}).touch()
class Evil(PreTrainedTokenizerFast):
    pass
"""


def _document(**text: Any) -> dict[str, Any]:
    return {"model_cfg": {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT | text}, "preprocess_cfg": {}}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "open_clip_model.safetensors"
    save_file(open_clip.CLIP(32, VISION, TEXT).state_dict(), path)
    return path


@pytest.fixture
def folder(tmp_path: Path, weights: Path) -> Path:
    place = tmp_path / "model"
    place.mkdir()
    (place / weights.name).symlink_to(weights)
    return place


def _write(folder: Path, document: object, name: str = "open_clip_config.json") -> None:
    (folder / name).write_text(json.dumps(document))


def _plant(folder: Path, ran: Path, **text: Any) -> None:
    """Write a model whose tokenizer is Python code that leaves a file behind."""
    tokenizers = pytest.importorskip("tokenizers")
    pytest.importorskip("transformers")
    _write(folder, _document(hf_tokenizer_name="x", **text))
    (folder / "evil.py").write_text(EVIL.format(ran=str(ran)))
    _write(
        folder, {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}, "tokenizer_class": "Evil"}, "tokenizer_config.json"
    )
    _write(folder, {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}, "config.json")
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    "text",
    [pytest.param({"tokenizer_kwargs": {"trust_remote_code": True}}, marks=pytest.mark.slow), {}],
    ids=["told", "asked"],
)
def test_code_of_a_folder_is_never_run(folder: Path, tmp_path: Path, text: dict[str, Any]) -> None:
    _plant(folder, tmp_path / "ran", **text)
    program = "import sys; from p4q_edge.models import load_model; load_model(sys.argv[1])"
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    # In a process of its own, as transformers keeps what it imported; "y" is the answer to its question.
    result = subprocess.run(
        [sys.executable, "-c", program, f"local-dir:{folder}"],
        input="y\n" * 5,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert not (tmp_path / "ran").exists()
    assert "InputError" in result.stderr
    assert "trust_remote_code" in result.stderr or "never run" in result.stderr


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tokenizer_kwargs": {"trust_remote_code": True}}, r"text_cfg\.tokenizer_kwargs\.trust_remote_code"),
    ({"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}}, r"tokenizer_kwargs\.bpe_path"),
    ({"tokenizer_kwargs": {"reduction_mask": "syntax"}}, r"tokenizer_kwargs\.reduction_mask"),
    ({"hf_model_name": "/somewhere/else"}, "hf_model_name = '/somewhere/else', which open_clip does not know"),
    ({"hf_model_name": "../outside"}, "hf_model_name"),
    ({"hf_model_name": "stranger/model"}, "hf_model_name = 'stranger/model', which open_clip does not know"),
    ({"auto_map": {}}, r"text_cfg\.auto_map"),
    ({"width": "32"}, "text_cfg is not of the expected type"),
    ({"layers": 10**9}, "layers = 1000000000; at most"),
    ({"mlp_ratio": 1e300}, "mlp_ratio"),
    ({"act_kwargs": {"a": {"b": 1}}}, r"nested values in text_cfg\.act_kwargs"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_describes_no_architecture_is_refused(folder: Path, text: dict[str, Any], message: str) -> None:
    _write(folder, _document(**text))
    with pytest.raises(InputError, match=message):
        load_model(f"local-dir:{folder}")


@pytest.mark.parametrize("name", ["hf-hub:someone/else", "local-dir:../elsewhere", "/abs", "a.b.c:d"])
def test_an_image_tower_from_elsewhere_is_refused(folder: Path, name: str) -> None:
    document = _document()
    document["model_cfg"]["vision_cfg"] = VISION | {"timm_model_name": name}
    with pytest.raises(InputError, match="timm_model_name|not below the model's folder"):
        check_config(document, source="x", folder=folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.pkl", b"cposix\nsystem\n", r"vocab\.pkl, a pickle, which can run code"),
        ("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": "a.B"}}', r"code .* \(auto_map\), which is never"),
        ("tokenizer_config.json", b'{"x": [{"trust_remote_code": true}]}', r"\(trust_remote_code\)"),
        (
            "tokenizer_config.json",
            b'{"tokenizer_class": "RagTokenizer"}',
            "tokenizer_class 'RagTokenizer'",
        ),
        ("tokenizer_config.json", b'{"vocab_file": "/etc/passwd"}', "vocab_file = '/etc/passwd', a file elsewhere"),
        ("config.json", b'{"attn_implementation": "someone/kernel"}', "attn_implementation"),
        ("config.json", b"[" * 100_000, "not a JSON object"),
    ],
)
def test_a_tokenizer_that_runs_code_is_refused(folder: Path, name: str, content: bytes, message: str) -> None:
    _write(folder, _document(hf_tokenizer_name="x"))
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_model(f"local-dir:{folder}")


def test_the_same_holds_for_models_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = _document(hf_tokenizer_name="a/b", tokenizer_kwargs={"trust_remote_code": True})["model_cfg"]
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: evil if name == "hf-hub:a/b" else {})
    with pytest.raises(InputError, match="trust_remote_code"):
        load_model("hf-hub:a/b")
    evil["text_cfg"] = TEXT | {"hf_tokenizer_name": "c/d"}
    with pytest.raises(InputError, match="hf_tokenizer_name = 'c/d', a tokenizer elsewhere"):
        load_model("hf-hub:a/b")


def test_every_model_of_open_clip_passes() -> None:
    for name in open_clip.list_models():
        check_config({"model_cfg": open_clip.get_model_config(name)}, source=name, folder=None)


def test_a_text_tower_of_the_folder_stays_possible(folder: Path) -> None:
    (folder / "text").mkdir()
    _write(folder / "text", {"model_type": "bert", "hidden_size": 32}, "config.json")
    _write(folder, _document(hf_model_name="text", hf_tokenizer_name="."))
    model = checked_config(f"local-dir:{folder}")["model_cfg"]
    assert model["text_cfg"]["hf_model_name"] == str((folder / "text").resolve())
    _write(folder / "text", {"model_type": "deepseek"}, "config.json")
    with pytest.raises(InputError, match="model_type 'deepseek'; expected one of"):
        checked_config(f"local-dir:{folder}")


ALTERED: dict[str, Callable[[dict[str, Any]], object]] = {
    "empty": lambda document: {},
    "a list": lambda document: [document],
    "no vision": lambda document: {"model_cfg": {"embed_dim": 4, "text_cfg": {}}},
    "text is a list": lambda document: {"model_cfg": document["model_cfg"] | {"text_cfg": []}},
    "no dim": lambda document: {"model_cfg": {"vision_cfg": VISION, "text_cfg": TEXT}},
    "no heads": lambda document: _document(heads=0),
    "uneven heads": lambda document: _document(heads=7),
    "no width": lambda document: _document(width=0),
    "mean of two": lambda document: document | {"preprocess_cfg": {"mean": [0.5, 0.5]}},
    "mean of words": lambda document: document | {"preprocess_cfg": {"mean": ["a", "b", "c"]}},
    "strange filter": lambda document: document | {"preprocess_cfg": {"interpolation": "random"}},
}


@pytest.mark.parametrize("change", ALTERED.values(), ids=ALTERED)
def test_odd_configurations_end_in_one_documented_error(folder: Path, change: Callable[[Any], object]) -> None:
    _write(folder, change(_document()))
    with pytest.raises(InputError):
        load_model(f"local-dir:{folder}")


def test_a_pipe_in_place_of_weights_is_refused(folder: Path) -> None:
    _write(folder, _document())
    os.mkfifo(folder / "open_clip_model.bin")
    with pytest.raises(InputError, match=r"open_clip_model\.bin is a pipe or a device, not a file; expected a file of"):
        load_model(f"local-dir:{folder}")


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("length", [0, 1, 7, 100, 5000])
def test_truncated_checkpoints_end_in_one_documented_error(
    folder: Path, weights: Path, suffix: str, length: int
) -> None:
    _write(folder, _document())
    whole = weights.read_bytes()
    (folder / weights.name).unlink()
    path = folder / f"open_clip_pytorch_model{suffix}"
    if suffix == ".bin":
        torch.save({"state_dict": {"a": torch.zeros(4000)}}, path)
        whole = path.read_bytes()
    path.write_bytes(whole[:length])
    with pytest.raises(InputError, match="could not load"):
        load_model(f"local-dir:{folder}")


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_that_are_no_configuration(folder: Path, data: bytes) -> None:
    (folder / "open_clip_config.json").write_bytes(data)
    with pytest.raises(InputError, match=r"open_clip_config\.json"):
        load_model(f"local-dir:{folder}")
