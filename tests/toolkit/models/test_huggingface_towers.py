"""Prompts through Hugging Face text towers: what is computed here is what the model itself computes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from p4q_edge.calibration.text import calibrate_text
from p4q_edge.data.few_shot import Split
from p4q_edge.models.huggingface_tower import HuggingFaceTower
from p4q_edge.models.load import LoadedModel, load_model
from p4q_edge.models.prompts import PromptLearner, initial_context, template_embeddings
from p4q_edge.models.text_tower import encoder_of, make_text_side
from p4q_edge.quant.linear import quant_linears
from p4q_edge.quant.scheme import QuantScheme
from p4q_edge.recipe.schema import DataSection, ModelSection, Recipe
from p4q_edge.runtime.errors import InputError, UsageError
from p4q_edge.runtime.images.image_set import ImageSet

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

NAMES = ("cat", "very old dog", "bird", "fox", "grey house")
WORDS = ["a", "b", "photo", "of", "the", "cat", "very", "old", "dog", "bird", "fox", "grey", "house", "."]
SIZES: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}
T5_SIZES: dict[str, Any] = {"d_model": 32, "d_kv": 16, "num_heads": 2, "num_layers": 2, "d_ff": 64}


def _config(family: str) -> Any:
    """A tiny configuration of a family, its padding where that family has it."""
    if family == "mt5":
        return transformers.MT5Config(vocab_size=40, pad_token_id=0, **T5_SIZES)
    kind = {"bert": transformers.BertConfig, "xlm-roberta": transformers.XLMRobertaConfig}[family]
    return kind(vocab_size=40, pad_token_id=0 if family == "bert" else 1, max_position_embeddings=40, **SIZES)


def write_folder(
    folder: Path, *, family: str = "bert", pooler: str = "mean_pooler", projection: str = "linear"
) -> Path:
    """A whole open_clip folder with a random text tower of Hugging Face beside its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    _config(family).save_pretrained(folder)
    padding = 1 if family == "xlm-roberta" else 0
    special = ["[CLS]", "[PAD]", "[SEP]", "[UNK]"] if padding else ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    vision = {"image_size": 16, "patch_size": 8, "width": 64, "layers": 2, "head_width": 16}
    text = {"hf_model_name": ".", "hf_tokenizer_name": ".", "hf_proj_type": projection, "hf_pooler_type": pooler}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text | {"context_length": 20}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {"size": 16}}))
    torch.manual_seed(0)
    made = config | {"text_cfg": config["text_cfg"] | {"hf_model_name": str(folder), "hf_model_pretrained": False}}
    clip = open_clip.CustomTextCLIP(**made)
    for module in clip.text.modules():  # random weights of a BERT hardly tell texts apart
        if isinstance(module, nn.Linear):
            module.weight.data *= 8
    save_file({n: t.clone() for n, t in clip.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """A model of a folder, loaded from elsewhere; parametrized by (family, pooler, projection), else a BERT."""
    family, pooler, projection = getattr(request, "param", ("bert", "mean_pooler", "linear"))
    folder = write_folder(tmp_path / "model", family=family, pooler=pooler, projection=projection)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return load_model(f"local-dir:{folder}")


FORMS = [
    ("bert", "mean_pooler", "linear"),
    ("bert", "cls_pooler", "mlp"),
    ("bert", "cls_last_hidden_state_pooler", "linear"),
    ("xlm-roberta", "mean_pooler", "mlp"),
    ("mt5", "mean_pooler", "linear"),
]


@pytest.mark.parametrize("model", FORMS, indirect=True, ids="-".join)
def test_a_tower_computes_what_its_model_computes(model: LoadedModel) -> None:
    tokens = model.tokenizer(["a photo of a very old dog.", "cat", ""])
    expected = model.clip.encode_text(tokens)
    tower = make_text_side(model.clip, QuantScheme())
    assert isinstance(tower, HuggingFaceTower)
    assert tower.width == 32
    assert float(torch.cdist(expected, expected).max()) > 0.1, "the texts are told apart"
    torch.testing.assert_close(tower.encode(tokens), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoder_of(model.clip)(tokens), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", FORMS, indirect=True, ids="-".join)
def test_context_from_words_starts_at_the_hand_written_embeddings_and_gets_a_gradient(model: LoadedModel) -> None:
    learner = _learner(model)
    written = template_embeddings(model.clip.encode_text, model.tokenizer, NAMES, templates=["a photo of a {}."])
    torch.testing.assert_close(learner().detach(), written, atol=1e-5, rtol=1e-4)
    learner().square().matmul(torch.arange(24.0)).sum().backward()
    assert learner.context.grad is not None
    assert float(learner.context.grad.abs().sum(1).min()) > 0


def test_a_memory_limit_leaves_embeddings_and_gradient_as_they_are(model: LoadedModel) -> None:
    whole, limited = _learner(model), _learner(model)
    limited.limit_memory(1)
    assert any(chunk.recompute for chunk in limited.chunks)
    for learner in (whole, limited):
        (learner() * torch.arange(24.0)).sum().backward()
    torch.testing.assert_close(limited.context.grad, whole.context.grad, atol=1e-5, rtol=1e-4)


def test_the_papers_track_quantizes_such_a_tower(model: LoadedModel) -> None:
    learner = _learner(model)
    tower = learner.tower
    before = learner().detach()
    calibrate_text(tower, learner)
    after = learner()
    assert len(quant_linears(tower)) == 2 * 6 + 1
    assert all(linear.calibrated for linear in quant_linears(tower).values())
    cosine = torch.nn.functional.cosine_similarity(before, after.detach())
    assert 0.98 < float(cosine.min()) < 1.0
    after.sum().backward()
    assert learner.context.grad is not None


def test_padding_in_front_of_a_text_is_refused(model: LoadedModel) -> None:
    tower = make_text_side(model.clip, QuantScheme())
    with pytest.raises(UsageError, match=r'expected padding \(token 0\) behind the texts .* "padding_side": "right"'):
        tower.end_index(torch.tensor([[0, 0, 1, 5, 2]]))


def test_a_class_name_without_room_is_refused(model: LoadedModel) -> None:
    names = ("cat", " ".join(["old"] * 15))
    with pytest.raises(UsageError, match="with 4 context tokens needs more than 20 tokens"):
        _learner(model, names)


def test_a_tower_without_padding_is_refused(model: LoadedModel) -> None:
    model.clip.text.config.pad_token_id = None
    with pytest.raises(UsageError, match=r"config\.json of bert has no pad_token_id; add it, or set learn\.prompts"):
        make_text_side(model.clip, QuantScheme())


@pytest.mark.parametrize("model", [("bert", "max_pooler", "linear")], indirect=True)
def test_a_pooling_that_open_clip_cannot_compute_is_refused(model: LoadedModel) -> None:
    with pytest.raises(RuntimeError, match="boolean"):  # were it mended there, it could be allowed here
        model.clip.encode_text(model.tokenizer(["cat"]))
    message = r"expected a text tower that pools by mean_pooler, cls_pooler or .*, got max_pooler"
    with pytest.raises(UsageError, match=message):
        encoder_of(model.clip)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}, r"config\.json asks for code .*\(auto_map\)"),
        ("config.json", {"attn_implementation": "org/kernel"}, r"\(attn_implementation\), which is never run"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}, r"tokenizer_config\.json asks"),
    ],
)
def test_a_folder_that_brings_code_is_refused(
    tmp_path: Path, file: str, change: dict[str, object], message: str
) -> None:
    folder = write_folder(tmp_path)
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        load_model(f"local-dir:{folder}")


