"""Models of the Hugging Face Hub without a network: one question, no waiting, and the next command."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import open_clip
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from p4q_edge.models import load_model
from p4q_edge.models.hub import guarded_fetches, require_hub
from p4q_edge.runtime.errors import EnvironmentNotAbleError, P4QEdgeError

from doubles.hub import believed


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub at a port where nothing listens, and an empty cache; waiting is a failure."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"it waits {seconds} s before it asks again"))
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: pytest.fail("open_clip was asked all the same"))


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(
    ("name", "tag", "said"),
    [
        (
            "ViT-B-32",
            "openai",
            r"the weights 'openai' of model 'ViT-B-32' are not .* set model\.pretrained to their path",
        ),
        ("hf-hub:org/it", "", r"the files of model 'hf-hub:org/it' are not .* set model\.name to local-dir:FOLDER"),
    ],
)
def test_without_a_network_it_fails_at_once(name: str, tag: str, said: str) -> None:
    with pytest.raises(EnvironmentNotAbleError, match=said):
        load_model(name, tag)


@pytest.mark.usefixtures("nowhere")
def test_files_that_are_here_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def cached(repository: str, file: str) -> str | None:
        asked.append((repository, file))
        return "here" if file.endswith(".bin") else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    require_hub("ViT-B-32", "openai")
    repository = "timm/vit_base_patch32_clip_224.openai"
    assert asked == [(repository, "open_clip_model.safetensors"), (repository, "open_clip_pytorch_model.bin")]


@pytest.mark.usefixtures("nowhere")
def test_models_from_elsewhere_ask_nothing() -> None:
    require_hub("local-dir:here", "")
    require_hub("ViT-B-32", "weights.pt")


@pytest.mark.usefixtures("nowhere")
def test_a_hub_that_answers_may_lack_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which other file it has is open_clip's to find."""

    def absent(*_: object, **__: object) -> None:
        raise ValueError("404 Client Error")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", absent)
    require_hub("ViT-B-32", "openai")


@pytest.mark.usefixtures("nowhere")
def test_a_hub_that_answers_with_an_error_of_its_own_is_not_a_missing_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub wraps it as if the file could not be looked for."""

    def busy(*_: object, **__: object) -> None:
        answer = ConnectionError("503 Server Error")
        answer.response = SimpleNamespace(status_code=503)  # type: ignore[attr-defined]
        raise LocalEntryNotFoundError("cannot find the requested files in the local cache") from answer

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", busy)
    with pytest.raises(P4QEdgeError, match="the hub answers with error 503 for model 'ViT-B-32' 'openai'") as caught:
        load_model("ViT-B-32", "openai")
    assert caught.value.exit_code == 1


def test_a_file_named_in_a_record_may_have_a_safe_form(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"hf_hub": "org/it/all.bin"})
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: asked.append(file) or file)
    require_hub("ViT-B-32", "x")
    assert asked == ["all.bin"]
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: asked.append(file))
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, **_: asked.append(url))
    require_hub("ViT-B-32", "x")
    assert asked[1:3] == ["all.bin", "all.safetensors"]
    assert asked[3].endswith("/org/it/resolve/main/all.bin")


@pytest.mark.parametrize("cached", [False, True])
def test_what_open_clip_fetches_is_not_kept_outside_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """The library writes a file to the path that its tag is, whoever asks for it."""
    outside, config = tmp_path / "outside", "open_clip_config.json"
    hub = believed(tmp_path, monkeypatch)
    try:
        hub.repository("ann/clip", {config: b"{}", "open_clip_model.safetensors": b"x"})
        if cached:  # nothing is asked about it first, and open_clip asks for the others
            huggingface_hub.hf_hub_download("ann/clip", "open_clip_model.safetensors")
        hub.tag = str(outside)
        with pytest.raises(P4QEdgeError, match=r"ann/clip.* is no answer of the Hub \(ETag is .*Check HF_ENDPOINT"):
            load_model("hf-hub:ann/clip")
        assert not outside.exists()
        hub.tag = None
        with pytest.raises(P4QEdgeError, match="of hf-hub:ann/clip: vision_cfg must be an object"):
            load_model("hf-hub:ann/clip")
    finally:
        hub.close()


def test_the_tower_that_a_folder_names_is_not_kept_outside_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="needs the extra huggingface")
    outside, folder = tmp_path / "outside", tmp_path / "model"
    folder.mkdir()
    image = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    model = {"embed_dim": 64, "vision_cfg": image, "text_cfg": {"hf_model_name": "roberta-base"}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    (folder / "open_clip_model.safetensors").write_bytes(b"x")
    hub = believed(tmp_path, monkeypatch)
    try:
        hub.instead["/resolve/"] = (200, b"{}", {"ETag": f'"{outside}"', "X-Repo-Commit": "0" * 40})
        with pytest.raises(P4QEdgeError, match=r"local-dir:.* is no answer of the Hub \(ETag is "):
            load_model(f"local-dir:{folder}")
        assert not outside.exists()
    finally:
        hub.close()


def test_an_answer_that_open_clip_passes_over_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It tries several files, and says only that it found none."""
    outside, where = tmp_path / "outside", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    hub = believed(tmp_path, monkeypatch)
    try:
        hub.repository(where, {"open_clip_pytorch_model.bin": b"x"})
        huggingface_hub.hf_hub_download(where, "open_clip_pytorch_model.bin")  # so that nothing is asked first
        hub.tag = str(outside)
        with pytest.raises(P4QEdgeError, match=r"'laion2b_s34b_b79k' is no answer of the Hub \(ETag is "):
            load_model("ViT-B-32", "laion2b_s34b_b79k")
        assert not outside.exists()
    finally:
        hub.close()


@pytest.mark.parametrize("hooks", ["hooks", "event_hooks"])  # of requests, and of httpx
def test_answers_are_looked_at_where_there_are_any(monkeypatch: pytest.MonkeyPatch, hooks: str) -> None:
    session = SimpleNamespace(**{hooks: {"response": []}})
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
    kept = getattr(session, hooks)["response"]
    asked = SimpleNamespace(method="GET", url="https://hub.example/ann/clip/resolve/main/file")
    answer = SimpleNamespace(status_code=200, headers={"ETag": '"../x"'}, request=asked)
    with guarded_fetches():
        (look,) = kept
        with pytest.raises(Exception, match="ETag is '../x'"):
            look(answer, timeout=1.0)
        answer.headers["ETag"] = '"0123"'
        look(answer)
    assert kept == []
