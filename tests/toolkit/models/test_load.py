"""Loading: open_clip's own outputs, every kind of reference, and what wrong ones are told."""

import json
import socket
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from p4q_edge.calibration.calibrate import calibrate_encoder
from p4q_edge.graph.export import export_classifier, linear_quantizations
from p4q_edge.models.batches import encode_batches
from p4q_edge.models.folded_classifier import FoldedClassifier
from p4q_edge.models.load import load_model, preprocess_spec, to_batch
from p4q_edge.models.text_tower import TextTower
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.runtime.errors import EnvironmentNotAbleError, InputError, UsageError
from p4q_edge.runtime.images.preprocessing import preprocess
from p4q_edge.stages.encoder_file import restore_encoder, save_encoder

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def _register(tmp_path: Path, name: str, config: dict[str, object]) -> None:
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    _register(tmp_path, "toy-test", CONFIG)
    _register(tmp_path, "toy-test-quickgelu", CONFIG | {"quick_gelu": True})
    torch.manual_seed(0)
    model = open_clip.create_model("toy-test")
    path = tmp_path / "toy.safetensors"
    save_file(model.state_dict(), path, metadata={"license": "CC0-1.0"})
    return path


@pytest.fixture(autouse=True)
def _unregister() -> object:
    yield
    for name in ("toy-test", "toy-test-quickgelu"):
        open_clip.factory._MODEL_CONFIGS.pop(name, None)
    open_clip.factory._MODEL_CONFIG_PATHS[:] = [
        p for p in open_clip.factory._MODEL_CONFIG_PATHS if "toy-test" not in str(p)
    ]


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_outputs_are_open_clips_own(checkpoint: Path, quick_gelu: bool) -> None:
    loaded = load_model("toy-test", str(checkpoint), quick_gelu=quick_gelu)
    theirs, _, transform = open_clip.create_model_and_transforms(
        "toy-test-quickgelu" if quick_gelu else "toy-test", pretrained=str(checkpoint)
    )
    theirs.eval()
    from PIL import Image

    image = Image.radial_gradient("L").resize((40, 30))
    ours = to_batch(torch.from_numpy(preprocess(image, loaded.preprocess))[None], loaded.preprocess)
    torch.testing.assert_close(ours, transform(image)[None], atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(loaded.clip.encode_image(ours), theirs.encode_image(ours))
    assert loaded.logit_scale == pytest.approx(theirs.logit_scale.exp().item())
    assert loaded.logit_bias is None


def test_quick_gelu_makes_a_difference(checkpoint: Path) -> None:
    batch = torch.randn(1, 3, 16, 16)
    outputs = [load_model("toy-test", str(checkpoint), quick_gelu=q).clip.encode_image(batch) for q in (False, True)]
    assert not torch.allclose(*outputs)


def test_a_tag_trained_with_quick_gelu_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from p4q_edge.models import load

    assert load._tag_needs_quick_gelu("ViT-B-32", "openai")
    assert not load._tag_needs_quick_gelu("ViT-B-32", "laion2b_s34b_b79k")
    assert not load._tag_needs_quick_gelu("local-dir:x", "openai")


def test_licence_and_digest_come_with_the_weights(checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_model("toy-test", str(checkpoint))
    assert loaded.info.license == "CC0-1.0"
    assert loaded.info.pretrained == "toy.safetensors"  # no path of this machine
    as_pt = tmp_path / "toy.pt"
    torch.save(open_clip.create_model("toy-test", str(checkpoint)).state_dict(), as_pt)
    again = load_model("toy-test", str(as_pt), licence="mine")
    assert again.info.weights_sha256 == loaded.info.weights_sha256
    assert again.info.license == "mine"


def test_local_folders(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    checkpoint.rename(folder / "open_clip_model.safetensors")
    document = {
        "model_cfg": CONFIG,
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "resize_mode": "squash"},
        "license": "MIT",
    }
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    loaded = load_model(f"local-dir:{folder}")
    assert loaded.preprocess.mean == (0.1, 0.2, 0.3)
    assert loaded.preprocess.resize_mode == "squash"
    assert loaded.preprocess.size == (16, 16)
    assert (loaded.info.name, loaded.info.license) == ("local-dir:model", "MIT")
    assert loaded.tokenizer(["a"]).shape == (1, 12)


def test_a_pickle_that_is_no_state_dict_is_never_run(checkpoint: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil.pt"
    torch.save({"state_dict": _Evil(tmp_path / "ran")}, evil)
    with pytest.raises(InputError, match="could not load"):
        load_model("toy-test", str(evil))
    assert not (tmp_path / "ran").exists()


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-B-23", "openai", "open_clip has no model 'ViT-B-23'; did you mean 'ViT-B-32'"),
        ("ViT-B-32", "", r"needs weights: set pretrained to a tag \(openai, "),
        ("ViT-B-32", "opnai", "tag or file 'opnai' does not exist for model 'ViT-B-32'; known tags: openai"),
        ("ViT-B-32", "gone.pt", r"file 'gone\.pt' does not exist"),
        ("local-dir:nowhere", "", r"nowhere has no open_clip_config\.json"),
        ("hf-hub:a/b", "openai", "brings its own weights; remove pretrained = 'openai'"),
    ],
)
def test_wrong_references_say_what_exists(name: str, pretrained: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(name, pretrained)


def test_a_model_whose_tokenizer_is_not_installed(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

    monkeypatch.setattr(open_clip, "get_tokenizer", missing)
    wanted = r"needs the package transformers, .* pip install 'p4q-edge\[huggingface\]'"
    with pytest.raises(EnvironmentNotAbleError, match=wanted):
        load_model("toy-test", str(checkpoint))


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), ConnectionRefusedError("refused")])
def test_weights_that_cannot_be_fetched_are_the_fault_of_the_machine(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*arguments: object, **options: object) -> object:
        try:
            raise error
        except OSError as cause:
            raise RuntimeError("could not download") from cause

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(
        EnvironmentNotAbleError, match="could not be fetched: could not download. .* model.pretrained"
    ) as found:
        load_model("ViT-B-32", "openai")
    assert 'model.name = "demo" without model.pretrained' in str(found.value)