def test_code_by_way_of_the_tokenizers_arguments_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    _edit(folder, lambda config: config["text_cfg"].update(tokenizer_kwargs={"trust_remote_code": True}))
    with pytest.raises(InputError, match=r"open_clip_config\.json asks for .*trust_remote_code"):
        load_model(f"local-dir:{folder}")


def test_a_tower_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    _edit(folder, lambda config: config["text_cfg"].update(hf_model_name="./text"))
    with pytest.raises(InputError, match=r"names a tower in './text', but .*text/config\.json does not exist"):
        load_model(f"local-dir:{folder}")


def test_an_image_tower_of_timm_in_the_folder_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "image").mkdir()
    sizes = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2}
    timm = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": sizes, "pretrained_cfg": {}}
    (folder / "image/config.json").write_text(json.dumps(timm))
    vision = {"timm_model_name": "local-dir:image", "timm_pool": "token", "timm_proj": "none", "image_size": 32}
    _edit(folder, lambda config: config.update(vision_cfg=vision))
    monkeypatch.chdir(folder)  # where open_clip's own reading of the path works
    text = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    clip = open_clip.CustomTextCLIP(
        embed_dim=24, vision_cfg=vision, text_cfg=text | {"hf_model_name": str(folder), "hf_model_pretrained": False}
    )
    save_file({n: t.clone() for n, t in clip.state_dict().items()}, folder / "open_clip_model.safetensors")
    monkeypatch.chdir(tmp_path)
    model = load_model("local-dir:model")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model.clip.encode_image(images), clip.eval().encode_image(images))


def test_a_missing_library_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from open_clip import hf_model

    from p4q_edge.runtime.errors import EnvironmentNotAbleError

    folder = write_folder(tmp_path)
    monkeypatch.setattr(hf_model, "transformers", None)
    with pytest.raises(EnvironmentNotAbleError, match=r"package transformers.*pip install 'p4q-edge\[huggingface\]'"):
        load_model(f"local-dir:{folder}")


def test_what_prompts_cannot_do_is_said_before_calibration(
    tmp_path: Path, toy_images: Callable[[int], ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    from p4q_edge.stages import pipeline

    monkeypatch.setattr(pipeline, "calibrate_encoder", lambda *args, **kwargs: pytest.fail("calibrated first"))
    folder = write_folder(tmp_path / "model", pooler="max_pooler")
    recipe = Recipe(model=ModelSection(name=f"local-dir:{folder}"), data=DataSection(train="toy"))
    images = toy_images(4)
    source = pipeline.Source(
        recipe=recipe,
        model=load_model(recipe.model.name),
        split=Split(train=images, test=images),
        templates=("a photo of a {}.",),
        class_prompts={},
        train_digests=(),
    )
    with pytest.raises(UsageError, match="got max_pooler"):
        pipeline.prepare(source, pipeline.RunFiles(folder=tmp_path / "run"))
    long = replace(source, model=load_model(f"local-dir:{write_folder(tmp_path / 'mean')}"))
    long = replace(long, split=Split(train=replace(images, class_names=("old " * 30, "b", "c", "d")), test=images))
    with pytest.raises(UsageError, match="needs more than 20 tokens"):
        pipeline.prepare(long, pipeline.RunFiles(folder=tmp_path / "run"))


def _learner(model: LoadedModel, names: tuple[str, ...] = NAMES) -> PromptLearner:
    tower = make_text_side(model.clip, QuantScheme())
    generator = torch.Generator().manual_seed(0)
    context = initial_context(tower, model.tokenizer, words="a photo of a", num_tokens=4, generator=generator)
    return PromptLearner(tower, model.tokenizer, names, context=context)


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "open_clip_config.json"
    document = json.loads(path.read_text())
    change(document["model_cfg"])
    path.write_text(json.dumps(document))