COCA = CONFIG | {
    "vision_cfg": CONFIG["vision_cfg"] | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},  # type: ignore[operator]
    "text_cfg": CONFIG["text_cfg"] | {"embed_cls": True, "output_tokens": True},  # type: ignore[operator]
    "multimodal_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    "custom_text": True,
}


def test_a_captioning_model_is_used_as_its_image_tower(tmp_path: Path) -> None:
    """CoCa returns its tokens too, and pools with learned queries of a width of their own."""
    _register(tmp_path, "toy-test", COCA)
    torch.manual_seed(0)
    save_file(open_clip.create_model("toy-test").state_dict(), tmp_path / "coca.safetensors")
    model = load_model("toy-test", str(tmp_path / "coca.safetensors"))
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    batch = to_batch(images, model.preprocess)
    with torch.no_grad():
        expected = model.clip.encode_image(batch, normalize=False)
        torch.testing.assert_close(encode_batches(model.clip.visual, [batch]), expected)
    calibrated = calibrate_encoder(model, images, QuantScheme())
    assert calibrated.kept_float == ()
    assert calibrated.cross_attention == ("trunk.attn_pool.attn",)
    assert float(torch.cosine_similarity(calibrated.encoder(batch), expected, dim=-1).min()) > 0.999
    classifier = FoldedClassifier(
        calibrated.encoder, None, torch.randn(3, 32), logit_scale=1.0, logit_bias=None, preprocess=model.preprocess
    )
    graphs = export_classifier(classifier, images.numpy())  # its gates hold
    assert set(linear_quantizations(classifier)) >= {
        f"encoder.trunk.attn_pool.attn.{name}" for name in ("key", "value")
    }
    assert graphs.parity.flat()["fp32.top1_agreement"] == 1.0
    save_encoder(calibrated, tmp_path / "calibrated.safetensors", key="k")
    restored = restore_encoder(tmp_path / "calibrated.safetensors", model, QuantScheme(), key="k")
    assert restored is not None
    torch.testing.assert_close(restored.encoder(batch), calibrated.encoder(batch), atol=0, rtol=0)


def test_prompts_of_a_captioning_model_cannot_be_learned(tmp_path: Path) -> None:
    _register(tmp_path, "toy-test", COCA)
    save_file(open_clip.create_model("toy-test").state_dict(), tmp_path / "coca.safetensors")
    model = load_model("toy-test", str(tmp_path / "coca.safetensors"))
    with pytest.raises(UsageError, match=r"set learn\.prompts = false"):
        TextTower(model.clip, QuantScheme())


def test_a_checkpoint_of_another_architecture(checkpoint: Path) -> None:
    with pytest.raises(InputError, match="check that the checkpoint belongs to this architecture"):
        load_model("RN50", str(checkpoint), quick_gelu=True)


def test_a_local_folder_without_weights(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    with pytest.raises(InputError, match="could not load"):
        load_model(f"local-dir:{tmp_path / 'bare'}")


def test_preprocessing_of_open_clips_models() -> None:
    spec = preprocess_spec({"size": 384, "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash"})
    assert spec.size == (384, 384)
    assert spec.interpolation == "bicubic"
